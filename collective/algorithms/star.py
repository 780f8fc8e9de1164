"""The star: rank 0 receives from all, adds in rank order and sends to all. Two hops, everything through one rank."""

from __future__ import annotations

import numpy as np

from collective.reduction import Reduction
from collective.transport.base import Transport


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost: rank 0 has 2(N-1) messages and 2(N-1) x bytes (and that memory), every other rank 2 messages and 2 x bytes.
    ``segment_bytes`` is not used: an array travels whole. Source: the "parameter server" of one.
    """
    reduction.prepare(array)
    if transport.rank != 0:
        transport.send(array, 0).wait()
        transport.receive(array, 0).wait()
        return
    others = range(1, transport.size)
    contributions = [np.empty_like(array) for _ in others]
    arriving = [transport.receive(*pair) for pair in zip(contributions, others, strict=True)]
    for request, contribution in zip(arriving, contributions, strict=True):
        request.wait()
        reduction.combine(array, contribution, array)
    reduction.finish(array)
    for request in [transport.send(array, other) for other in others]:
        request.wait()
