"""Some ranks of a transport as a transport of their own: those of one host, or one of each host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collective.transport.base import Request, Transport
from collective.transport.shared import SharedMemory


class Group:
    """The ranks ``members`` of ``transport``, numbered anew in that order.

    Messages keep the order of the transport's, whichever group they are sent in, so operations of different groups
    may follow each other as long as all ranks call them in the same order.

    Args:
        transport: The transport of all.
        members: The ranks that belong to the group, this one among them.
    """

    native: None = None
    hierarchy: None = None

    def __init__(self, transport: Transport, members: Sequence[int]) -> None:
        self._transport, self._ranks = transport, members
        self.members: Sequence[int] = [transport.members[rank] for rank in members]
        self.rank, self.size = members.index(transport.rank), len(members)
        self.shared: SharedMemory | None = None

    def send(self, buffer: np.ndarray, to: int) -> Request:
        """Start to send; see ``collective.transport.base``."""
        return self._transport.send(buffer, self._ranks[to])

    def receive(self, buffer: np.ndarray, source: int) -> Request:
        """Start to receive; see ``collective.transport.base``."""
        return self._transport.receive(buffer, self._ranks[source])
