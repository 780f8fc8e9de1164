"""The ring: every rank talks to its two neighbours only, and every link carries the least bytes possible.

The array is cut into one chunk a rank. In the first N - 1 steps (reduce-scatter) a rank receives a chunk from its left
neighbour, adds its own values and passes it on; then each rank owns one chunk that is reduced over all. In the last
N - 1 steps (all-gather) the finished chunks travel round the ring once more.

A chunk is cut into segments, and a segment is forwarded at the moment it is added, not at the end of a step: adding
overlaps receiving, and the links idle for one segment a hop instead of one chunk. So does the conversion of values that
travel in half precision: a segment is narrowed just before it leaves and widened when it has arrived. All ranks, the
one that added last included, take the result from what travelled, so they have the same bits.

Sources: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 2009;
the forwarding of segments as in pipelined rings (Chan et al., "Collective communication", CCPE 2007).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from collective.algorithms.segments import cut, even_bounds, like, segment_count
from collective.reduction import Reduction
from collective.transport.base import Request, Transport

# Receives that are posted before their data is needed, so that the left neighbour never waits for us.
AHEAD = 8

# Called with the number of a chunk and of a segment of it.
Notice = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Company:
    """Others that a ring goes along with, such as the ranks of the same host.

    Attributes:
        wanted: Called before a segment of our own values is used.
        final: Called when a segment holds the result.
    """

    wanted: Notice
    final: Notice


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: 2(N-1)S messages of 2(N-1)/N x bytes in all, for S segments a chunk; bandwidth-optimal.
    """
    parts = _parts(array, even_bounds(array.size, transport.size), segment_bytes)
    rotate(transport, parts, reduction, range(2 * (transport.size - 1)))


def reduce_scatter(
    transport: Transport, array: np.ndarray, bounds: Sequence[int], reduction: Reduction, segment_bytes: int
) -> None:
    """Reduce ``array`` so that rank r holds the result between ``bounds[r]`` and ``bounds[r + 1]``.

    The rest of the array is left with partial results. Cost per rank: (N-1)S messages, (N-1)/N x bytes.
    """
    rotate(transport, _parts(array, bounds, segment_bytes), reduction, range(transport.size - 1))


def all_gather(transport: Transport, array: np.ndarray, bounds: Sequence[int], segment_bytes: int) -> None:
    """Fill ``array`` with every rank's part; rank r has its own between ``bounds[r]`` and ``bounds[r + 1]``.

    Cost per rank: (N-1)S messages, (N-1)/N x bytes. The parts may differ in length.
    """
    steps = range(transport.size - 1, 2 * (transport.size - 1))
    rotate(transport, _parts(array, bounds, segment_bytes), None, steps)


def rotate(
    transport: Transport,
    parts: Sequence[Sequence[np.ndarray]],
    reduction: Reduction | None,
    steps: range,
    company: Company | None = None,
) -> None:
    """Run ``steps`` of the ring: in step s, chunk rank-1-s leaves to the right and chunk rank-2-s comes from the left.

    What arrives in one step is what leaves in the next. In the steps before N - 1 it is added to our own values on
    the way, afterwards it is final.

    Args:
        transport: The ranks, N of them.
        parts: ``parts[c][n]`` is segment n of chunk c, for N chunks of the same number of segments.
        reduction: How to add; None: there is nothing to add.
        steps: Of 2(N - 1) steps, those to run.
        company: Whom to tell how far this rank is.
    """
    rank, size, count = transport.rank, transport.size, len(parts[0])
    left, right, adding_steps = (rank - 1) % size, (rank + 1) % size, size - 1
    freight = _Freight(parts, reduction, company)
    arrivals = [((rank - 2 - step) % size, number, step) for step in steps for number in range(count)]
    ahead = min(AHEAD, adding_steps * count)  # no further than the sends that a receive has to wait for are known
    longest = max(part.size for chunk in freight.moving for part in chunk)
    pool = np.empty((ahead + 1, longest), freight.moving[0][0].dtype)
    sends: list[Request] = []
    receives: list[tuple[Request, np.ndarray]] = []

    def post_receive(index: int) -> None:
        chunk, number, step = arrivals[index]
        buffer = freight.moving[chunk][number]
        if step < adding_steps:
            buffer = pool[index % len(pool)][: buffer.size]
        elif index >= adding_steps * count:
            # The final chunk lands where our partial one may still be leaving from: N - 1 steps earlier.
            sends[index - adding_steps * count].wait()
        receives.append((transport.receive(buffer, left), buffer))

    for index in range(ahead):
        post_receive(index)
    first = (rank - 1 - steps.start) % size
    for number in range(count if arrivals else 0):
        freight.load(first, number)
        sends.append(transport.send(freight.moving[first][number], right))
    for index, (chunk, number, step) in enumerate(arrivals):
        adds = reduction is not None and step < adding_steps
        if adds:  # while the message is on its way
            freight.want(chunk, number)
        request, buffer = receives[index]
        request.wait()
        if adds:
            freight.add(chunk, number, buffer, last=step == adding_steps - 1)
        if step + 1 < steps.stop:
            sends.append(transport.send(freight.moving[chunk][number], right))
        if index + ahead < len(arrivals):
            post_receive(index + ahead)
        if step >= adding_steps - 1:
            freight.unload(chunk, number)
    for request in sends:
        request.wait()


