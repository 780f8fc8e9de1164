"""What an algorithm needs of the wire: messages of raw bytes between two ranks, and patience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collective.reduce_ops import ReduceOp
from collective.transport.shared import SharedMemory


class Request(Protocol):
    """A message on its way."""

    def wait(self) -> None:
        """Return once the buffer may be used again: sent, or received in full."""

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""


class Native(Protocol):
    """The collective operations a transport brings along itself."""

    def supports(self, op: ReduceOp, dtype: np.dtype) -> bool:
        """Tell whether its results equal NumPy's for ``op`` on ``dtype``."""

    def all_reduce(self, array: np.ndarray, op: ReduceOp) -> None:
        """Reduce a contiguous array in place, once all ranks have come; an average is left as the sum."""

    def prepared(self, op: ReduceOp, dtype: np.dtype) -> Callable[[np.ndarray, np.ndarray], object]:
        """``all_reduce`` for one operation and dtype, for arrays so small that every call in Python counts.

        Returns:
            A function of an array and of the one that gets the result, which may be the same.
        """

    def all_reduce_patiently(self, array: np.ndarray, op: ReduceOp) -> None:
        """Do the same while a rank may be late: without holding a core until it comes, and not in silence."""


class Hierarchy(NamedTuple):
    """The place of a rank among several hosts, of which some have several ranks.

    Attributes:
        local: The ranks of this host; they share memory where they are more than one.
        cross: One rank of each host, in the same order of hosts for every lane; None: this rank carries no lane.
        lanes: How many ranks of each host carry a lane: those with the lowest local ranks.
        host: Number of this host.
        hosts: Number of hosts.
    """

    local: Transport
    cross: Transport | None
    lanes: int
    host: int
    hosts: int


class Transport(Protocol):
    """Messages between the ranks of one group.

    Messages between two ranks arrive in the order sent, each in a receive of exactly its size. Buffers are flat and
    contiguous, of any dtype; none may be touched between the call and its request's ``wait``.

    Attributes:
        rank: Number of this rank.
        size: Number of ranks.
        members: The number that each of its ranks has in the job.
    """

    rank: int
    size: int
    members: Sequence[int]

    @property
    def native(self) -> Native | None:
        """The transport's own collective operations; None: it has none."""

    @property
    def shared(self) -> SharedMemory | None:
        """Memory that all its ranks map; None: they are on several hosts, or can't."""

    @property
    def hierarchy(self) -> Hierarchy | None:
        """The groups that this rank belongs to; None: every rank has a host of its own, or all have one."""

    def send(self, buffer: np.ndarray, to: int) -> Request:
        """Start to send ``buffer`` to rank ``to``."""

    def receive(self, buffer: np.ndarray, source: int) -> Request:
        """Start to receive from rank ``source`` into ``buffer``."""
