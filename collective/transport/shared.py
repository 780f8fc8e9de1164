"""Memory that all ranks of one host map, with flags to tell each other how far they are."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collective.transport.patience import Patience
from collective.transport.peers import Peers

CACHE_LINE = 64
# Flags that each rank has; who uses which is the algorithms' affair.
FLAG_KINDS = 4
# A flag is read in 50 ns. While a core is free for every rank, spinning is the fastest way to wait for one.
SPINS = 2000
# While ranks are more than cores, the one that is waited for needs this one's core, at once.
YIELDS = 100
# Tells of a flag whether its rank has come.
Come = Callable[[int], bool]
# Is told which ranks have come; returns whether it has seen all.
Watch = Callable[[list[bool]], bool]


def flag_bytes(size: int) -> int:
    """Bytes of the flags of ``size`` ranks, at the beginning of a segment."""
    return FLAG_KINDS * size * CACHE_LINE


class SharedMemory:
    """A segment and flags that ``size`` ranks of one host share.

    A rank that sets its flag tells the others that what it wrote to ``data`` before is there for them. That order is
    the processor's: x86 keeps stores in order, and a segment is made on no other (``segment``).

    Attributes:
        rank: Number of this rank among those that share.
        size: Their number.
        data: uint8 array, the same memory on all ranks; zeros at first.
        flags: All flags, int64; written by their owner only.
        places: ``places[kind][rank]`` is where the flag of a rank lies in ``flags``.
        peers: The private memory of these ranks; None: it can't be reached.
        exposed: This rank's array that others may be writing to.
        members: The number that each of these ranks has in the job.
        told: The number of words that this rank has told; see ``collective.algorithms.words``.
        notes: What algorithms remember from one operation to the next, the same on all ranks.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        memory: mmap.mmap | bytearray,
        patience: Patience,
        members: Sequence[int] | None = None,
    ) -> None:
        self.rank, self.size, self.members = rank, size, members or range(size)
        flags = flag_bytes(size)
        self.flags = memoryview(memory)[:flags].cast("q")
        # One flag a cache line: a rank that writes its own doesn't disturb those that read another's.
        line = CACHE_LINE // 8
        self.places = [[(kind * size + other) * line for other in range(size)] for kind in range(FLAG_KINDS)]
        self._patience = patience
        crowded = size > len(os.sched_getaffinity(0))
        self._spins = 0 if crowded else SPINS
        self.peers: Peers | None = None
        self.exposed: np.ndarray | None = None
        self.told = 0
        self.notes: dict[int, Any] = {}
        self._memory = memory
        self.data = np.frombuffer(memory, np.uint8, offset=flags)

    def part(self, start: int, length: int) -> np.ndarray:
        """Bytes of ``data`` as an array that is the base of all views of it, so that a weak reference tells of them."""
        return np.frombuffer(self._memory, np.uint8, length, flag_bytes(self.size) + start)

    def set_flag(self, kind: int, value: int) -> None:
        """Tell the others that this rank has come to ``value``."""
        self.flags[self.places[kind][self.rank]] = value

    def flag(self, kind: int) -> int:
        """What this rank has come to."""
        return self.flags[self.places[kind][self.rank]]

    def wait_flag(self, kind: int, rank: int, value: int) -> None:
        """Return once ``rank`` has come to ``value`` or further; see ``wait_for``."""
        self.wait_for(kind, rank, lambda flag: flag >= value)

    def wait_for(self, kind: int, rank: int, come: Come) -> None:
        """Return once the flag of ``rank`` says that it has ``come``: what it wrote to ``data`` before is there.

        Raises:
            TransportError: when it doesn't come in time; it names the rank.
        """
        flags, place = self.flags, self.places[kind][rank]
        for _ in range(self._spins):
            if come(flags[place]):
                return
        for _ in range(YIELDS):
            os.sched_yield()
            if come(flags[place]):
                return
        self._patience.wait(lambda: come(flags[place]), lambda: self._late(kind, come), is_near=True)

    def watch_flags(self, kind: int, come: Come, watch: Watch) -> None:
        """Tell ``watch`` again and again which ranks have ``come``, until it says that all have.

        Raises:
            TransportError: when they don't come in time; it names them.
        """
        flags, places = self.flags, self.places[kind]
        self._patience.wait(
            lambda: watch([come(flags[place]) for place in places]), lambda: self._late(kind, come), is_near=True
        )

    def _late(self, kind: int, come: Come) -> str:
        late = [self.members[rank] for rank in range(self.size) if not come(self.flags[self.places[kind][rank]])]
        return f"rank{'s' if len(late) > 1 else ''} {', '.join(map(str, late))} on this host"
