"""``python -m collective.bench``: the same as ``collective bench``, and what every rank of it runs."""

from __future__ import annotations

import argparse
import sys

from collective.bench import command
from collective.errors import CollectiveError


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m collective.bench", description=command.__doc__, allow_abbrev=False)
    command.add_arguments(parser)
    arguments = parser.parse_args()
    try:
        return command.run(arguments)
    except CollectiveError as error:
        print(f"collective bench: {error}", file=sys.stderr)
        return command.ERROR_STATUS


if __name__ == "__main__":
    sys.exit(main())
