"""How a rank waits for others: awake at first, then out of the way of those that compute, and never in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from collective.errors import TransportError
from collective.log import logger
from collective.monitor import activity

# A wait first only asks, then yields the core, for so many seconds: to sleep would cost 50 us of delay.
ASKS = 20
AWAKE = 1e-3
# A core that is yielded to threads that compute comes back milliseconds later. So after a yield that took long the core
# counts as busy, for so many seconds, and messages are waited for in another way.
LONG_YIELD, BUSY = 1e-3, 1.0
# On a busy core a wait keeps asking, for so many seconds. Linux lets who sleeps for a moment have the core back at once
# only if it has used less than its share; else the next tick decides, up to 4 ms later.
AWAKE_ON_BUSY_CORE = 5e-4
# A sleep lasts a part of the time that was waited already, so it delays by so much at most.
SHORTEST_SLEEP, SLEEP_SHARE, LONGEST_SLEEP = 2e-5, 0.05, 2e-3
# How long many bytes take is known from those before: the first sleep lasts so much of that, further ones so much. How
# much the last message counts in what is known.
FIRST_SLEEP, FURTHER_SLEEPS, NEWEST = 0.75, 0.1, 0.2
# What messages call an operation before there was one.
NOTHING_YET = "an operation"


class Patience:
    """Waits until something has come, says so when it takes long, and gives up when it takes too long.

    Args:
        stall_seconds: Seconds after which a wait is reported on the log; 0: never.
        timeout_seconds: Seconds after which a wait is an error; 0: never.
    """

    def __init__(self, stall_seconds: float, timeout_seconds: float = 0) -> None:
        self.stall_seconds, self.timeout_seconds = stall_seconds, timeout_seconds
        self.operation: object = NOTHING_YET  # what messages say; made a text only then
        # What keeps messages moving that this rank has sent. MPI moves them only while it is called: a rank that waits
        # for a flag in shared memory may be waited for by one that still lacks the end of an earlier message.
        self.progress: Callable[[], object] = lambda: None
        self._busy_until = 0.0  # the core, with threads that compute
        self._seconds_a_byte = 0.0  # of messages that were waited for

    def wait(
        self,
        test: Callable[[], bool],
        whom: Callable[[], str] = lambda: "other ranks",
        length: int = 0,
        is_near: bool = False,
    ) -> None:
        """Return once ``test()`` is true.

        Args:
            test: Is asked again and again.
            whom: Says for whom this rank waits.
            length: Of a message so long that it takes a while, in bytes; 0: a word has to come.
            is_near: Whether it waits for a rank of this host, through memory; that rank may need this one's core.

        Raises:
            TransportError: when the time is over.
        """
        for _ in range(1 if length else ASKS):
            if test():
                return
        try:
            self._wait(test, whom, length, is_near)
        finally:
            activity.waits.pop(threading.get_ident(), None)

    def _wait(self, test: Callable[[], bool], whom: Callable[[], str], length: int, is_near: bool) -> None:
        started = time.perf_counter()
        report_at = self.stall_seconds or float("inf")
        told = activity.Wait(self.operation, started, whom)
        is_busy = started < self._busy_until
        expected = self._seconds_a_byte * length
        sleep = FIRST_SLEEP * expected
        while not test():
            told.looked = time.perf_counter()
            waited = told.looked - started
            if waited > AWAKE:
                activity.waits.setdefault(threading.get_ident(), told)
            if not length:  # to ask for a message of many bytes moves messages by itself
                self.progress()
            if waited < AWAKE and not length and (is_near or not is_busy):
                os.sched_yield()
                if time.perf_counter() - told.looked > LONG_YIELD:
                    self._busy_until, is_busy = told.looked + BUSY, True
                continue
            if waited < AWAKE_ON_BUSY_CORE and not length:
                continue
            time.sleep(min(max(sleep, waited * SLEEP_SHARE, SHORTEST_SLEEP), LONGEST_SLEEP))
            sleep = FURTHER_SLEEPS * expected
            if waited > report_at:
                logger.warning(
                    "%s has waited %.0f s for %s: late, stopped, or never calling it.", self.operation, waited, whom()
                )
                report_at *= 2
            if self.timeout_seconds and waited > self.timeout_seconds:
                raise TransportError(
                    f"every rank takes part within {self.timeout_seconds:g} s",
                    received=f"{self.operation} has waited {waited:.0f} s for {whom()}",
                    fix="Look why it is late or has stopped; COLLECTIVE_TIMEOUT_SECONDS allows more time",
                    whom=whom(),
                )
        if length:  # whoever was late says nothing of the wire
            took = min(time.perf_counter() - started, LONGEST_SLEEP) / length
            self._seconds_a_byte += NEWEST * (took - self._seconds_a_byte)