class _Freight:
    """What a rank puts on the ring and takes off it, segment by segment.

    Attributes:
        moving: The segments as they travel: those of the array, or copies in half precision.
    """

    def __init__(
        self, parts: Sequence[Sequence[np.ndarray]], reduction: Reduction | None, company: Company | None
    ) -> None:
        self._parts, self._reduction, self._company = parts, reduction, company
        self._wire = reduction.wire if reduction else None
        self.moving = like(parts, self._wire.dtype) if self._wire else parts

    def want(self, chunk: int, number: int) -> None:
        """Get our own values ready to be added."""
        if self._company:
            self._company.wanted(chunk, number)
        if self._reduction and not self._wire:
            self._reduction.prepare(self._parts[chunk][number])

    def load(self, chunk: int, number: int) -> None:
        """Get our own values ready to leave, as the first of a ring."""
        self.want(chunk, number)
        if self._wire:
            self._wire.leave(self._parts[chunk][number], self.moving[chunk][number])

    def add(self, chunk: int, number: int, arrived: np.ndarray, last: bool) -> None:
        """Add our own values to what came round from other ranks; each element is computed on one rank only."""
        assert self._reduction is not None  # noqa: S101  # whoever adds knows how
        own = self._parts[chunk][number]
        if self._wire:
            self._wire.join(arrived, own, self.moving[chunk][number])
            return
        self._reduction.combine(arrived, own, own)
        if last:
            self._reduction.finish(own)

    def unload(self, chunk: int, number: int) -> None:
        """Take the result from what travelled."""
        if self._wire:
            self._wire.read(self.moving[chunk][number], self._parts[chunk][number])
        if self._company:
            self._company.final(chunk, number)


def follow(rank: int, size: int, count: int, company: Company) -> None:
    """Tell ``company`` what ``rotate`` tells it on ``rank`` of ``size`` in a whole all-reduce, in the same order.

    For a rank that sends nothing itself but works for one that does; ``count`` is the number of segments a chunk.
    """
    for number in range(count):
        company.wanted((rank - 1) % size, number)
    for step, number in itertools.product(range(2 * (size - 1)), range(count)):
        chunk = (rank - 2 - step) % size
        if step < size - 1:
            company.wanted(chunk, number)
        if step >= size - 2:
            company.final(chunk, number)


def _parts(array: np.ndarray, bounds: Sequence[int], segment_bytes: int) -> list[list[np.ndarray]]:
    """The segments of each chunk; every chunk has as many as the longest one needs."""
    longest = max(stop - start for start, stop in itertools.pairwise(bounds))
    count = segment_count(longest, array.itemsize, segment_bytes)
    return [cut(array[start:stop], count) for start, stop in itertools.pairwise(bounds)]
