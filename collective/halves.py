"""Half precision: casts and sums by NumKong, which has the processor's instructions for them; NumPy goes one by one.

Values are exact in float32, are added there, and rounded once, to nearest, ties to even. That holds for subnormals,
too, which gradients are, at the same speed as for all others. Arrays are flat, contiguous, aligned and of one length;
not all of that is checked.
"""

from __future__ import annotations

from typing import Literal

import numkong
import numpy as np

from collective.dtypes import BFLOAT16, FLOAT16

# Elements for which whoever takes several steps asks at once, so that copies in float32 stay in the cache.
BLOCK = 64 * 1024

# Not ``dtype.name``: NumPy makes it up anew each time, which takes as long as to cast a thousand elements.
_NAMES: dict[np.dtype, Literal["float32", "float16", "bfloat16"]] = {
    np.dtype(np.float32): "float32",
    FLOAT16: "float16",
    BFLOAT16: "bfloat16",
}


def cast(source: np.ndarray, out: np.ndarray) -> None:
    """Copy ``source`` to ``out``; one is float32, the other float16 or bfloat16.

    Too large a value becomes infinite, too small a one zero of its sign; what is not a number stays so.
    """
    if source.dtype == BFLOAT16:  # only moved up by 16 bits, which NumPy does as fast
        np.copyto(out, source)
    elif out.dtype == BFLOAT16 and np.isnan(source.max(initial=0)):
        # NumKong 7.8.6 rounds the bits of one that is not a number, too: some become infinite, some zero.
        np.copyto(out, source, casting="unsafe")
    else:
        numkong.astype(source, _NAMES[out.dtype], out=out)


def add(lower: np.ndarray, higher: np.ndarray, factor: float, out: np.ndarray) -> None:
    """Write ``factor`` times the sum of two arrays of float16, or of bfloat16, to ``out``, which may be one of them.

    Both are multiplied before they are added, so that an average doesn't overflow.

    Args:
        lower: The one.
        higher: The other.
        factor: A power of two, so that it makes no difference who multiplies. (With float16 on ARM it does, where a
            subnormal is halved; no algorithm that averages so is used there.)
        out: The result.
    """
    # As integers, whose name is given apart: NumKong needs ten times longer to learn that an array is of bfloat16.
    numkong.blend(
        lower.view(np.uint16),
        higher.view(np.uint16),
        _NAMES[lower.dtype],
        alpha=factor,
        beta=factor,
        out=out.view(np.uint16),
    )
