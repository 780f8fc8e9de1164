"""What a job starts for a rank that joins it later: ``python -m collective.newcomer PROGRAM ARGUMENTS``.

On other hosts launchers give such a process less than they have given the first ranks. So it gets its environment from
the supervisor, and becomes the program.
"""

from __future__ import annotations

import os
import sys

from collective.monitor import link


def main() -> None:
    """Become the program."""
    environment = {**os.environ, **link.environment()}
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment)  # noqa: S606  # as it is wanted


if __name__ == "__main__":
    main()
