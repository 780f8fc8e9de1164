"""The ways in which arrays of one dtype are reduced together: what is copied where, before and after the algorithm.

A way is made once for arrays of certain shapes and used again in every step. Between ``publish`` and ``run`` it keeps
what it found; an engine carries out one operation at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from collective.algorithms import choice, exchange, resident, words
from collective.algorithms.choice import AllReduce
from collective.algorithms.segments import even_bounds
from collective.engine.arena import Arena
from collective.engine.fusion import Layout
from collective.engine.matching import BUSY, agree
from collective.engine.residents import Residents
from collective.reduction import Reduction
from collective.settings import Settings
from collective.transport.base import Transport
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory

# Where results go: over the arrays, or into new ones.
IN_PLACE, NEW = "in place", "new"


@dataclasses.dataclass(frozen=True)
class Resources:
    """What the operations of one engine use.

    Attributes:
        transport: The ranks.
        settings: Sizes of segments and buckets.
        arena: Shared memory for results.
        residents: The user's arrays in shared memory.
        small: uint8[2, size, exchange.LARGEST] in shared memory, for ``exchange``; None: there is none.
    """

    transport: Transport
    settings: Settings
    arena: Arena
    residents: Residents
    small: np.ndarray | None

    @classmethod
    def for_transport(cls, transport: Transport, settings: Settings, patience: Patience) -> Resources:
        """Make what operations need; called by all ranks."""
        residents = Residents(transport, patience)
        small = residents.make(2 * transport.size * exchange.LARGEST)
        shown = None if small is None else small.data.reshape(2, transport.size, exchange.LARGEST)
        return cls(transport, settings, Arena(transport.size, residents.make), residents, shown)


class Way(Protocol):
    """How some arrays of one dtype are reduced.

    Attributes:
        shows: Whether ``publish`` shows anything, so that the ranks have to meet between it and ``run``.
    """

    shows: bool

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:
        """Show this rank's values; returns whether this rank is busy. See ``Operation.publish``."""

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:
        """Reduce and return the results: the arrays themselves where the way works in place, else new ones."""


class InTurn:
    """Several ways, one after the other, each for the arrays at some places."""

    def __init__(self, transport: Transport, ways: Sequence[tuple[Way, list[int]]]) -> None:
        self._transport, self._ways = transport, ways
        self.shows = any(way.shows for way, _ in ways[:1])

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:
        """See ``Way``; what is reduced later is shown later."""
        way, places = self._ways[0]
        return way.publish([arrays[place] for place in places])

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:
        """See ``Way``."""
        results = list(arrays)
        for number, (way, places) in enumerate(self._ways):
            mine = [arrays[place] for place in places]
            if number and way.shows:
                busy = agree(self._transport, BUSY if way.publish(mine) else 0) > 0
            for place, result in zip(places, way.run(mine, busy), strict=True):
                results[place] = result
        return results


class Exchanged:
    """Small arrays inside a host: shown to all, reduced by all; see ``exchange``."""

    shows = True

    def __init__(self, resources: Resources, layout: Layout, reduction: Reduction, in_place: bool) -> None:
        assert resources.small is not None and resources.transport.shared is not None  # noqa: S101, PT018  # looked before
        self._memory = resources.transport.shared
        self._layout, self._reduction, self._in_place = layout, reduction, in_place
        length = layout.elements * reduction.dtype.itemsize
        # shown[turn][rank]: what a rank shows, as a flat array.
        self._shown = [[row[:length].view(reduction.dtype) for row in region] for region in resources.small]
        self._mine = [rows[self._memory.rank] for rows in self._shown]
        self._turn = 0
        self._is_one = len(layout.shapes) == 1

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:
        """See ``Way``."""
        self._turn = words.turn(self._memory)
        mine = self._mine[self._turn]
        if self._is_one:
            array = arrays[0]
            mine[:] = array if array.ndim == 1 else array.reshape(-1)
        else:
            self._layout.pack(arrays, mine)
        return False

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:  # noqa: ARG002
        """See ``Way``."""
        if not self._is_one:
            result = np.empty(self._layout.elements, self._reduction.dtype)
        else:
            result = arrays[0] if self._in_place else np.empty(arrays[0].shape, self._reduction.dtype)
        flat = result if result.ndim == 1 else result.reshape(-1)
        exchange.reduce(self._shown[self._turn], flat, self._reduction)
        return (result,) if self._is_one else self._layout.deliver(result, arrays, self._in_place)


