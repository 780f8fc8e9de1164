"""All-reduce of arrays that live in shared memory already: nothing is copied in or out.

Every rank reduces its own slice of everybody's array, piece by piece, and *pushes* each piece into the arrays of the
others while it is in the cache. So each rank reads 1/N of every array and writes 1/N of every array. Pulling the other
slices after a barrier instead was measured to take twice as long: they have left the cache by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from collective.algorithms.segments import even_bounds
from collective.reduction import Reduction
from collective.transport.shared import CACHE_LINE, SharedMemory

# Small enough for the cache of one core together with the same piece of another array.
PIECE_BYTES = 256 * 1024
# Kind of flag: how many times a rank has met the others.
MET = 0


def all_reduce(
    memory: SharedMemory,
    arrays: Sequence[np.ndarray],
    reduction: Reduction,
    own: Iterable[tuple[slice, np.ndarray]] | None = None,
) -> None:
    """Reduce ``arrays``, flat and one of each rank, in place; all ranks' values are there, as after ``meet``.

    Args:
        memory: The ranks.
        arrays: What they share.
        reduction: How to add.
        own: This rank's values where it reduces itself, each flat array with its place; None: those in its array.

    Cost per rank: no messages; (N-1)/N of the array is read elsewhere and (N-1)/N written elsewhere.
    """
    bounds = even_bounds(arrays[0].size, memory.size)
    step = PIECE_BYTES // reduction.dtype.itemsize
    result = arrays[memory.rank]
    others = [array for rank, array in enumerate(arrays) if rank != memory.rank]
    mine = slice(bounds[memory.rank], bounds[memory.rank + 1])
    for place, values in [(mine, result[mine])] if own is None else own:
        for start in range(place.start, place.stop, step):
            stop = min(start + step, place.stop)
            piece, theirs = result[start:stop], [other[start:stop] for other in others]
            reduction.reduce([values[start - place.start : stop - place.start], *theirs], piece)
            for other in theirs:
                np.copyto(other, piece)
    meet(memory)


def areas(memory: SharedMemory, dtype: np.dtype) -> list[np.ndarray]:
    """The parts of ``memory`` that hold the ranks' arrays."""
    return [area.view(dtype) for area in memory.data.reshape(memory.size, -1)]


def area_bytes(array_bytes: int) -> int:
    """Bytes to reserve for one rank's array: whole cache lines."""
    return -(-max(array_bytes, 1) // CACHE_LINE) * CACHE_LINE


def meet(memory: SharedMemory) -> None:
    """Return once all ranks have come: what they wrote to the memory before is there."""
    number = memory.flag(MET) + 1
    memory.set_flag(MET, number)
    for rank in range(memory.size):
        memory.wait_flag(MET, rank, number)
