"""Cut a flat array into the parts that travel."""

from __future__ import annotations

import itertools

import numpy as np


def even_bounds(length: int, parts: int) -> list[int]:
    """Boundaries of ``parts`` parts of ``length`` elements, the first ``length % parts`` of them one longer.

    ``even_bounds(7, 3) == [0, 3, 5, 7]``.
    """
    quotient, remainder = divmod(length, parts)
    return [part * quotient + min(part, remainder) for part in range(parts + 1)]


def segment_count(elements: int, itemsize: int, segment_bytes: int) -> int:
    """Number of messages of at most ``segment_bytes`` bytes for ``elements`` elements, at least one."""
    return max(1, -(-elements * itemsize // segment_bytes))


def segments(array: np.ndarray, segment_bytes: int) -> list[np.ndarray]:
    """Views of a flat ``array`` in order, each of about ``segment_bytes`` bytes at most; an empty array has one."""
    bounds = even_bounds(array.size, segment_count(array.size, array.itemsize, segment_bytes))
    return [array[start:stop] for start, stop in itertools.pairwise(bounds)]
