"""The ``collective`` command: one table of subcommands, each loaded only when it is used."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from collective import __version__
from collective.errors import CollectiveError

PURPOSE = "Train on many processes and machines over MPI."
ERROR_STATUS = 2

# name: (module with add_arguments(parser) and run(arguments) -> exit status, what it does)
COMMANDS = {
    "run": ("collective.launch.run", "start a program on many processes, with whichever MPI its Python has"),
    "bench": ("collective.bench.command", "measure all-reduce, training step, control plane and memory beside peers"),
    "chaos": ("collective.chaos.command", "disturb a small training in every way there is, and tell how it came out"),
    "install-horovod": ("collective.launch.install_horovod", "build Horovod for this Python"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand of ``argv`` (default: the command line) and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words and words[0] in COMMANDS else ""
    parser = _parser(chosen)
    if not words:
        parser.print_help()
        return ERROR_STATUS
    arguments = parser.parse_args(words)
    try:
        return int(importlib.import_module(COMMANDS[chosen][0]).run(arguments))
    except CollectiveError as error:
        print(f"collective {chosen}: {error}", file=sys.stderr)
        return ERROR_STATUS


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="collective", description=PURPOSE, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"collective {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, purpose) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        if name == chosen:
            importlib.import_module(module).add_arguments(subparser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
