"""Recursive doubling: in each of log2 N rounds a rank swaps all it has with one partner, twice as far as before.

The fewest rounds there can be, so the least latency; every round carries the whole array.

Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 2005.
"""

from __future__ import annotations

import numpy as np

from collective.algorithms.folding import exchange, fold, unfold
from collective.reduction import Reduction
from collective.transport.base import Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: log2 N messages, log2 N x bytes; two messages more where N is no power of two. ``segment_bytes`` is
    not used: this is for arrays that fit one message.
    """
    reduction.prepare(array)
    folding = fold(transport, array, reduction)
    if folding.rank is not None:
        received = np.empty_like(array)
        distance = 1
        while distance < folding.size:
            partner = folding.rank ^ distance
            exchange(transport, array, received, folding.rank_of(partner, transport.size))
            # Both partners compute the same sum, so both must take its terms in the same order.
            if partner < folding.rank:
                reduction.combine(received, array, array)
            else:
                reduction.combine(array, received, array)
            distance *= 2
        reduction.finish(array)
    unfold(transport, array, folding)
