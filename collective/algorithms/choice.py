"""Which all-reduce for which array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from collective.algorithms import doubling, halving, native, ring, star, tree
from collective.reduction import Reduction
from collective.transport.base import Transport

AllReduce = Callable[[Transport, np.ndarray, Reduction, int], None]

ALL_REDUCE: dict[str, AllReduce] = {
    "ring": ring.all_reduce,
    "tree": tree.all_reduce,
    "star": star.all_reduce,
    "doubling": doubling.all_reduce,
    "halving": halving.all_reduce,
    "native": native.all_reduce,
}

# Up to here the C code of the MPI library beats messages sent one by one from Python (measured at 2 to 4 ranks on one
# host and on four hosts at 1 Gbit/s; docs/architecture.md). Beyond, the ring's bytes count for more than its messages.
SMALL_BYTES = 64 * 1024


def by_name(name: str) -> AllReduce:
    """The all-reduce that a setting names; empty: the choice by size."""
    return ALL_REDUCE[name] if name else by_size


def by_size(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` in place by the algorithm that suits its size."""
    algorithm = native if array.nbytes <= SMALL_BYTES else ring
    algorithm.all_reduce(transport, array, reduction, segment_bytes)
