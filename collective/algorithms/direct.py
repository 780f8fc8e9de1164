"""All-reduce of large arrays inside a host without any copy in between: every rank reads the others' arrays themselves.

Every rank reads its slice of all arrays, adds it to its own, and in the end reads the slices that the others have
reduced. No byte goes through a segment: on machines where a core is slow to fetch what another core has just written,
that is several times as fast as copying through shared memory, and anywhere it moves fewer bytes.

Source: Jin, Sur, Chai and Panda, "LiMIC: support for high-performance MPI intra-node communication on Linux cluster",
ICPP 2005 (one copy by the kernel); the slices as in reduce-scatter and all-gather.
"""

from __future__ import annotations

import itertools
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
# added.
PIECE_BYTES = 512 * 1024


def connect(memory: SharedMemory) -> Peers | None:
    """Find out whether the ranks that share ``memory`` can read each other's private memory; called by all of them.

    Cost: four words a rank. Nothing but a number made for this is read.
    """
    processes = words.all_gather(memory, os.getpid())
    # In containers the same process number may be another process: only who finds our number there has found us.
    token = np.array([secrets.randbits(62)], np.int64)
    addresses = words.all_gather(memory, address_of(token))
    tokens = words.all_gather(memory, int(token[0]))
    try:
        peers = Peers(processes)
        found = all(_read_number(peers, rank, addresses[rank]) == tokens[rank] for rank in range(memory.size))
    except (OSError, TransportError):
        found = False
    return peers if all(words.all_gather(memory, found)) else None


def _read_number(peers: Peers, rank: int, address: int) -> int:
    number = np.zeros(1, np.int64)
    peers.read(rank, address, number)
    return int(number[0])


def all_reduce(transport: Transport, array: np.ndarray, reduction: Reduction, segment_bytes: int) -> None:  # noqa: ARG001
    """Reduce a flat contiguous ``array`` over all ranks, in place.

    Cost per rank: no messages; 2(N-1)/N of the array is read elsewhere, and 512 KiB a rank of scratch memory.
    """
    memory = transport.shared
    assert memory is not None and memory.peers is not None  # noqa: S101, PT018  # whoever chose this algorithm has looked
    peers, me = memory.peers, memory.rank
    addresses = words.all_gather(memory, address_of(array))
    bounds = even_bounds(array.size, memory.size)
    others = [rank for rank in range(memory.size) if rank != me]
    step = PIECE_BYTES // array.itemsize
    scratch = np.empty((len(others), step), array.dtype)
    for start in range(bounds[me], bounds[me + 1], step):
        mine = array[start : min(start + step, bounds[me + 1])]
        arrived = [values[: mine.size] for values in scratch]
        for rank, values in zip(others, arrived, strict=True):
            peers.read(rank, addresses[rank] + start * array.itemsize, values)
        reduction.join([mine, *arrived], mine)
        reduction.finish(mine)
    words.all_gather(memory, 0)  # all slices are reduced
    parts = list(itertools.pairwise(bounds))
    for rank in others:
        start, stop = parts[rank]
        peers.read(rank, addresses[rank] + start * array.itemsize, array[start:stop])
    words.all_gather(memory, 0)  # everyone has read what it needs of ours
