"""Memory that all ranks of one host map, with flags to tell each other how far they are."""

from __future__ import annotations

import mmap
import os

import numpy as np

from collective.transport.patience import Patience

CACHE_LINE = 64
# Flags that each rank has; who uses which is the algorithms' affair.
FLAG_KINDS = 5
# A flag is read in 50 ns. While a core is free for every rank, spinning is the fastest way to wait for one.
SPINS = 2000


def flag_bytes(size: int) -> int:
    """Bytes of the flags of ``size`` ranks, at the beginning of a segment."""
    return FLAG_KINDS * size * CACHE_LINE


class SharedMemory:
    """A segment and flags that ``size`` ranks of one host share.

    Attributes:
        rank: Number of this rank among those that share.
        size: Their number.
        data: uint8 array, the same memory on all ranks; zeros at first.
    """

    def __init__(self, rank: int, size: int, memory: mmap.mmap | bytearray, patience: Patience) -> None:
        self.rank, self.size = rank, size
        flags = flag_bytes(size)
        # One flag a cache line: a rank that writes its own doesn't disturb those that read another's.
        self._flags = memoryview(memory)[:flags].cast("q")
        self._patience = patience
        self._spins = SPINS if size <= len(os.sched_getaffinity(0)) else 20
        self.data = np.frombuffer(memory, np.uint8, offset=flags)

    def set_flag(self, kind: int, value: int) -> None:
        """Tell the others that this rank has come to ``value``; what it wrote to ``data`` before is there for them.

        That order is the processor's: x86 keeps stores in order, and a segment is made on no other (``segment``).
        """
        self._flags[(kind * self.size + self.rank) * CACHE_LINE // 8] = value

    def flag(self, kind: int, rank: int | None = None) -> int:
        """What ``rank`` has come to; None: this rank."""
        return self._flags[(kind * self.size + (self.rank if rank is None else rank)) * CACHE_LINE // 8]

    def wait_flag(self, kind: int, rank: int, value: int) -> None:
        """Return once ``rank`` has come to ``value`` or further: what it wrote to ``data`` before is there."""
        flags, place = self._flags, (kind * self.size + rank) * CACHE_LINE // 8
        for _ in range(self._spins):
            if flags[place] >= value:
                return
        self._patience.wait(lambda: flags[place] >= value)
