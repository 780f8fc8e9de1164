"""Start a job again when it has failed, on the hosts that are left: ``collective run --restarts N``.

The job's program goes on from its newest checkpoint (``collective.checkpoint``); which one that is, it finds by itself.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from collective.errors import LaunchError
from collective.launch.dialects import Line

# Where rank 0 leaves word that all ranks have come to their end (``Settings.completion_file``).
COMPLETION = "COLLECTIVE_COMPLETION_FILE"
# The first pause before a restart, in seconds; the next ones are each twice as long, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
# What a shell reports of a program that a signal has ended.
SIGNALLED = 128
STATUS_OF_AN_INCOMPLETE_JOB = 1


class Attempt(NamedTuple):
    """One start of a job.

    Attributes:
        line: The launcher's command line.
        environment: The launcher's whole environment.
        ranks: Number of processes.
        needs_record: Whether a status of 0 means success only together with rank 0's word: launchers have been seen
            to end with 0 when a host was lost.
    """

    line: Line
    environment: Mapping[str, str]
    ranks: int
    needs_record: bool


def supervise(start: Callable[[Mapping[str, str], bool], Attempt], restarts: int, completion_file: str) -> int:
    """Run a job until it succeeds, or has been started again ``restarts`` times; returns the last exit status.

    Args:
        start: ``start(variables, again)`` plans the next attempt with these variables for the ranks; ``again``: it is
            not the first, so hosts may be gone.
        restarts: How often.
        completion_file: The user's own, on a file system that rank 0's host shares; empty: one on this machine.
    """
    pause = FIRST_PAUSE
    for number in range(restarts + 1):
        with _record(completion_file) as record:
            try:
                attempt = start({COMPLETION: str(record)}, number > 0)
            except LaunchError as error:
                if not number:
                    raise
                status, seconds, failure = STATUS_OF_AN_INCOMPLETE_JOB, 0.0, f"could not be started: {error}"
            else:
                if number:
                    _say(f"restart {number} of {restarts}, on {attempt.ranks} ranks")
                began = time.monotonic()
                status, stopped = _run(attempt)
                seconds = time.monotonic() - began
                if stopped:
                    return status
                if status == 0 and attempt.needs_record and not record.exists():
                    status, failure = (
                        STATUS_OF_AN_INCOMPLETE_JOB,
                        "ended with status 0, but not all ranks came to their end",
                    )
                elif status == 0:
                    return 0
                else:
                    failure = f"ended with status {status}"
        _say(f"the job {failure} after {seconds:.1f} s")
        if number < restarts:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    return status


@contextlib.contextmanager
def _record(own: str) -> Iterator[Path]:
    """Where rank 0 leaves word of this attempt; nothing is there at first."""
    if own:
        Path(own).unlink(missing_ok=True)
        yield Path(own)
        return
    with tempfile.TemporaryDirectory(prefix="collective-run-") as folder:
        yield Path(folder) / "complete"


def _run(attempt: Attempt) -> tuple[int, bool]:
    """Run the launcher; returns its status, and whether it ended because this process was told to."""
    told: list[int] = []
    launcher = subprocess.Popen(attempt.line.arguments, env=dict(attempt.environment))

    def pass_on(number: int, _: FrameType | None) -> None:
        told.append(number)
        launcher.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        status = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return (status if status >= 0 else SIGNALLED - status), bool(told)


def _say(text: str) -> None:
    print(f"collective run: {text}", file=sys.stderr, flush=True)
