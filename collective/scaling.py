"""Multiply arrays by a factor, in their own dtype."""

from __future__ import annotations

import numpy as np

from collective.dtypes import is_half


@np.errstate(all="ignore")
def scale(values: np.ndarray, factor: float) -> None:
    """Multiply in place. Integers are multiplied as float64, and lose their fraction."""
    if factor == 1.0:
        return
    if values.dtype.kind in "fc":
        np.multiply(values, values.real.dtype.type(factor), out=values)
    else:
        wide = np.float32 if is_half(values.dtype) else np.float64
        np.copyto(values, values.astype(wide) * wide(factor), casting="unsafe")


def factors_note(before: float, after: float) -> str:
    """What ranks compare of their factors; nothing where there are none."""
    return "" if before == 1.0 == after else f"times {before:.17g} before and {after:.17g} after"
