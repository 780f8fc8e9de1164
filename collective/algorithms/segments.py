"""Cut a flat array into the parts that travel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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


def cut(array: np.ndarray, parts: int) -> list[np.ndarray]:
    """Views of ``parts`` parts of a flat ``array``, in order."""
    return [array[start:stop] for start, stop in itertools.pairwise(even_bounds(array.size, parts))]


def segments(array: np.ndarray, segment_bytes: int) -> list[np.ndarray]:
    """Views of a flat ``array`` in order, each of about ``segment_bytes`` bytes at most; an empty array has one."""
    return cut(array, segment_count(array.size, array.itemsize, segment_bytes))


def like(parts: Sequence[Sequence[np.ndarray]], dtype: np.dtype) -> list[list[np.ndarray]]:
    """New arrays of ``dtype`` of the lengths of ``parts``, in one piece of memory."""
    memory = np.empty(sum(part.size for chunk in parts for part in chunk), dtype)
    start = 0
    result: list[list[np.ndarray]] = []
    for chunk in parts:
        result.append([])
        for part in chunk:
            result[-1].append(memory[start : start + part.size])
            start += part.size
    return result
