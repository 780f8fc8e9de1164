"""Arrays that live in memory shared by all ranks of a host: those a user asked for, and the engine's own bucket."""

from __future__ import annotations

import weakref

import numpy as np

from collective.algorithms import resident, shared_memory
from collective.errors import TransportError
from collective.log import logger
from collective.transport import segment
from collective.transport.base import Transport
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory


class Residents:
    """The resident arrays of one engine. Every method but ``memory_of`` is called by all ranks alike.

    Args:
        transport: All ranks; they share memory, or nothing is resident.
        patience: How to wait for each other.
    """

    def __init__(self, transport: Transport, patience: Patience) -> None:
        self._transport, self._patience = transport, patience
        self._made = 0
        self._known: dict[int, tuple[weakref.ref[np.ndarray], int, SharedMemory]] = {}
        self._bucket: SharedMemory | None = None
        self._bucket_asked_for = False

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array of undefined values, resident if the ranks can share so much memory."""
        nothing = np.empty(shape, dtype)
        memory = self._make(nothing.nbytes)
        if memory is None:
            return nothing
        array = resident.area(memory, memory.rank, dtype)[: nothing.size].reshape(shape)
        self._made += 1
        key = id(array)
        self._known[key] = (weakref.ref(array, lambda _: self._known.pop(key, None)), self._made, memory)
        return array

    def memory_of(self, array: np.ndarray) -> SharedMemory | None:
        """The memory that ``array`` lives in, if every rank's array of this operation lives in the same.

        A rank may well pass a copy, or a view, where another passes the resident array: then it is none.
        """
        if not self._made or self._transport.shared is None:
            return None
        reference, number, memory = self._known.get(id(array), (lambda: None, 0, None))
        mine = number if reference() is array else 0
        everyone = shared_memory.all_gather_words(self._transport.shared, mine)
        return memory if mine and set(everyone) == {mine} else None

    def bucket(self, bucket_bytes: int) -> SharedMemory | None:
        """The memory in which small arrays are joined; made when it is first asked for."""
        if not self._bucket_asked_for:  # once: where there is no room, one warning is enough
            self._bucket_asked_for = True
            self._bucket = self._make(bucket_bytes)
        return self._bucket

    def _make(self, array_bytes: int) -> SharedMemory | None:
        if self._transport.shared is None:
            return None
        try:
            reserved = resident.area_bytes(array_bytes) * self._transport.size
            return segment.create(self._transport, reserved, self._patience)
        except TransportError as error:
            logger.warning("%s An ordinary array is used instead: slower, and right.", error)
            return None
