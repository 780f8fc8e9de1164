"""The ring: every rank talks to its two neighbours only, and every link carries the least bytes possible.

The array is cut into one chunk a rank. In the first N - 1 steps (reduce-scatter) a rank receives a chunk from its left
neighbour, adds its own values and passes it on; then each rank owns one chunk that is reduced over all. In the last
N - 1 steps (all-gather) the finished chunks travel round the ring once more.

A chunk is cut into segments, and a segment is forwarded at the moment it is added, not at the end of a step: adding
overlaps receiving, and the links idle for one segment a hop instead of one chunk.

Sources: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009;
the forwarding of segments as in pipelined rings (Chan et al., "Collective communication", CCPE 2007).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from collective.algorithms.segments import even_bounds, segment_count
from collective.reduction import Reduction
from collective.transport.base import Request, Transport

# Receives that are posted before their data is needed, so that the left neighbour never waits for us.
AHEAD = 8


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: 2(N-1)S messages of 2(N-1)/N x bytes in all, for S segments a chunk; bandwidth-optimal.
    """
    size = transport.size
    _rotate(transport, array, even_bounds(array.size, size), reduction, range(2 * (size - 1)), segment_bytes)


def reduce_scatter(
    transport: Transport, array: np.ndarray, bounds: Sequence[int], reduction: Reduction, segment_bytes: int
) -> None:
    """Reduce ``array`` so that rank r holds the result between ``bounds[r]`` and ``bounds[r + 1]``.

    The rest of the array is left with partial results. Cost per rank: (N-1)S messages, (N-1)/N x bytes.
    """
    _rotate(transport, array, bounds, reduction, range(transport.size - 1), segment_bytes)


def all_gather(transport: Transport, array: np.ndarray, bounds: Sequence[int], segment_bytes: int) -> None:
    """Fill ``array`` with every rank's part; rank r has its own between ``bounds[r]`` and ``bounds[r + 1]``.

    Cost per rank: (N-1)S messages, (N-1)/N x bytes. The parts may differ in length.
    """
    steps = range(transport.size - 1, 2 * (transport.size - 1))
    _rotate(transport, array, bounds, None, steps, segment_bytes)


def _rotate(
    transport: Transport,
    array: np.ndarray,
    bounds: Sequence[int],
    reduction: Reduction | None,
    steps: range,
    segment_bytes: int,
) -> None:
    """Run ``steps`` of the ring: in step s, chunk rank-1-s leaves to the right and chunk rank-2-s comes from the left.

    What arrives in one step is what leaves in the next. In the steps before N - 1 it is added to our own values on
    the way, afterwards it is final.
    """
    rank, size = transport.rank, transport.size
    left, right = (rank - 1) % size, (rank + 1) % size
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    count = segment_count(longest, array.itemsize, segment_bytes)
    adding_steps = size - 1

    def segment(chunk: int, number: int) -> np.ndarray:
        return _segment(array, bounds, chunk % size, number, count)

    arrivals = [(step, number) for step in steps for number in range(count)]
    ahead = min(AHEAD, adding_steps * count)  # no further than the sends that a receive has to wait for are known
    pool = np.empty((ahead + 1, -(-longest // count)), array.dtype)
    sends: list[Request] = []
    receives: list[tuple[Request, np.ndarray]] = []

    def post_receive(index: int) -> None:
        step, number = arrivals[index]
        target = segment(rank - 2 - step, number)
        if step < adding_steps:
            buffer = pool[index % len(pool)][: target.size]
        else:
            # The final chunk lands where our partial one may still be leaving from: N - 1 steps earlier.
            earlier = index - adding_steps * count
            if earlier >= 0:
                sends[earlier].wait()
            buffer = target
        receives.append((transport.receive(buffer, left), buffer))

    if arrivals:
        sends.extend(transport.send(segment(rank - 1 - steps[0], number), right) for number in range(count))
    for index in range(ahead):
        post_receive(index)
    for index, (step, number) in enumerate(arrivals):
        request, buffer = receives[index]
        request.wait()
        target = segment(rank - 2 - step, number)
        if step < adding_steps and reduction is not None:
            # The partial result came round from other ranks; each element is computed on one rank only.
            reduction.combine(buffer, target, target)
            if step == adding_steps - 1:
                reduction.finish(target)
        if step + 1 < steps.stop:
            sends.append(transport.send(target, right))
        if index + ahead < len(arrivals):
            post_receive(index + ahead)
    for request in sends:
        request.wait()


def _segment(array: np.ndarray, bounds: Sequence[int], chunk: int, number: int, count: int) -> np.ndarray:
    """Part ``number`` of the ``count`` parts of a chunk; a view."""
    start, stop = bounds[chunk], bounds[chunk + 1]
    cuts = even_bounds(stop - start, count)
    return array[start + cuts[number] : start + cuts[number + 1]]
