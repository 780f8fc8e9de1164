"""Join arrays of one dtype in one flat array, so that they travel and are reduced together."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence

import numpy as np

# Results begin at cache lines: frameworks take such memory as it is and copy any other.
ALIGNMENT = 64
# Of a bucket that travels while others are computed: small enough that the last one, which nothing hides, is soon
# through; large enough for its price, some 0.1 ms.
OVERLAP_BYTES = 1024 * 1024


class Layout:
    """Where arrays of the given shapes lie in a flat one, one after the other.

    Attributes:
        shapes: The shapes.
        elements: Length of the flat array.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype) -> None:
        line = max(1, ALIGNMENT // dtype.itemsize)
        self.shapes = shapes
        self.elements = 0
        self._slots: list[tuple[slice, tuple[int, ...]]] = []
        for shape in shapes:
            start = -(-self.elements // line) * line
            self.elements = start + math.prod(shape)
            self._slots.append((slice(start, self.elements), shape))
        self._ends = [slot.stop for slot, _ in self._slots]

    def pack(self, arrays: Sequence[np.ndarray], flat: np.ndarray, start: int = 0, stop: int | None = None) -> None:
        """Write the values of all arrays into ``flat``, between two places of it if they are given."""
        for place, values in self.parts(arrays, start, self.elements if stop is None else stop):
            flat[place] = values

    def parts(self, arrays: Sequence[np.ndarray], start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The arrays' values between two places of the flat one, in flat pieces, each with its place there."""
        for place in range(bisect.bisect_right(self._ends, start), len(arrays)):
            slot, _ = self._slots[place]
            if slot.start >= stop:
                break
            first, last = max(slot.start, start), min(slot.stop, stop)
            yield slice(first, last), arrays[place].reshape(-1)[first - slot.start : last - slot.start]

    def unpack(self, flat: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
        """Write the values of ``flat`` into all arrays."""
        for array, (slot, _) in zip(arrays, self._slots, strict=True):
            array.reshape(-1)[:] = flat[slot]

    def deliver(self, flat: np.ndarray, arrays: Sequence[np.ndarray], in_place: bool) -> Sequence[np.ndarray]:
        """The results in ``flat``, where they are wanted: in the arrays they were packed from, or as views of it."""
        if not in_place:
            return self.views(flat)
        self.unpack(flat, arrays)
        return arrays

    def views(self, flat: np.ndarray) -> list[np.ndarray]:
        """The arrays as views of ``flat``."""
        return [flat[slot].reshape(shape) for slot, shape in self._slots]


def buckets(sizes: Sequence[int], bucket_bytes: int) -> Iterator[list[int]]:
    """Group the places of arrays of ``sizes`` bytes, in order; a larger one than ``bucket_bytes`` goes alone."""
    bucket: list[int] = []
    for place, size in enumerate(sizes):
        if bucket and sum(sizes[other] for other in bucket) + size > bucket_bytes:
            yield bucket
            bucket = []
        bucket.append(place)
    if bucket:
        yield bucket


def reversed_buckets(sizes: Sequence[int], bucket_bytes: int = OVERLAP_BYTES) -> list[list[int]]:
    """Places of gradients of ``sizes`` bytes, the last ones first, in groups of ``bucket_bytes`` or more.

    Backpropagation makes the gradients of the last layers first, so the first groups can travel while the others are
    still computed. A small group would only delay the large one after it.
    """
    result: list[list[int]] = []
    room = 0
    for place in reversed(range(len(sizes))):
        if room <= 0:
            result.append([])
            room = bucket_bytes
        result[-1].append(place)
        room -= sizes[place]
    return result
