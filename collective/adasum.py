"""Adasum: a sum of gradients that doesn't grow with the number of ranks where they point the same way.

Of two gradients a and b it is (1 - a.b / 2|a|^2) a + (1 - a.b / 2|b|^2) b: their sum where they are orthogonal, their
mean where they are parallel. More than two are joined in pairs, pair by pair.

Source: Maleki et al., "Scaling distributed training with adaptive summation", MLSys 2021.
"""

from __future__ import annotations

import numpy as np

from collective import dtypes, halves


def combine(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> None:
    """Join two gradients, flat arrays of floats, into ``out``, which may be either of them.

    The scalar products are those of the whole arrays, in float64.
    """
    first, second = _wide(lower), _wide(higher)
    product, lower_square, higher_square = _dot(first, second), _dot(first, first), _dot(second, second)
    # A gradient of zeros has no direction: the result is the other one.
    lower_factor = 1 - product / (2 * lower_square) if lower_square else 1.0
    higher_factor = 1 - product / (2 * higher_square) if higher_square else 1.0
    joined = first * first.dtype.type(lower_factor)
    joined += second * second.dtype.type(higher_factor)
    if dtypes.is_half(out.dtype):
        halves.cast(joined, out)
    else:
        np.copyto(out, joined)


def _wide(values: np.ndarray) -> np.ndarray:
    if not dtypes.is_half(values.dtype):
        return values
    wide = np.empty(values.size, np.float32)
    halves.cast(values, wide)
    return wide


def _dot(first: np.ndarray, second: np.ndarray) -> float:
    # Not BLAS: both partners compute this, and BLAS may differ from processor to processor.
    return float(np.einsum("i,i->", first, second, dtype=np.float64))
