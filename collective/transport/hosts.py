"""Which ranks share a host, and so memory: found out once, when a job starts."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collective.errors import TransportError
from collective.log import logger
from collective.transport import segment
from collective.transport.base import Request, Transport
from collective.transport.group import Group
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory


class Hierarchy(NamedTuple):
    """The place of a rank among several hosts, of which some have several ranks.

    Attributes:
        local: The ranks of this host; they share memory where they are more than one.
        cross: One rank of each host, in the same order of hosts for every lane; None: this rank carries no lane.
        lanes: How many ranks of each host carry a lane: those with the lowest local ranks.
        host: Number of this host.
        hosts: Number of hosts.
        sends: Messages to other hosts, pushed on while this rank waits for one of its host.
    """

    local: Transport
    cross: Transport | None
    lanes: int
    host: int
    hosts: int
    sends: collections.deque[Request]


class Pushing(Patience):
    """Waits for ranks of the same host while the messages to other hosts move on: MPI moves them only when asked.

    Args:
        patience: Waits.
        sends: The messages; those that are done are removed.
    """

    def __init__(self, patience: Patience, sends: collections.deque[Request]) -> None:
        super().__init__(patience.stall_seconds, patience.timeout_seconds)
        self._patience, self._sends = patience, sends

    def wait(self, test: Callable[[], bool], whom: Callable[[], str] = lambda: "ranks of this host") -> None:
        """See ``Patience``."""
        self._patience.wait(lambda: test() or self._push(), whom)

    def _push(self) -> bool:
        while self._sends and self._sends[0].done():
            self._sends.popleft()
        return False


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
    sends: collections.deque[Request] = collections.deque()
    if len(members) > 1:
        patience = Pushing(patience, sends)
    if len(here) > 1:
        try:
            local.shared = segment.create(local, segment_bytes(len(here)), patience)
        except TransportError as error:
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
    transport.hierarchy = Hierarchy(local, cross, lanes, host, len(members), sends)


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
