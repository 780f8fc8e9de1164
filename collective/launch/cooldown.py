"""Hosts on which a job has failed are left out for a while, each time for longer, and then forgiven."""

from __future__ import annotations

import time
from collections.abc import Callable

from collective.launch.hostfile import Host


class Cooldown:
    """Which hosts are left out now.

    Args:
        lowest: Seconds for the first failure on a host; each further one doubles them. 0: no host is ever left out.
        highest: The most seconds.
        clock: Tells the time, in seconds.
    """

    def __init__(self, lowest: float = 0.0, highest: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lowest, self._highest, self._clock = lowest, highest, clock
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def blame(self, name: str) -> float:
        """Leave a host out because a job has failed there; returns for how many seconds."""
        self._failures[name] = self._failures.get(name, 0) + 1
        seconds = min(self._lowest * 2 ** (self._failures[name] - 1), self._highest)
        self._until[name] = self._clock() + seconds
        return seconds

    def over(self, hosts: tuple[Host, ...]) -> tuple[Host, ...]:
        """Those of ``hosts`` that aren't left out, or not any more."""
        now = self._clock()
        return tuple(host for host in hosts if self._until.get(host.name, now) <= now)
