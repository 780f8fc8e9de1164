"""How a rank waits for others: awake at first, then out of the way of those that compute, and never in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from collective.errors import TransportError
from collective.log import logger
from collective.monitor import activity

# Sleeping costs some 50 us of delay, too much for a short message. So a wait first only asks, then yields the core, for
# so many seconds; then it sleeps for a part of the time it has waited already, so a sleep delays it by so much at most.
ASKS = 20
AWAKE = 1e-3
SLEEP_SHARE = 0.05
LONGEST_SLEEP = 1e-3
# What takes a wire a millisecond is worth sleeping for at once, and longer: the next messages come in meanwhile.
SHORTEST_SLEEP_FOR_BYTES = 5e-5
SLEEP_SHARE_FOR_BYTES = 0.5
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

    def wait(
        self, test: Callable[[], bool], whom: Callable[[], str] = lambda: "other ranks", for_bytes: bool = False
    ) -> None:
        """Return once ``test()`` is true.

        Args:
            test: Is asked again and again.
            whom: Says for whom this rank waits.
            for_bytes: Whether many bytes have to come, not only a word.

        Raises:
            TransportError: when the time is over.
        """
        for _ in range(1 if for_bytes else ASKS):
            if test():
                return
        try:
            self._wait(test, whom, for_bytes)
        finally:
            activity.waits.pop(threading.get_ident(), None)

    def _wait(self, test: Callable[[], bool], whom: Callable[[], str], for_bytes: bool) -> None:
        started = time.perf_counter()
        report_at = self.stall_seconds or float("inf")
        told = activity.Wait(self.operation, started, whom)
        while not test():
            told.looked = time.perf_counter()
            waited = told.looked - started
            if waited > AWAKE:
                activity.waits.setdefault(threading.get_ident(), told)
            if for_bytes:  # to ask for a message moves messages by itself
                time.sleep(min(max(waited * SLEEP_SHARE_FOR_BYTES, SHORTEST_SLEEP_FOR_BYTES), LONGEST_SLEEP))
            elif waited < AWAKE:
                self.progress()
                os.sched_yield()
                continue
            else:
                self.progress()
                time.sleep(min(waited * SLEEP_SHARE, LONGEST_SLEEP))
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
