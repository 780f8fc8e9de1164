"""All-to-all by pairwise exchange: in step k every rank sends to the rank k above it and receives from the k below.

Source: Thakur, Rabenseifner and Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 2005.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collective.transport.base import Transport


def all_to_all(transport: Transport, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
    """Send ``outgoing[r]`` to each rank r and fill ``incoming[r]`` with what rank r sends here; flat buffers.

    Cost per rank: N-1 messages, (N-1)/N x bytes.
    """
    rank, size = transport.rank, transport.size
    incoming[rank][:] = outgoing[rank]
    for step in range(1, size):
        arriving = transport.receive(incoming[(rank - step) % size], (rank - step) % size)
        leaving = transport.send(outgoing[(rank + step) % size], (rank + step) % size)
        arriving.wait()
        leaving.wait()
