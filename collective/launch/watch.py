"""Looks at a running job: which rank the others wait for and what it is at, and when waiting has become pointless."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Sequence

from collective.launch.monitor import Monitor, Rank
from collective.launch.verdict import absent, awaited_in_vain
from collective.monitor import activity
from collective.settings import Settings

# How long a rank may take to tell where it is.
ANSWER_SECONDS = 2.0
# How long a launcher, and ranks that are in init, may outlive ranks that ended without leaving the job.
ALONE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class GivenUp:
    """Why a job has to be ended.

    Attributes:
        cause: In words; of ``rank`` if it is one's.
        rank: The rank it is ended for; None: no single one.
        at: When, by ``time.monotonic``.
    """

    cause: str
    rank: Rank | None = None
    at: float = dataclasses.field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.rank.label} {self.cause}" if self.rank else self.cause


class Watch:
    """Says what it sees, and tells when the job has to be ended.

    Args:
        monitor: What hears the ranks.
        expected: Number of processes that are started.
        settings: The ranks': ``stall_seconds`` until a rank that others wait for is named, ``timeout_seconds`` until a
            rank that says nothing, or has not come to ``init`` while others wait there, is given up, ``lost_seconds``
            until a host is; 0: never.
        say: Prints a line.
    """

    def __init__(self, monitor: Monitor, expected: int, settings: Settings, say: Callable[[str], None]) -> None:
        self._monitor, self._expected, self._say = monitor, expected, say
        self._stall = settings.stall_seconds or float("inf")
        self._timeout = settings.timeout_seconds or float("inf")
        self._lost = settings.lost_seconds or float("inf")
        self._recovery, self._elastic = settings.recovery_seconds, settings.elastic
        # An elastic job's launcher doesn't end it when a rank dies, be it before ``init``.
        self._start = min(self._timeout, self._recovery) if settings.elastic else self._timeout
        self._asked: dict[Rank, float] = {}  # when a late rank was asked for its stacks
        self._named: set[Rank] = set()
        self._missed: set[str] = set()

    def look(self) -> GivenUp | None:
        """To be called every second or so; returns why the job has to be ended, if it has to."""
        present = [rank for rank in self._monitor.ranks if rank.ended is None and not rank.left]
        self._look_for_late(present)
        return (
            self._alone()
            or self._missing(present)
            or self._silent(present)
            or self._stranded(present)
            or self._unheard(present)
        )

    def kill_ranks_here(self) -> None:
        """End the ranks on this host, also those that are stopped; a connection that is open says that one lives."""
        for rank in self._monitor.ranks:
            if rank.ended is None and rank.host == os.uname().nodename:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(rank.process, signal.SIGKILL)

    def _look_for_late(self, present: Sequence[Rank]) -> None:
        waiting = [rank for rank in present if rank.said.get("waited_seconds", 0) > self._stall]
        silent = [rank for rank in present if _silence(rank) > self._stall]
        late = silent or [rank for rank in present if waiting and not rank.waited(time.monotonic())]
        for rank in late:
            asked = self._asked.get(rank)
            if asked is None:
                rank.stacks = ""
                self._asked[rank] = time.monotonic()
                self._monitor.tell("stacks", to=rank)
            elif rank not in self._named and (rank.stacks or time.monotonic() - asked > ANSWER_SECONDS):
                self._named.add(rank)
                self._say(_description(rank, waiting))
        if not late:
            self._asked.clear()
            self._named.clear()

    def _alone(self) -> GivenUp | None:
        """Whether the launcher has outlived its ranks."""
        ranks = self._monitor.ranks
        ends = [rank.ended for rank in ranks if rank.ended]
        # A death alone tells nothing: in an elastic job the others go on, and it may be long ago when they end.
        over = len(ends) == len(ranks) and not all(rank.left for rank in ranks)
        outlived = over and _since(ends) > ALONE_SECONDS
        return GivenUp("all ranks have ended, but not their launcher") if outlived else None

    def _missing(self, present: Sequence[Rank]) -> GivenUp | None:
        """Which processes others wait for in ``init`` in vain."""
        waiting = [rank for rank in present if rank.rank is None]
        dead = [rank for rank in self._monitor.ranks if rank.ended and rank.rank is None]
        if waiting and dead and _since([rank.ended or 0 for rank in dead]) > ALONE_SECONDS:
            return GivenUp("has ended in init(), where others wait for it", dead[0])
        missing = absent(self._monitor.ranks, self._expected) if waiting else ""
        if not missing:
            return None
        waited = max(time.monotonic() - rank.came for rank in waiting)
        text = f"{missing} never came to init(), where others have waited {waited:.0f} s"
        if waited > self._stall and missing not in self._missed:
            self._missed.add(missing)
            self._say(text)
        return GivenUp(text) if waited > self._start else None

    def _silent(self, present: Sequence[Rank]) -> GivenUp | None:
        """Which rank or host is not heard of any more."""
        # Also one that has left the job and doesn't end.
        for rank in self._monitor.ranks:
            if rank.ended is None and _silence(rank) > self._timeout:
                return GivenUp(_told(rank), rank)
        for host in dict.fromkeys(rank.host for rank in present):
            there = [rank for rank in present if rank.host == host]
            silence = min(map(_silence, there))
            if silence > self._lost:
                numbers = ", ".join(str(rank.rank) for rank in there)
                cause = f"was not heard of for {silence:.0f} s, nor was any rank of its host: {numbers}"
                return GivenUp(cause, there[0])
        return None

    def _stranded(self, present: Sequence[Rank]) -> GivenUp | None:
        """Which rank is left by others that have given up waiting for it; launchers of elastic jobs don't mind."""
        for gone in self._monitor.ranks if self._elastic else ():
            late = awaited_in_vain(gone, self._monitor.ranks) if gone.ended and gone.failure else None
            if late and late in present and late.joined < gone.failed:
                return GivenUp(f"was late or had stopped, and {gone.label} has given up waiting for it", late)
        return None

    def _unheard(self, present: Sequence[Rank]) -> GivenUp | None:
        """Which rank others wait for though its process has ended; in elastic jobs MPI hears of a signal only."""
        for dead in self._monitor.ranks:
            since = dead.ended if dead.ended and not dead.left else float("inf")
            waiting = [rank for rank in present if rank.joined < since and _waited(rank) > self._recovery]
            if waiting and _since([since]) > self._recovery:
                return GivenUp(f"has ended, and {waiting[0].label} waits for it all the same", dead)
        return None


def _waited(rank: Rank) -> float:
    return rank.said.get("waited_seconds", 0)


def _description(late: Rank, waiting: Sequence[Rank]) -> str:
    text = f"{late.label} is late"
    if waiting:
        longest = max(waiting, key=lambda rank: rank.said["waited_seconds"])
        seconds = longest.said["waited_seconds"]
        text += f": {longest.label} has waited {seconds:.0f} s in {longest.said['operation']}"
    return f"{text}. It is at:\n{late.stacks.rstrip()}" if late.stacks else f"{text}. It {_told(late)}"


def _told(rank: Rank) -> str:
    """What there is to say of a rank that says nothing itself."""
    state = activity.state(rank.process) if rank.host == os.uname().nodename else ""
    told = f"its process is {state}" if state else "stopped, cut off, or in code that holds Python's lock"
    return f"has said nothing for {_silence(rank):.0f} s: {told}"


def _silence(rank: Rank) -> float:
    return time.monotonic() - rank.heard


def _since(times: Sequence[float]) -> float:
    return time.monotonic() - max(times)
