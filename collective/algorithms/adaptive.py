"""All-reduce of large arrays inside a host by whichever way has been the faster one lately.

Through shared memory or in each other's arrays: which is faster, by up to four times, differs by machine and
size, and on a virtual machine with time, as its cores are moved. So both are tried at first, and then the one is used
that took less time when it was used last, in the median of a few times: one slow time tells of the machine, and when it
stays slower the other has its turn.

Both compute every element on the same rank and in the same order, so the bits of a result don't depend on the choice.
"""

from __future__ import annotations

import statistics
import time
from collections import deque

import numpy as np

from collective.algorithms import direct, shared_memory, words
from collective.reduction import Reduction
from collective.transport.base import Transport

WAYS = (shared_memory.all_reduce, direct.all_reduce)
# Below, nothing is gained by doing without the copies: a call of the kernel costs as much as copying some pages.
SMALLEST = 4 * 2**20
# How often both are tried, and how many of the last times count.
TRIES, KEPT = 3, 5


class Lately:
    """Seconds that each way has taken lately for arrays of about one size, on the slowest rank."""

    def __init__(self) -> None:
        self._seconds: list[deque[float]] = [deque(maxlen=KEPT) for _ in WAYS]

    def fastest(self) -> int:
        """Which way to use next."""
        tries = [len(seconds) for seconds in self._seconds]
        if min(tries) < TRIES:
            return tries.index(min(tries))
        medians = [statistics.median(seconds) for seconds in self._seconds]
        return medians.index(min(medians))

    def took(self, way: int, seconds: float) -> None:
        """Note how long a way took just now."""
        self._seconds[way].append(seconds)


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: no messages; see ``shared_memory`` and ``direct``.
    """
    memory = transport.shared
    assert memory is not None and memory.peers is not None  # noqa: S101, PT018  # whoever chose this algorithm has looked
    lately = memory.notes.setdefault(array.nbytes.bit_length(), Lately())
    way = lately.fastest()
    started = time.perf_counter()
    WAYS[way](transport, array, reduction, segment_bytes)
    # All ranks note the same, so all choose alike.
    lately.took(way, max(words.all_gather(memory, int((time.perf_counter() - started) * 1e9))) / 1e9)
