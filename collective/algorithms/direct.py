"""All-reduce of large arrays inside a host without any copy in between: in the ranks' own memory.

Every rank reads its slice of all arrays piece by piece, adds it to its own, and *pushes* the result into the others'
arrays while it is in the cache, as ``resident`` does in shared memory. No byte goes through a segment: on machines
where a core is slow to fetch what another core has just written, that is several times as fast as copying through
shared memory, and anywhere it moves fewer bytes.

Source: Jin, Sur, Chai and Panda, "LiMIC: support for high-performance MPI intra-node communication on Linux cluster",
ICPP 2005 (one copy by the kernel); the slices as in reduce-scatter and all-gather.
"""

from __future__ import annotations

import contextlib
import os
import secrets

import numpy as np

from collective.algorithms import words
from collective.algorithms.segments import even_bounds
from collective.errors import TransportError
from collective.reduction import Reduction
from collective.transport.base import Transport
from collective.transport.peers import Peers, address_of
from collective.transport.shared import SharedMemory

# What is read at a time: a call of the kernel has its price, and what it brings should still be in the cache when it is
# added and when the sum is pushed.
PIECE_BYTES = 1024 * 1024


def connect(memory: SharedMemory) -> Peers | None:
    """Find out whether the ranks that share ``memory`` can reach each other's private memory; called by all of them.

    Cost: six words a rank. Nothing but numbers made for this are read and written.
    """
    processes = words.all_gather(memory, os.getpid())
    # In containers the same process number may be another process: only who finds our number there has found us.
    token = secrets.randbits(62)
    numbers = np.array([token, *[0] * memory.size], np.int64)
    addresses = words.all_gather(memory, address_of(numbers))
    tokens = words.all_gather(memory, token)
    try:
        peers = Peers(processes)
        found = all(_number_at(peers, rank, addresses[rank]) == tokens[rank] for rank in range(memory.size))
    except (OSError, TransportError):
        found = False
    if not all(words.all_gather(memory, found)):
        return None
    with contextlib.suppress(TransportError):  # what doesn't arrive is missed there
        for rank in range(memory.size):
            peers.write(rank, addresses[rank] + (1 + memory.rank) * numbers.itemsize, numbers[:1])
    words.all_gather(memory, 0)  # all have written
    return peers if all(words.all_gather(memory, numbers[1:].tolist() == tokens)) else None


def _number_at(peers: Peers, rank: int, address: int) -> int:
    number = np.zeros(1, np.int64)
    peers.read(rank, address, number)
    return int(number[0])


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: no messages; (N-1)/N of the array is read elsewhere and (N-1)/N written elsewhere, and 1 MiB a rank
    of scratch memory.
    """
    memory = transport.shared
    assert memory is not None and memory.peers is not None  # noqa: S101, PT018  # whoever chose this algorithm has looked
    peers, me = memory.peers, memory.rank
    # Were it let go of after a failure, others might still write to what lies there then.
    memory.exposed = array
    addresses = words.all_gather(memory, address_of(array))
    bounds = even_bounds(array.size, memory.size)
    others = [rank for rank in range(memory.size) if rank != me]
    step = PIECE_BYTES // array.itemsize
    scratch = np.empty((len(others), step), array.dtype)
    for start in range(bounds[me], bounds[me + 1], step):
        mine = array[start : min(start + step, bounds[me + 1])]
        arrived = [values[: mine.size] for values in scratch]
        places = [addresses[rank] + start * array.itemsize for rank in others]
        for rank, place, values in zip(others, places, arrived, strict=True):
            peers.read(rank, place, values)
        reduction.reduce([mine, *arrived], mine)
        for rank, place in zip(others, places, strict=True):
            peers.write(rank, place, mine)
    words.all_gather(memory, 0)  # all have pushed what they reduced
    memory.exposed = None
