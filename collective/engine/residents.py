"""Arrays that a user asked for in memory shared by all ranks of a host (``collective.empty``)."""

from __future__ import annotations

import weakref

import numpy as np

from collective.algorithms import resident, words
from collective.errors import SharedMemoryError
from collective.log import logger
from collective.transport import segment
from collective.transport.base import Transport
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory


class Residents:
    """The resident arrays of one engine. Every method is called by all ranks alike.

    Args:
        transport: All ranks; they share memory, or nothing is resident.
        patience: How to wait for each other.
    """

    def __init__(self, transport: Transport, patience: Patience) -> None:
        self._transport, self._patience = transport, patience
        self._made = 0
        self._known: dict[int, tuple[weakref.ref[np.ndarray], int, SharedMemory]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array of undefined values, resident if the ranks can share so much memory."""
        nothing = np.empty(shape, dtype)
        memory = self.make(resident.area_bytes(nothing.nbytes) * self._transport.size)
        if memory is None:
            return nothing
        array = resident.areas(memory, dtype)[memory.rank][: nothing.size].reshape(shape)
        self._made += 1
        key = id(array)
        self._known[key] = (weakref.ref(array, lambda _: self._known.pop(key, None)), self._made, memory)
        return array

    def make(self, total_bytes: int) -> SharedMemory | None:
        """New memory that the ranks share; None, and a warning, if there isn't so much."""
        if self._transport.shared is None:
            return None
        try:
            return segment.create(self._transport, total_bytes, self._patience)
        except SharedMemoryError as error:
            if self._transport.rank == 0:
                logger.warning("%s Data is copied instead: slower, and right.", error)
            return None

    def memory_of(self, array: np.ndarray) -> SharedMemory | None:
        """The memory that ``array`` lives in, if every rank's array of this operation lives in the same.

        A rank may well pass a copy, or a view, where another passes the resident array: then it is none.
        """
        if not self._made or self._transport.shared is None:
            return None
        _, number, memory = self._known.get(id(array), (None, 0, None))
        mine = number if self.has(array) else 0
        everyone = words.all_gather(self._transport.shared, mine)
        return memory if mine and set(everyone) == {mine} else None

    def has(self, array: np.ndarray) -> bool:
        """Whether this rank's array is a resident one."""
        known = self._known.get(id(array))
        return known is not None and known[0]() is array
