"""One rank of the parallel suite: pytest with its output in a file of the rank's own.

collective run -np 3 -- python tests/parallel/main.py FOLDER [pytest arguments]
"""

import contextlib
import sys
from pathlib import Path

import pytest

import collective

# Warnings are errors; this one is Keras's own, of NumPy 2.
KERAS_WARNS = ("-W", "ignore:__array__ implementation:DeprecationWarning")


def main() -> int:
    """Join the job, run the tests in step with the other ranks, and return pytest's exit status."""
    folder, *arguments = sys.argv[1:]
    collective.init()
    here = str(Path(__file__).parent)
    # pytest tidies a folder that all its runs share; ranks would get in each other's way there.
    own = ("--basetemp", str(Path(folder) / f"files-of-rank{collective.rank()}"))
    with open(Path(folder) / f"rank{collective.rank()}.txt", "w") as log, contextlib.redirect_stdout(log):
        status = pytest.main([here, "-p", "no:cacheprovider", "-q", "--color=no", *KERAS_WARNS, *own, *arguments])
    with contextlib.suppress(collective.errors.CollectiveError):
        collective.shutdown()
    return int(status)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
