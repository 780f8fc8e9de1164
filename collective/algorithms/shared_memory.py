"""Collective operations through memory that the ranks of one host share: the fewest passes over the array there can be.

The array goes through a small segment, block after block. A block holds a piece of each rank's part of the array.
Every rank *publishes* the others' pieces, *reduces* its own of what they published, and *reads* what they reduced.
The segment has four slots that blocks take in turn, so it stays in the processor's cache, and the memory behind the
array is read once and written once. Publishing block t, reducing t - 1 and reading t - 2 follow each other, so a rank
rarely waits.

Why four slots are enough without further flags: a rank that publishes block t has reduced t - 2, for which all others
had published t - 2, after they reduced t - 4 and read t - 5. So nobody needs the slot of four blocks ago any more.
Blocks are numbered on from one operation to the next, so the same holds between operations of any kind and size.

Source: Graham and Shipman, "MPI support for multi-core architectures", EuroPVM/MPI 2008 (fragments through shared
segments); the reduce-scatter and all-gather of ``ring`` with copies in place of messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collective.algorithms.segments import even_bounds
from collective.reduction import Reduction
from collective.transport.base import Transport
from collective.transport.shared import SharedMemory

SLOTS = 4
# Kinds of flags: the number of blocks that a rank has published, and that it has reduced.
PUBLISHED, REDUCED = 0, 1


def segment_size(size: int) -> int:
    """Bytes of shared memory for ``size`` ranks: 8 MiB, or slots of 16 KiB where that is more."""
    piece = max(16 * 1024, min(256 * 1024, 8 * 2**20 // (SLOTS * size * size) // 64 * 64))
    return SLOTS * size * size * piece


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: no messages. The array is read and written once; (N-1)/N of it passes the segment twice.
    """
    _run(transport, array, even_bounds(array.size, transport.size), reduction, gather=True)


def reduce_scatter(
    transport: Transport,
    array: np.ndarray,
    bounds: Sequence[int],
    reduction: Reduction,
    segment_bytes: int,  # noqa: ARG001
) -> None:
    """Reduce ``array`` so that rank r holds the result between ``bounds[r]`` and ``bounds[r + 1]``.

    Cost per rank: no messages; (N-1)/N of the array passes the segment once.
    """
    _run(transport, array, bounds, reduction, gather=False)


def all_gather(transport: Transport, array: np.ndarray, bounds: Sequence[int], segment_bytes: int) -> None:  # noqa: ARG001
    """Fill ``array`` with every rank's part; rank r has its own between ``bounds[r]`` and ``bounds[r + 1]``.

    Cost per rank: no messages; its part passes the segment once, and it reads the others'.
    """
    _run(transport, array, bounds, None, gather=True)


def broadcast(transport: Transport, array: np.ndarray, root: int, segment_bytes: int) -> None:
    """Overwrite a flat contiguous ``array`` with that of rank ``root``: an all-gather in which the root has all.

    Cost per rank: no messages; the bytes pass the segment once and are read by all.
    """
    everything = [0] * (root + 1) + [array.size] * (transport.size - root)
    all_gather(transport, array, everything, segment_bytes)


def _run(
    transport: Transport, array: np.ndarray, bounds: Sequence[int], reduction: Reduction | None, gather: bool
) -> None:
    memory = transport.shared
    assert memory is not None  # noqa: S101  # whoever chose this algorithm has looked
    size = memory.size
    # slots[s, r, k]: what rank r published of rank k's piece; slots[s, r, r]: rank r's own piece, reduced.
    slots = memory.data.reshape(SLOTS, size, size, -1).view(array.dtype)
    piece = slots.shape[-1]
    longest = max(bounds[rank + 1] - bounds[rank] for rank in range(size))
    turns = -(-longest // piece)
    first = memory.flag(PUBLISHED)  # every operation ends with all its blocks published and reduced

    def pieces(turn: int) -> list[np.ndarray]:
        starts = [min(bounds[rank] + turn * piece, bounds[rank + 1]) for rank in range(size)]
        return [array[start : min(start + piece, bounds[rank + 1])] for rank, start in enumerate(starts)]

    parts: dict[int, list[np.ndarray]] = {}
    for turn in range(turns + 2):
        if turn < turns:
            parts[turn] = pieces(turn)
            _publish(memory, first + turn, parts[turn] if reduction else [], slots)
        if 1 <= turn <= turns:
            _reduce(memory, first + turn - 1, parts[turn - 1][memory.rank], slots, reduction)
        if turn >= 2 and (read := parts.pop(turn - 2)) and gather:
            _read(memory, first + turn - 2, read, slots)


def _publish(memory: SharedMemory, block: int, parts: list[np.ndarray], slots: np.ndarray) -> None:
    published = slots[block % SLOTS, memory.rank]
    for rank, part in enumerate(parts):
        if rank != memory.rank:
            published[rank, : part.size] = part
    memory.set_flag(PUBLISHED, block + 1)


def _reduce(memory: SharedMemory, block: int, mine: np.ndarray, slots: np.ndarray, reduction: Reduction | None) -> None:
    slot, me = slots[block % SLOTS], memory.rank
    result = slot[me, me, : mine.size]
    others = [rank for rank in range(memory.size) if rank != me]
    for rank in others:
        memory.wait_flag(PUBLISHED, rank, block + 1)
    if reduction:
        reduction.reduce([mine, *(slot[rank, me, : mine.size] for rank in others)], result)
        mine[:] = result
    else:
        result[:] = mine
    memory.set_flag(REDUCED, block + 1)


def _read(memory: SharedMemory, block: int, parts: list[np.ndarray], slots: np.ndarray) -> None:
    slot = slots[block % SLOTS]
    for rank, part in enumerate(parts):
        if rank != memory.rank:
            memory.wait_flag(REDUCED, rank, block + 1)
            part[:] = slot[rank, rank, : part.size]