class Joined:
    """Arrays inside a host that are joined in the arena, reduced there, and handed back as views of it, or copied back.

    A single one that is to be reduced in place, and lives in shared memory already, stays there.
    """

    shows = True

    def __init__(self, resources: Resources, layout: Layout, reduction: Reduction, in_place: bool) -> None:
        self._arena, self._layout, self._in_place = resources.arena, layout, in_place
        self._bytes = layout.elements * reduction.dtype.itemsize
        self._dtype = reduction.dtype
        rank = resources.transport.rank
        self._own = slice(*even_bounds(layout.elements, resources.transport.size)[rank : rank + 2])
        self._reduction = reduction
        self._residents = resources.residents if in_place and len(layout.shapes) == 1 else None
        self._instead = Bucketed(resources, choice.large, layout, reduction, in_place)
        self._start = -1

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:
        """See ``Way``."""
        if self._residents and self._residents.has(arrays[0]):
            return True  # then all ranks look
        self._start = self._arena.next_place(self._bytes)
        if self._start < 0 or not self._arena.is_free(self._start, self._bytes):
            return True
        self._show(arrays)
        return False

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:
        """See ``Way``."""
        if busy:
            if self._residents and (memory := self._residents.memory_of(arrays[0])):
                _reduce_resident(memory, arrays[0].reshape(-1), self._reduction)
                return arrays
            if not self._arena.grow(self._bytes):
                return self._instead.run(arrays, busy)
            self._start = 0
            self._show(arrays)
        memory = self._arena.memory
        assert memory is not None  # noqa: S101  # else the arena didn't grow
        if busy:
            resident.meet(memory)
        rows = [row.view(self._dtype) for row in self._arena.take(self._start, self._bytes)]
        own = self._layout.parts(arrays, self._own.start, self._own.stop)
        resident.all_reduce(memory, rows, self._reduction, own)
        return self._layout.deliver(rows[memory.rank], arrays, self._in_place)

    def _show(self, arrays: Sequence[np.ndarray]) -> None:
        """Pack what other ranks reduce; what this one reduces is read where it lies."""
        mine = self._arena.row(self._start, self._bytes).view(self._dtype)
        self._layout.pack(arrays, mine, stop=self._own.start)
        self._layout.pack(arrays, mine, start=self._own.stop)


class Bucketed:
    """Arrays that are joined in private memory, and go through an algorithm like a single one."""

    shows = False

    def __init__(
        self, resources: Resources, all_reduce: AllReduce, layout: Layout, reduction: Reduction, in_place: bool
    ) -> None:
        self._resources, self._all_reduce = resources, all_reduce
        self._layout, self._reduction, self._in_place = layout, reduction, in_place

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:  # noqa: ARG002
        """See ``Way``."""
        return False

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:  # noqa: ARG002
        """See ``Way``."""
        flat = np.empty(self._layout.elements, self._reduction.dtype)
        self._layout.pack(arrays, flat)
        self._all_reduce(self._resources.transport, flat, self._reduction, self._resources.settings.segment_bytes)
        return self._layout.deliver(flat, arrays, self._in_place)


class Native:
    """One small array, reduced by the MPI library, which knows its dtype."""

    shows = False

    def __init__(self, resources: Resources, reduction: Reduction, in_place: bool) -> None:
        assert resources.transport.native is not None  # noqa: S101  # whoever chose this way has looked
        self._all_reduce = resources.transport.native.prepared(reduction.op, reduction.dtype)
        self._finish, self._in_place = reduction.finish, in_place

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:  # noqa: ARG002
        """See ``Way``."""
        return False

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:  # noqa: ARG002
        """See ``Way``."""
        (array,) = arrays
        result = array if self._in_place else np.empty(array.shape, array.dtype)
        self._all_reduce(array, result)
        self._finish(result)
        return (result,)


class Alone:
    """One array, reduced where it lies."""

    shows = False

    def __init__(self, resources: Resources, all_reduce: AllReduce, reduction: Reduction) -> None:
        self._all_reduce, self._reduction = all_reduce, reduction
        self._transport, self._segment_bytes = resources.transport, resources.settings.segment_bytes
        self._residents = resources.residents

    def publish(self, arrays: Sequence[np.ndarray]) -> bool:  # noqa: ARG002
        """See ``Way``."""
        return False

    def run(self, arrays: Sequence[np.ndarray], busy: bool) -> Sequence[np.ndarray]:  # noqa: ARG002
        """See ``Way``."""
        (array,) = arrays
        flat = array.reshape(-1)
        memory = self._residents.memory_of(array)
        if memory is None:
            self._all_reduce(self._transport, flat, self._reduction, self._segment_bytes)
        else:
            _reduce_resident(memory, flat, self._reduction)
        return arrays


def _reduce_resident(memory: SharedMemory, flat: np.ndarray, reduction: Reduction) -> None:
    areas = [area[: flat.size] for area in resident.areas(memory, flat.dtype)]
    resident.all_reduce(memory, areas, reduction)
