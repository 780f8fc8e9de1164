"""Memory of the ranks of a host in which arrays are joined, reduced where they lie, and handed back without a copy.

Each rank has a row of its own, and an operation takes the same place in every row. Results are views of the row: a
place is taken again when nobody holds a view of it any more, on no rank. A user may keep a gradient for as long as he
likes; who holds one is known by a weak reference to the array that all views of a place have as their base.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import numpy as np

from collective.transport.shared import CACHE_LINE, SharedMemory

# The memory grows while results are held on to, up to so many times the largest request; then they are copied instead.
MOST_REQUESTS = 3


class Arena:
    """The shared memory of one engine for results. Methods that say so are called by all ranks alike.

    Args:
        size: Number of ranks.
        make: Makes so many bytes of memory that all of them share; None: there is no room.
    """

    def __init__(self, size: int, make: Callable[[int], SharedMemory | None]) -> None:
        self._size, self._make = size, make
        self.memory: SharedMemory | None = None
        self.row_bytes = 0
        self._position = 0
        self._largest = 0
        self._full = False
        self._held: list[tuple[int, int, weakref.ref[np.ndarray]]] = []

    def next_place(self, wanted_bytes: int) -> int:
        """Where the next operation, of ``wanted_bytes``, will lie in every rank's row; -1: nowhere yet."""
        start = self._position if self._position + wanted_bytes <= self.row_bytes else 0
        return start if self.memory and wanted_bytes <= self.row_bytes else -1

    def is_free(self, start: int, wanted_bytes: int) -> bool:
        """Tell whether nobody on this rank holds a result that lies there."""
        self._held = [held for held in self._held if held[2]() is not None]
        return all(stop <= start or start + wanted_bytes <= begin for begin, stop, _ in self._held)

    def row(self, start: int, wanted_bytes: int) -> np.ndarray:
        """The place in this rank's row, as uint8."""
        return self._row_of(self._memory().rank, start, wanted_bytes)

    def take(self, start: int, wanted_bytes: int) -> list[np.ndarray]:
        """The place in every rank's row; that of this rank is held until all views are gone. Called by all ranks."""
        memory = self._memory()
        # The next one begins at a cache line again: frameworks and NumKong refuse floats at odd addresses.
        self._position = start + -(-wanted_bytes // CACHE_LINE) * CACHE_LINE
        rows = [self._row_of(rank, start, wanted_bytes) for rank in range(memory.size)]
        rows[memory.rank] = mine = memory.part(memory.rank * self.row_bytes + start, wanted_bytes)
        self._held.append((start, start + wanted_bytes, weakref.ref(mine)))
        return rows

    def grow(self, wanted_bytes: int) -> bool:
        """Make room for one more operation of ``wanted_bytes``; False: there is none to be had. Called by all ranks."""
        self._largest = max(self._largest, wanted_bytes)
        wanted = rounded(wanted_bytes if wanted_bytes > self.row_bytes else self.row_bytes + wanted_bytes)
        if self._full or wanted > MOST_REQUESTS * rounded(self._largest):
            return False
        memory = self._make(wanted * self._size)
        if memory is None:
            self._full = True
            return False
        # What is held of the memory there was keeps that one alive, and is in nobody's way here.
        self.memory, self.row_bytes, self._position, self._held = memory, wanted, 0, []
        return True

    def _row_of(self, rank: int, start: int, wanted_bytes: int) -> np.ndarray:
        start += rank * self.row_bytes
        return self._memory().data[start : start + wanted_bytes]

    def _memory(self) -> SharedMemory:
        assert self.memory is not None  # noqa: S101  # whoever has a place has memory
        return self.memory


def rounded(size: int) -> int:
    """``size`` and up to an eighth more, in whole cache lines, so that a little more next time needs no new memory."""
    step = max(CACHE_LINE, 2 ** max(0, math.floor(math.log2(max(size, 1))) - 3))
    return -(-size // step) * step
