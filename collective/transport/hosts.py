"""Which ranks share a host, and so memory: found out once, when a job starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from collective.errors import SharedMemoryError
from collective.log import logger
from collective.transport import segment
from collective.transport.base import Hierarchy, Transport
from collective.transport.group import Group
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory


class Placed(Transport, Protocol):
    """A transport that can be told where its ranks are."""

    shared: SharedMemory | None
    hierarchy: Hierarchy | None


def share_memory(
    transport: Placed, hosts: Sequence[str], segment_bytes: Callable[[int], int], patience: Patience
) -> None:
    """Let the ranks of each host share memory, and tell ``transport``; called by all its ranks.

    Sets ``shared`` where all ranks are on one host, and ``hierarchy`` where there are several hosts and at least one
    has several ranks. Sets none where every rank has a host of its own, and where the ranks of one host can't share
    memory (containers with the same name, a full /dev/shm): a warning says so, and all go by messages.

    Cost: a few messages inside each host, one of a byte from and to rank 0.

    Args:
        transport: The messages between all ranks.
        hosts: The host of every rank.
        segment_bytes: Bytes of shared memory for a number of ranks.
        patience: How to wait for flags.
    """
    members = {host: [rank for rank, other in enumerate(hosts) if other == host] for host in dict.fromkeys(hosts)}
    if len(members) == transport.size:
        return
    here = members[hosts[transport.rank]]
    local = Group(transport, here)
    failed = False
    if len(here) > 1:
        try:
            local.shared = segment.create(local, segment_bytes(len(here)), patience)
        except SharedMemoryError as error:
            failed = True
            if local.rank == 0:
                logger.warning("%s Messages are used instead: slower, and right.", error)
    # One host without shared memory is enough for all to go by messages.
    if _any(transport, failed):
        return
    if len(members) == 1:
        transport.shared = local.shared
        return
    lanes = min(map(len, members.values()))
    cross = Group(transport, [ranks[local.rank] for ranks in members.values()]) if local.rank < lanes else None
    host = list(members).index(hosts[transport.rank])
    transport.hierarchy = Hierarchy(local, cross, lanes, host, len(members))


def _any(transport: Transport, mine: bool) -> bool:
    """Whether ``mine`` holds on any rank; known to all."""
    answers = np.zeros(transport.size, np.uint8)
    if transport.rank == 0:
        answers[0] = mine
        arriving = [transport.receive(answers[rank : rank + 1], rank) for rank in range(1, transport.size)]
        for request in arriving:
            request.wait()
        answers[:] = answers.any()
        leaving = [transport.send(answers[:1], rank) for rank in range(1, transport.size)]
    else:
        answers[0] = mine
        transport.send(answers[:1], 0).wait()
        leaving = [transport.receive(answers[:1], 0)]
    for request in leaving:
        request.wait()
    return bool(answers[0])
