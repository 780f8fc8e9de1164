"""Which algorithm for which operation and array."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from collective.algorithms import doubling, halving, native, ring, shared_memory, star, tree
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
    "shared_memory": shared_memory.all_reduce,
}

# Up to here the C code of the MPI library beats messages and flags handled one by one in Python (measured at 2 to 4
# ranks on one host and on four hosts at 1 Gbit/s). Beyond, the bytes count for more than the calls.
SMALL_BYTES = 64 * 1024


def by_name(name: str, transport: Transport) -> AllReduce:
    """The all-reduce that a setting names; empty: the choice by size."""
    if name == "shared_memory" and not transport.shared:
        return ring.all_reduce
    return ALL_REDUCE[name] if name else by_size


def by_size(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` in place by the algorithm that suits its size."""
    if array.nbytes <= SMALL_BYTES:
        algorithm = native.all_reduce
    elif transport.shared:
        algorithm = shared_memory.all_reduce
    else:
        algorithm = ring.all_reduce
    algorithm(transport, array, reduction, segment_bytes)


def reduce_scatter(
    transport: Transport, array: np.ndarray, bounds: Sequence[int], reduction: Reduction, segment_bytes: int
) -> None:
    """Reduce ``array`` so that rank r holds the result between ``bounds[r]`` and ``bounds[r + 1]``."""
    algorithm = shared_memory if transport.shared else ring
    algorithm.reduce_scatter(transport, array, bounds, reduction, segment_bytes)


def all_gather(transport: Transport, array: np.ndarray, bounds: Sequence[int], segment_bytes: int) -> None:
    """Fill ``array`` with every rank's part; rank r has its own between ``bounds[r]`` and ``bounds[r + 1]``."""
    algorithm = shared_memory if transport.shared else ring
    algorithm.all_gather(transport, array, bounds, segment_bytes)


def broadcast(transport: Transport, array: np.ndarray, root: int, segment_bytes: int) -> None:
    """Overwrite a flat contiguous ``array`` with that of rank ``root``."""
    algorithm = shared_memory if transport.shared else tree
    algorithm.broadcast(transport, array, root, segment_bytes)
