"""Which samples a rank trains on in each step: arithmetic on positions, no messages, no framework.

With n samples, S ranks and batches of B, global step s covers c = min(S B, n - s S B) samples, whatever the order. A
rank averages its loss over B slots and the ranks' gradients are averaged with equal weight, so a sample of weight
S B / c counts 1 / c in the end: what it counts in one process with all c samples. An unfilled slot repeats a sample
with weight 0.
"""

from __future__ import annotations

import dataclasses
import difflib
import operator
from collections.abc import Iterator
from typing import Literal, NamedTuple, TypedDict, get_args

import numpy as np
import numpy.typing as npt

from collective import world
from collective.data.permutation import permutation
from collective.errors import ArgumentError

Order = Literal["strided", "contiguous", "shuffled"]
Uneven = Literal["weight", "mask", "pad", "drop"]


class Batch(NamedTuple):
    """One step of one rank; ``indexes, weights = batch`` works.

    Attributes:
        indexes: int64[batch_size], positions in the data.
        weights: float32[batch_size], what to multiply each sample's loss with before the mean over the batch.
    """

    indexes: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


class Options(TypedDict, total=False):
    """The keyword arguments of `Shard`, for functions that pass them on."""

    order: Order
    uneven: Uneven
    seed: int
    rank: int
    size: int


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of ``length`` samples that is this rank's, cut into the same number of full batches on every rank.

    Example:
        >>> [batch.indexes.tolist() for batch in Shard(length=10, batch_size=2, rank=1, size=2).batches()]
        [[1, 3], [5, 7], [9, 1]]
        >>> [batch.weights.tolist() for batch in Shard(length=10, batch_size=2, rank=1, size=2).batches()]
        [[1.0, 1.0], [1.0, 1.0], [2.0, 0.0]]

    Attributes:
        length: Number of samples of all ranks together. It and all options but ``rank`` are the same on every rank.
        batch_size: Slots in each batch of one rank; a step trains on ``size`` times as many.
        order: ``strided``: rank r takes positions r, r + size, ...: step s of all ranks covers the samples that step s
            of one process with batches of ``size * batch_size`` covers. ``contiguous``: rank r takes one block, for
            files and pages read in a row; the first ``length % size`` ranks have one sample more. ``shuffled``:
            strided over a random order that is the same on all ranks and another in each epoch.
        uneven: What becomes of the last step where samples are too few to fill it. ``weight``: every sample once; an
            unfilled slot repeats a sample with weight 0, the others weigh so much more that the average over ranks is
            that over the samples. ``mask``: the same slots with weights 1 and 0, for sums over an epoch such as
            weighted metrics. ``pad``: the same slots with weights 1: some samples count twice or more often.
            ``drop``: that step is left out; no step at all if ``length < size * batch_size``.
        seed: Of the shuffled order, from 0.
        rank: This process; default: the job's, after ``init()``.
        size: Number of processes; default: the job's, after ``init()``.
    """

    length: int
    batch_size: int
    _: dataclasses.KW_ONLY
    order: Order = "strided"
    uneven: Uneven = "weight"
    seed: int = 0
    rank: int = dataclasses.field(default_factory=lambda: world.topology().rank)
    size: int = dataclasses.field(default_factory=lambda: world.topology().size)

    def __post_init__(self) -> None:
        check_choice("order", self.order, get_args(Order))
        check_choice("uneven", self.uneven, get_args(Uneven))
        check_number("length", self.length, 0, fix="Pass the number of samples of all ranks together")
        check_number("batch_size", self.batch_size, 1, fix="Pass the number of samples that one rank takes in one step")
        check_number("seed", self.seed, 0)
        check_number("size", self.size, 1)
        check_number("rank", self.rank, 0, self.size - 1, fix="Leave rank and size out to take those of the job")

    @property
    def steps(self) -> int:
        """Number of batches in an epoch, the same on every rank."""
        full, rest = divmod(self.length, self.batch_size * self.size)
        return full if self.uneven == "drop" else full + (rest > 0)

    @property
    def samples(self) -> int:
        """Number of distinct samples that this rank contributes to an epoch; may be 0 on the last ranks."""
        own = self.length // self.size + (self.rank < self.length % self.size)
        return min(own, self.steps * self.batch_size)

    def positions(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the places in the epoch's order (int64, shape of ``slots``) of this rank's slots, numbered from 0.

        Slots past the rank's last sample go on in its pattern, from the end of the data to its start.
        """
        if self.order == "contiguous":
            first = self.rank * (self.length // self.size) + min(self.rank, self.length % self.size)
            return (first + slots) % self.length
        return (self.rank + slots * self.size) % self.length

    def weights(self, step: int) -> npt.NDArray[np.float32]:
        """Return the weights float32[batch_size] of ``step``; they depend on neither order nor epoch."""
        if self.uneven in ("pad", "drop"):
            return np.ones(self.batch_size, np.float32)
        slots = self.size * self.batch_size
        filled = max(min(slots, self.length - step * slots), 1)  # an empty epoch's step 0 holds no sample
        real = self._slots(step) < self.samples
        return np.where(real, 1 if self.uneven == "mask" else slots / filled, 0).astype(np.float32)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Return the batches of ``epoch`` from step ``start`` on.

        No messages; need not be called by all ranks. A shuffled epoch takes 16 bytes a sample of all ranks to begin
        with and 8 while it lasts; the other orders take none.

        Args:
            epoch: Number of the epoch, from 0; only the shuffled order depends on it.
            start: Number of the first step wanted, from 0 to ``steps``: an interrupted epoch goes on where it was.
        """
        check_number("epoch", epoch, 0)
        check_number("start", start, 0, self.steps, fix="Pass the number of steps of this epoch already done")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = permutation(self.length, self.seed, epoch) if self.order == "shuffled" else None
        for step in range(start, self.steps):
            indexes = self.positions(self._slots(step))
            yield Batch(indexes if order is None else order[indexes], self.weights(step))

    def _slots(self, step: int) -> npt.NDArray[np.int64]:
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `ArgumentError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        fix = f"Did you mean {near[0]!r}?" if near else f"Pass one of {', '.join(allowed)}"
        raise ArgumentError(f"{name} is one of {', '.join(allowed)}", received=f"{name}={value!r}", fix=fix)


def check_number(name: str, value: int, least: int, most: int | None = None, *, fix: str = "") -> None:
    """Raise `ArgumentError` unless ``value`` is a whole number from ``least`` to ``most``."""
    try:
        good = least <= operator.index(value) and (most is None or value <= most)
    except TypeError:
        good = False
    if not good:
        span = f"from {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(f"{name} is a whole number {span}", received=f"{name}={value!r}", fix=fix)
