"""Start a job again when it has failed, on the hosts that are left: ``collective run --restarts N``.

The job's program goes on from its newest snapshot (``collective.snapshots``) or checkpoint (``collective.checkpoint``);
which one that is, it finds by itself.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import NamedTuple

from collective.errors import DivergenceError, LaunchError
from collective.launch.attempt import STATUS_OF_AN_INCOMPLETE_JOB, Attempt, Ending, run, say
from collective.launch.fleet import Fleet, Hosts
from collective.launch.memory import Memory
from collective.launch.verdict import SIGNALLED, of, sentence, write
from collective.launched import START_AGAIN
from collective.monitor.link import VARIABLE as MONITOR

# The first pause before a restart, in seconds; the next ones are each twice as long, up to the last.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0

# ``start(variables, ranks, hosts)`` plans an attempt with these variables for the ranks.
Start = Callable[[Mapping[str, str], int, Hosts], Attempt]


class _Try(NamedTuple):
    """One start of the job: its size, its end, and whether it has asked for another because of other hosts."""

    ranks: int
    ending: Ending
    asks: bool = False


def supervise(start: Start, fleet: Fleet, restarts: int, memory: Memory, report: str) -> int:
    """Run a job until it succeeds, or has failed once more than ``restarts`` times; returns the last exit status.

    A job that has heard of other hosts and ends with the status ``START_AGAIN`` has not failed.

    Args:
        start: Plans an attempt.
        fleet: Where the job may run.
        restarts: How many failures are followed by another start.
        memory: What the job keeps in the memory of its hosts.
        report: File that tells programs what happened; empty: a temporary one, if the job fails.
    """
    tries: list[_Try] = []
    with _stopped_by_signals(), memory:
        failures, goes_on, name = 0, True, ""
        while goes_on:
            tries.append(_once(start, fleet, memory, bool(tries), name))
            ending = tries[-1].ending
            goes_on = bool(ending.status) and not ending.stopped
            if goes_on and tries[-1].asks:
                name = "started again, as it has asked"
            elif goes_on:
                how = f"with status {ending.status} after {ending.seconds:.1f} s"
                say(f"the job ended {how}: {sentence(ending.verdict)}")
                failures += 1
                name = f"restart {failures} of {restarts}"
                goes_on = failures <= restarts and bool(tries[-1].ranks)
            if ending.status and ending.verdict.get("error") == DivergenceError.__name__:
                say("the snapshots in memory are forgotten: nobody knows since when the replicas had drifted apart")
                memory.forget()
            elif ending.status:
                memory.tidy()
            if goes_on and not tries[-1].asks:
                time.sleep(min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE))
    if report or (ending.status and not ending.stopped):
        _report(tries, report)
    return ending.status


def _once(start: Start, fleet: Fleet, memory: Memory, again: bool, name: str) -> _Try:
    """Start the job once, where there is room for it now."""
    ranks = 0
    try:
        ranks, hosts = fleet.gather(again)
        attempt = start({MONITOR: "", **memory.variables}, ranks, hosts)
    except LaunchError as error:
        if not again:
            raise
        verdict = of(None, f"the job could not be started: {error}")
        return _Try(ranks, Ending(STATUS_OF_AN_INCOMPLETE_JOB, False, 0.0, verdict))
    if again:
        say(f"{name}, on {ranks} ranks")
    ending = run(attempt, functools.partial(fleet.watched, ranks, hosts))
    memory.started(ending.launcher)
    if ending.status not in (0, START_AGAIN) and not ending.stopped:
        fleet.blame(_blamed(attempt, ending))
    return _Try(ranks, ending, ending.status == START_AGAIN and fleet.has_told)


def _blamed(attempt: Attempt, ending: Ending) -> str:
    """The host on which the job has failed, by the name that the user has for it; empty: not known."""
    names = [host.name for host in attempt.hosts for _ in range(host.slots)]
    rank, host = ending.verdict["rank"], ending.verdict.get("host", "")
    if host in names:
        return str(host)
    # Launchers fill the hosts in their order; in an elastic job ranks get other numbers later.
    return names[rank] if rank in range(len(names)) and not attempt.settings.elastic else ""


def _report(tries: list[_Try], file: str) -> None:
    endings = [(each.ranks, each.ending) for each in tries]
    attempts = [
        {"ranks": ranks, "seconds": ending.seconds, "status": ending.status, **ending.verdict}
        for ranks, ending in endings
    ]
    status = endings[-1][1].status
    written = write({"status": status, "attempts": attempts}, file)
    if not written:
        say(f"the report can't be written to {file}")
    elif status:
        say(f"all that is known is in {written}")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let signals that would end this process at once, between two starts, end it in peace."""

    def stop(number: int, _: FrameType | None) -> None:
        sys.exit(SIGNALLED + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
