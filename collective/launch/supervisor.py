"""Start a job again when it has failed, on the hosts that are left: ``collective run --restarts N``.

The job's program goes on from its newest checkpoint (``collective.checkpoint``); which one that is, it finds by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from collective.errors import LaunchError
from collective.launch.attempt import Attempt, Ending, run, say
from collective.launch.verdict import sentence, unknown, write
from collective.monitor.link import VARIABLE as MONITOR

# The first pause before a restart, in seconds; the next ones are each twice as long, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
STATUS_OF_AN_INCOMPLETE_JOB = 1


def supervise(start: Callable[[Mapping[str, str], bool], Attempt], restarts: int, report: str) -> int:
    """Run a job until it succeeds, or has been started again ``restarts`` times; returns the last exit status.

    Args:
        start: ``start(variables, again)`` plans the next attempt with these variables for the ranks; ``again``: it is
            not the first, so hosts may be gone.
        restarts: How often.
        report: File that tells programs what happened; empty: a temporary one, if the job fails.
    """
    pause, attempts = FIRST_PAUSE, []
    for number in range(restarts + 1):
        ranks, ending = _once(start, number, restarts)
        attempts.append({"ranks": ranks, "seconds": ending.seconds, "status": ending.status, **ending.verdict})
        if not ending.status or ending.stopped:
            break
        say(f"the job ended with status {ending.status} after {ending.seconds:.1f} s: {sentence(ending.verdict)}")
        if number < restarts:
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    if report or (ending.status and not ending.stopped):
        file = write({"status": ending.status, "attempts": attempts}, report)
        say(f"all that is known is in {file}" if file else f"the report can't be written to {report}")
    return ending.status


def _once(start: Callable[[Mapping[str, str], bool], Attempt], number: int, restarts: int) -> tuple[int, Ending]:
    """Start the job once; returns the number of ranks, and how it ended."""
    try:
        attempt = start({MONITOR: ""}, number > 0)
    except LaunchError as error:
        if not number:
            raise
        return 0, Ending(STATUS_OF_AN_INCOMPLETE_JOB, False, 0.0, unknown(f"the job could not be started: {error}"))
    if number:
        say(f"restart {number} of {restarts}, on {attempt.ranks} ranks")
    return attempt.ranks, run(attempt)
