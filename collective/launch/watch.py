"""Looks at a running job: which rank the others wait for and what it is at, and which hosts are not heard of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from collective.launch.monitor import Monitor, Rank
from collective.monitor import activity

# A rank tells its status every second; after so long it isn't just late with that.
SILENT_SECONDS = 5.0
# How long a rank may take to tell where it is.
ANSWER_SECONDS = 2.0


class Watch:
    """Says what it sees.

    Args:
        monitor: What hears the ranks.
        stall_seconds: How long ranks wait for another before that one is named; 0: it never is.
        lost_seconds: How long nothing is heard from a host before the job is given up; 0: it never is.
        say: Prints a line.
    """

    def __init__(self, monitor: Monitor, stall_seconds: float, lost_seconds: float, say: Callable[[str], None]) -> None:
        self._monitor, self._say = monitor, say
        self._stall, self._lost = stall_seconds, lost_seconds
        self._asked: dict[Rank, float] = {}  # when a late rank was asked for its stacks
        self._named: set[Rank] = set()

    def look(self) -> str:
        """To be called every second or so; returns why the job has to be ended, or nothing."""
        present = [rank for rank in self._monitor.ranks if rank.ended is None and not rank.left]
        if self._stall:
            self._look_for_late(present)
        return self._silent_host(present) if self._lost else ""

    def _look_for_late(self, present: Sequence[Rank]) -> None:
        now = time.monotonic()
        waiting = [rank for rank in present if rank.said.get("waited_seconds", 0) > self._stall]
        late = [rank for rank in present if not rank.said.get("waited_seconds") or now - rank.heard > SILENT_SECONDS]
        for rank in late if waiting else ():
            if rank not in self._asked:
                rank.stacks = ""
                self._asked[rank] = now
                self._monitor.tell("stacks", to=rank)
            elif rank not in self._named and (rank.stacks or now - self._asked[rank] > ANSWER_SECONDS):
                self._named.add(rank)
                self._say(self._description(rank, waiting))
        if not waiting:
            self._asked.clear()
            self._named.clear()

    def _description(self, late: Rank, waiting: Sequence[Rank]) -> str:
        longest = max(waiting, key=lambda rank: rank.said["waited_seconds"])
        seconds = longest.said["waited_seconds"]
        text = f"{late.label} is late: {longest.label} has waited {seconds:.0f} s in {longest.said['operation']}"
        if late.stacks:
            return f"{text}. It is at:\n{late.stacks.rstrip()}"
        silence = time.monotonic() - late.heard
        here = late.host == os.uname().nodename
        state = activity.state(late.process) if here else ""
        told = f"its process is {state}" if state else "stopped, cut off, or in code that holds Python's lock"
        return f"{text}. It has said nothing for {silence:.0f} s: {told}"

    def _silent_host(self, present: Sequence[Rank]) -> str:
        for host in dict.fromkeys(rank.host for rank in present):
            there = [rank for rank in present if rank.host == host]
            silence = time.monotonic() - max(rank.heard for rank in there)
            if silence > self._lost:
                numbers = ", ".join(str(rank.rank) for rank in there)
                return f"host {host} (ranks {numbers}) was not heard of for {silence:.0f} s"
        return ""
