"""The transport's own all-reduce: what the makers of the MPI library wrote in C. It wins for small arrays."""

from __future__ import annotations

import numpy as np

from collective.algorithms import doubling, ring, shared_memory
from collective.reduction import Reduction
from collective.transport.base import Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost: the library's choice. What it can't reduce as NumPy does (Open MPI's sums of 8 and 16 bit integers saturate,
    its minimum drops NaN, no MPI knows bfloat16) goes through shared memory, by recursive doubling or round the ring.
    """
    if transport.native and transport.native.supports(reduction.op, reduction.dtype):
        transport.native.all_reduce(array, reduction.op)
        reduction.finish(array)
        return
    if transport.shared:
        substitute = shared_memory.all_reduce
    else:
        substitute = ring.all_reduce if array.nbytes > segment_bytes else doubling.all_reduce
    substitute(transport, array, reduction, segment_bytes)
