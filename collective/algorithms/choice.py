"""Which algorithm for which operation and array."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from collective.algorithms import (
    adaptive,
    direct,
    doubling,
    halving,
    hierarchical,
    native,
    ring,
    shared_memory,
    star,
    tree,
)
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
    "direct": direct.all_reduce,
    "hierarchical": hierarchical.all_reduce,
}


# Chosen by size: MPI's own all-reduce, data along with the agreement (``exchange``), the engine's arena, or what
# carries the most bytes.
NATIVE, EXCHANGE, JOINED, LARGE = "native", "exchange", "joined", "large"


def large(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce an array for which bytes count for more than calls: inside a host, round the ring of hosts, or both."""
    if transport.shared:
        adapts = transport.shared.peers and array.nbytes >= adaptive.SMALLEST
        all_reduce = adaptive.all_reduce if adapts else shared_memory.all_reduce
    else:
        all_reduce = hierarchical.all_reduce if transport.hierarchy else ring.all_reduce
    all_reduce(transport, array, reduction, segment_bytes)


def by_name(name: str, transport: Transport) -> AllReduce:
    """The all-reduce that a setting names, or the ring where that one is not possible."""
    if name == LARGE:
        return large
    possible = {
        "shared_memory": transport.shared,
        "direct": transport.shared and transport.shared.peers,
        "hierarchical": transport.hierarchy,
    }
    return ring.all_reduce if name in possible and not possible[name] else ALL_REDUCE[name]


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
