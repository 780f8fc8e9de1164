"""Casts between half precision and float32 that are fast for all values, in steps that NumPy vectorises.

NumPy's own float16 casts go element by element, and lose most of their speed for values below 6e-5 (float16's
subnormals), which gradients are. So a float16 is widened by a look-up among the 65,536 there are, and narrowed by
arithmetic on its bits. bfloat16 is the upper half of a float32; ml_dtypes casts it as fast as can be.

Sums need no look-up. A float16's bits, moved to the place of a float32's, are the value times 2**-112, subnormal or
not: ``widen_scaled``. Such values add up exactly as the values themselves do, and ``narrow`` takes the factor back.
Multiplying by 2**112 instead is no way: Intel's processors take a hundred times longer to multiply subnormals than to
add them.

A framework's own cast is one instruction where NumPy takes ten passes. A front end that has one lends it (``borrow``).
"""

from __future__ import annotations

import threading
from typing import Protocol

import numpy as np

from collective.dtypes import BFLOAT16

# Elements that are cast, and added, at once: the copies of a block in float32 stay in the cache.
BLOCK = 128 * 1024
# What `widen_scaled` multiplies by: 2 to this.
SCALE = -112

# Of a float32: the bits of the exponent, the place of its lowest, and what it says for 2**0.
_EXPONENT, _PLACE, _BIAS = 0x7F800000, 23, 127
# Of a float16: the bits of a mantissa that it lacks, the exponents of its least and its largest normal number, and the
# bits of infinity.
_DROPPED, _LEAST, _LARGEST, _INFINITE = 13, -14, 15, 0x7C00

_WIDENED = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


class _Scratch(threading.local):
    """Memory of one thread for the steps of a cast."""

    def __init__(self) -> None:
        self.places = np.empty(BLOCK, np.intp)
        self.bits, self.ruler, self.least = np.empty((3, BLOCK), np.int32)
        self.signs = np.empty(BLOCK, np.int16)
        self.least[0] = 0


_scratch = _Scratch()


class Arithmetic(Protocol):
    """A framework's own arithmetic on flat arrays of one length, rounding to nearest, ties to even.

    Both functions return whether they could; else nothing is written.
    """

    def cast(self, source: np.ndarray, out: np.ndarray) -> bool:
        """Copy ``source`` to ``out``, one of float32 and one of float16 or bfloat16."""

    def add(self, lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> bool:
        """Add two of float16, or of bfloat16, as in float32, and round once; ``out`` may be one of them."""


_borrowed: Arithmetic | None = None


def borrow(arithmetic: Arithmetic | None) -> None:
    """Leave what it can do to a framework from now on; None: all is done here."""
    global _borrowed
    _borrowed = arithmetic


def is_borrowed() -> bool:
    """Whether a framework casts, so that a short way around its casts is a longer one."""
    return _borrowed is not None


def add(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> bool:
    """Add flat halves at once, rounding once, and return True; or return False, where they have to be widened first."""
    return _borrowed is not None and _borrowed.add(lower, higher, out)


def widen(half: np.ndarray, out: np.ndarray) -> None:
    """Copy flat ``half`` (float16 or bfloat16) to ``out`` (float32, of the same length): exact, for every value."""
    if _borrowed and _borrowed.cast(half, out):
        return
    if half.dtype == BFLOAT16:
        np.copyto(out, half)
        return
    for start in range(0, half.size, BLOCK):
        numbers = half[start : start + BLOCK].view(np.uint16)
        places = _scratch.places[: numbers.size]
        np.copyto(places, numbers)
        # All places are in the table; "wrap" is the quickest of the ways to not raise an error.
        np.take(_WIDENED, places, out=out[start : start + BLOCK], mode="wrap")


def widen_scaled(half: np.ndarray, out: np.ndarray) -> bool:
    """Copy flat ``half`` (float16), times 2**-112, to ``out`` (float32, of the same length): exact.

    Returns:
        Whether all values are finite; else ``out`` is left as it was.
    """
    if half.view(np.int16).max(initial=0) >= _INFINITE or half.view(np.uint16).max(initial=0) >= _INFINITE | 0x8000:
        return False
    bits = out.view(np.int32)
    np.copyto(out, half.view(BFLOAT16))  # the bits, moved up by 16 places
    np.right_shift(bits, 16 - _DROPPED, out=bits)
    np.bitwise_and(bits, -0x70000001, out=bits)  # all copies of the sign but the highest
    return True


def narrow(wide: np.ndarray, out: np.ndarray, exponent: int = 0) -> None:
    """Round flat ``wide`` (float32) times 2**exponent to ``out`` (float16 or bfloat16), to nearest, ties to even.

    The same bits as ``wide.astype(out.dtype)``: too large a value becomes infinite, too small a one zero of its sign.

    Args:
        wide: The values; none is changed.
        out: The result, of the same length.
        exponent: For float16 only.
    """
    if not exponent and _borrowed and _borrowed.cast(wide, out):
        return
    if out.dtype == BFLOAT16:
        np.copyto(out, wide, casting="unsafe")
        return
    for start in range(0, wide.size, BLOCK):
        _narrow_block(wide[start : start + BLOCK], out[start : start + BLOCK], exponent)


def _narrow_block(wide: np.ndarray, out: np.ndarray, exponent: int) -> None:
    """Round by adding a number so large that the last bit of the sum is the last one that float16 has.

    That number is 2**13 times the power of two under the value, or under the least normal number. The processor then
    rounds as IEEE 754 wants it, and the sum's lowest bits are the mantissa, subnormal or not.
    """
    bits, ruler, least = _scratch.bits[: wide.size], _scratch.ruler[: wide.size], _scratch.least[: wide.size]
    signs, result = _scratch.signs[: wide.size], out.view(np.int16)
    numbers = wide.view(np.int32)
    field = _BIAS - exponent  # of 2**0
    np.bitwise_and(numbers, _EXPONENT, out=ruler)
    if ruler.max(initial=0) > (_LARGEST + field) << _PLACE:  # infinite, not a number, or soon infinite: rare
        np.copyto(out, np.ldexp(wide, exponent), casting="unsafe")
        return
    if least[0] != (_LEAST + field) << _PLACE:
        # A full array: NumPy's maximum against a single number is four times slower.
        _scratch.least[:] = (_LEAST + field) << _PLACE
    np.maximum(ruler, least, out=ruler)
    np.add(ruler, _DROPPED << _PLACE, out=ruler)
    np.bitwise_and(numbers, 0x7FFFFFFF, out=bits)
    np.add(bits.view(np.float32), ruler.view(np.float32), out=bits.view(np.float32))
    np.right_shift(bits, _DROPPED, out=ruler)  # the sum's exponent at float16's place
    np.add(bits, ruler, out=bits)
    np.copyto(result, bits, casting="unsafe")
    np.right_shift(numbers, 16, out=bits)
    np.copyto(signs, bits, casting="unsafe")
    np.bitwise_and(signs, -0x8000, out=signs)
    np.bitwise_xor(result, signs, out=result)
    # A subnormal's exponent has to be zero.
    np.subtract(result, np.uint16((_LEAST + field + _DROPPED << _PLACE - _DROPPED) % 2**16).view(np.int16), out=result)
