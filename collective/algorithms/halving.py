"""Halving and doubling (Rabenseifner): swap halves, then quarters, ... until each rank owns one part; then back.

As few bytes as the ring in log2 N instead of N - 1 steps; the partners are far apart, so every link is shared.

Source: Rabenseifner, "Optimization of collective reduction operations", ICCS 2004.
"""

from __future__ import annotations

import numpy as np

from collective.algorithms.folding import exchange, fold, unfold
from collective.algorithms.segments import even_bounds
from collective.reduction import Reduction
from collective.transport.base import Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: 2 log2 N messages, 2(N-1)/N x bytes; where N is no power of two, two messages and up to 2 x bytes
    more. ``segment_bytes`` is not used: the parts shrink by themselves.
    """
    reduction.prepare(array)
    folding = fold(transport, array, reduction)
    if folding.rank is not None:
        _reduce_and_gather(
            transport,
            array,
            reduction,
            folding.rank,
            [folding.rank_of(folded, transport.size) for folded in range(folding.size)],
        )
    unfold(transport, array, folding)


def _reduce_and_gather(
    transport: Transport, array: np.ndarray, reduction: Reduction, me: int, ranks: list[int]
) -> None:
    """Reduce over ``ranks`` (a power of two of them), this one being ``ranks[me]``."""
    bounds = even_bounds(array.size, len(ranks))
    received = np.empty(bounds[len(ranks) // 2], array.dtype)  # the first half is the longer one, if any
    first, width = 0, len(ranks)  # this rank is responsible for `width` parts from number `first` on
    while width > 1:
        width //= 2
        keep, give = (first, first + width) if not me & width else (first + width, first)
        kept, given = (array[bounds[part] : bounds[part + width]] for part in (keep, give))
        contribution = received[: kept.size]
        exchange(transport, given, contribution, ranks[me ^ width])
        if me & width:
            reduction.combine(contribution, kept, kept)
        else:
            reduction.combine(kept, contribution, kept)
        first = keep
    reduction.finish(array[bounds[me] : bounds[me + 1]])
    while width < len(ranks):
        other = first ^ width
        mine, others = (array[bounds[part] : bounds[part + width]] for part in (first, other))
        exchange(transport, mine, others, ranks[me ^ width])
        first = min(first, other)
        width *= 2
