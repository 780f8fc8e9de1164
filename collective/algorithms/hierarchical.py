"""All-reduce of several hosts with several ranks each: through shared memory inside a host, round rings between hosts.

Each host has as many lanes to the others as the host with the fewest ranks has ranks. The ranks with the same number on
all hosts carry one lane: they form a ring for their share of the array. So a host's ranks share the work on its link,
and each byte crosses it as often as in a ring of hosts, not of ranks. Ranks without a lane work inside their host only.

The array goes in pieces, which hold some segments of every lane. A piece is reduced inside the host just before the
rings want it, and read by the host's other ranks as soon as the rings have brought the result, while the links carry
other pieces. All ranks of a host stand at the same place of their rings, so they come to the pieces in the same order.

Why nobody waits in a circle: a piece waits for the messages and pieces before it in that order only, on all ranks; and
a rank that waits for its host keeps pushing the messages it has sent.

Source: Jia et al., "Highly scalable deep learning training system with mixed-precision", 2018 (hierarchical
all-reduce); the shares as in Horovod's hierarchical all-reduce.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from collective.algorithms import ring, shared_memory
from collective.algorithms.segments import cut, even_bounds, segment_count
from collective.reduction import Reduction
from collective.transport.base import Transport

# Segments of a lane in a piece, at most: ranks of a host that come to a piece wait for each other, the fewer times the
# better; but the first piece is reduced, and the last one read, while the links are idle.
TOGETHER = 4


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank with a lane, for H hosts of K lanes: 2(H-1)S messages of 2(H-1)/H x bytes / K in all, for S segments
    a chunk of a lane; a host's link carries 2(H-1)/H x bytes each way. No messages on other ranks.
    """
    assert transport.hierarchy is not None  # noqa: S101  # whoever chose this algorithm has looked
    here = transport.hierarchy
    local, lanes = here.local, here.lanes
    segments = segment_count(-(-array.size // (here.hosts * lanes)), array.itemsize, segment_bytes)
    together = min(TOGETHER, max(1, segments // 4))
    count = -(-segments // together)
    pieces = [cut(chunk, count) for chunk in cut(array, here.hosts)]
    inside = dataclasses.replace(reduction, reduce=reduction.join)
    across = dataclasses.replace(reduction, prepare=_nothing) if local.shared else reduction

    def shares(piece: np.ndarray) -> list[int]:
        return even_bounds(piece.size, lanes) + [piece.size] * (local.size - lanes)

    def reduce(chunk: int, number: int) -> None:
        if local.shared and number % together == 0:
            piece = pieces[chunk][number // together]
            shared_memory.reduce_scatter(local, piece, shares(piece), inside, segment_bytes)

    def gather(chunk: int, number: int) -> None:
        if local.shared and number % together == together - 1:
            piece = pieces[chunk][number // together]
            shared_memory.all_gather(local, piece, shares(piece), segment_bytes)

    company = ring.Company(reduce, gather)
    if here.cross is None:
        ring.follow(here.host, here.hosts, count * together, company)
    else:
        mine = [[part for piece in chunk for part in cut(cut(piece, lanes)[local.rank], together)] for chunk in pieces]
        ring.rotate(here.cross, mine, across, range(2 * (here.hosts - 1)), company)


def _nothing(values: np.ndarray) -> None:
    """Values that are reduced inside a host are prepared already."""
