"""Start the ranks that measure, by the command that starts any job, and read what rank 0 says."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from collective.bench.rows import Event, from_line
from collective.launch import machines


class JobFailed(Exception):
    """A job ended with an exit status other than 0; why, it has said on stderr.

    Attributes:
        status: The exit status.
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def launch(arguments: argparse.Namespace, module: Sequence[str]) -> Iterator[Event]:
    """Run ``python -m`` with the words ``module`` on the ranks asked for, and yield what rank 0 has to say.

    Raises:
        JobFailed: when the job fails.
    """
    command = [*_launcher(arguments), "--", sys.executable, "-m", *module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        previous = signal.signal(signal.SIGTERM, _leave)
        try:
            for line in process.stdout or ():
                event = from_line(line)
                if event:
                    yield event
                else:
                    print(line, end="", flush=True)
        except BaseException:
            process.terminate()  # the launcher ends its ranks, before this process ends
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
    if process.returncode:
        raise JobFailed(process.returncode)


def _launcher(arguments: argparse.Namespace) -> list[str]:
    where = ["-np", arguments.ranks or str(machines.cores())]
    if arguments.hosts is not None:
        where += ["-H", arguments.hosts]
    if arguments.hostfile is not None:
        where += ["--hostfile", str(arguments.hostfile)]
    return [sys.executable, "-m", "collective", "run", *where, *shlex.split(arguments.run_args)]


def _leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Leave by an exception, so that the job is ended too."""
    sys.exit(128 + number)
