"""All-reduce of arrays that live in shared memory already: nothing is copied in or out.

Every rank reduces its own slice of everybody's array, piece by piece, and *pushes* each piece into the arrays of the
others while it is in the cache. So each rank reads 1/N of every array and writes 1/N of every array. Pulling the other
slices after a barrier instead was measured to take twice as long: they have left the cache by then.
"""

from __future__ import annotations

import numpy as np

from collective.algorithms.segments import even_bounds
from collective.reduction import Reduction
from collective.transport.shared import CACHE_LINE, SharedMemory

# Small enough for the cache of one core together with the same piece of another array.
PIECE_BYTES = 128 * 1024
# Kinds of flags: the number of all-reduces in this memory that a rank was ready for, and that it has done.
READY, DONE = 0, 1


def all_reduce(memory: SharedMemory, elements: int, reduction: Reduction) -> None:
    """Reduce the first ``elements`` elements of the ranks' areas of ``memory``, in place.

    Cost per rank: no messages; (N-1)/N of the array is read elsewhere and (N-1)/N written elsewhere.
    """
    arrays = [area(memory, rank, reduction.dtype)[:elements] for rank in range(memory.size)]
    reduction.prepare(arrays[memory.rank])
    _meet(memory, READY)
    bounds = even_bounds(elements, memory.size)
    step = PIECE_BYTES // reduction.dtype.itemsize
    others = [rank for rank in range(memory.size) if rank != memory.rank]
    for start in range(bounds[memory.rank], bounds[memory.rank + 1], step):
        piece = slice(start, min(start + step, bounds[memory.rank + 1]))
        mine = arrays[memory.rank][piece]
        for rank in others:
            reduction.combine(mine, arrays[rank][piece], mine)
        reduction.finish(mine)
        for rank in others:
            np.copyto(arrays[rank][piece], mine)
    _meet(memory, DONE)


def area(memory: SharedMemory, rank: int, dtype: np.dtype) -> np.ndarray:
    """The part of ``memory`` that holds the array of ``rank``."""
    return memory.data.reshape(memory.size, -1)[rank].view(dtype)


def area_bytes(array_bytes: int) -> int:
    """Bytes to reserve for one rank's array: whole cache lines."""
    return -(-max(array_bytes, 1) // CACHE_LINE) * CACHE_LINE


def _meet(memory: SharedMemory, kind: int) -> None:
    number = memory.flag(kind) + 1
    memory.set_flag(kind, number)
    for rank in range(memory.size):
        memory.wait_flag(kind, rank, number)
