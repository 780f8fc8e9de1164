"""One rank of the parallel suite: pytest with its output in a file of the rank's own.

collective run -np 3 -- python tests/parallel/main.py FOLDER [test_FILE.py ...] [pytest arguments]
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
    here = Path(__file__).parent
    chosen = [str(here / word) for word in arguments if word.endswith(".py")] or [str(here)]
    options = [word for word in arguments if not word.endswith(".py")]
    # pytest tidies a folder that all its runs share; ranks would get in each other's way there.
    own = ("--basetemp", str(Path(folder) / f"files-of-rank{collective.rank()}"))
    with open(Path(folder) / f"rank{collective.rank()}.txt", "w") as log, contextlib.redirect_stdout(log):
        status = pytest.main([*chosen, "-p", "no:cacheprovider", "-q", "--color=no", *KERAS_WARNS, *own, *options])
    with contextlib.suppress(collective.errors.CollectiveError):
        collective.shutdown()
    return int(status)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.exit(status)
