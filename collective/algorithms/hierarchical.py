"""All-reduce of several hosts with several ranks each: through shared memory inside a host, round rings between hosts.

Inside a host every rank reduces one slice of the array. Then the ranks with the same number on all hosts form a ring
for their slice, so all ranks of a host share the work on its link, and each byte crosses it as often as in a ring of
hosts, not of ranks. In the end every rank reads the other slices in its host's shared memory.

Source: Jia et al., "Highly scalable deep learning training system with mixed-precision", 2018 (hierarchical
all-reduce); the slices as in Horovod's hierarchical all-reduce.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from collective.algorithms import ring, shared_memory
from collective.algorithms.segments import even_bounds
from collective.reduction import Reduction
from collective.transport.base import Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place; for hosts with the same number of ranks.

    Cost per rank, for H hosts of L ranks: 2(H-1)S messages of 2(H-1)/H x bytes / L in all; a host's link carries
    2(H-1)/H x bytes each way.
    """
    assert transport.hierarchy is not None  # noqa: S101  # whoever chose this algorithm has looked
    local, cross = transport.hierarchy
    bounds = even_bounds(array.size, local.size)
    mine = array[bounds[local.rank] : bounds[local.rank + 1]]
    shared_memory.reduce_scatter(local, array, bounds, dataclasses.replace(reduction, finish=_not_yet), segment_bytes)
    ring.all_reduce(cross, mine, reduction, segment_bytes)
    shared_memory.all_gather(local, array, bounds, segment_bytes)


def _not_yet(values: np.ndarray) -> None:
    """Values that are reduced inside a host only are not finished."""
