"""The binomial tree: results flow up to one root and down again, in about log2 N hops each way.

Fewer hops than the ring, more bytes through the root; good for small arrays on many ranks, and the way of a broadcast.
Segments are forwarded as they come, so the hops of a large array overlap.

Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 2005.
"""

from __future__ import annotations

import numpy as np

from collective.algorithms.segments import segments
from collective.reduction import Reduction
from collective.transport.base import Request, Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place: to rank 0, then from rank 0.

    Cost: a leaf has 2S messages and 2 x bytes, the root 2 S log2 N messages and 2 log2 N x bytes, for S segments.
    """
    reduction.prepare(array)
    parent, children = _neighbours(transport.rank, transport.size)
    rising: list[Request] = []
    for segment in segments(array, segment_bytes):
        contributions = [np.empty_like(segment) for _ in children]
        arriving = [transport.receive(*pair) for pair in zip(contributions, children, strict=True)]
        for request, contribution in zip(arriving, contributions, strict=True):
            request.wait()
            reduction.combine(segment, contribution, segment)
        if parent is None:
            reduction.finish(segment)
        else:
            rising.append(transport.send(segment, parent))
    for request in rising:  # the result comes back into the same memory
        request.wait()
    broadcast(transport, array, 0, segment_bytes)


def broadcast(transport: Transport, array: np.ndarray, root: int, segment_bytes: int) -> None:
    """Overwrite a flat contiguous ``array`` with that of rank ``root``.

    Cost: every rank but the root receives S messages and bytes once; the root sends S log2 N messages, log2 N x bytes.
    """
    size = transport.size
    parent, children = _neighbours((transport.rank - root) % size, size)
    parts = segments(array, segment_bytes)
    arriving: list[Request] = []
    if parent is not None:
        arriving = [transport.receive(part, (parent + root) % size) for part in parts]
    leaving: list[Request] = []
    for number, part in enumerate(parts):
        if arriving:
            arriving[number].wait()
        # The largest subtree first: it has the longest way to go.
        leaving.extend(transport.send(part, (child + root) % size) for child in reversed(children))
    for request in leaving:
        request.wait()


def _neighbours(rank: int, size: int) -> tuple[int | None, list[int]]:
    """Parent and children of ``rank`` in the binomial tree with root 0; a child's subtree holds higher ranks only."""
    children: list[int] = []
    distance = 1
    while distance < size:
        if rank & distance:
            return rank - distance, children
        if rank + distance < size:
            children.append(rank + distance)
        distance *= 2
    return None, children
