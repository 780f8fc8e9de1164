"""How two partial results become one: the arithmetic of a reduce operation for one dtype and number of ranks.

A reduction is three functions over flat arrays. ``prepare`` runs once on each rank's own values before anything
travels, ``combine`` joins the partial results of two groups of ranks, ``finish`` runs once on each element that is
reduced over all ranks. Algorithms know nothing else of dtypes and operations.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from collective import dtypes
from collective.errors import ArgumentError
from collective.reduce_ops import Average, Max, Min, Product, ReduceOp, Sum

InPlace = Callable[[np.ndarray], None]
Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], None]

UFUNCS: dict[ReduceOp, np.ufunc] = {
    Average: np.add,
    Sum: np.add,
    Min: np.minimum,
    Max: np.maximum,
    Product: np.multiply,
}

# Overflow and NaN are the user's numbers, not a warning of one rank.
quiet = np.errstate(all="ignore")

# Half precision is widened block by block so that the float32 copies stay in the cache.
BLOCK = 16 * 1024


@dataclasses.dataclass(frozen=True)
class Reduction:
    """The arithmetic of one reduce operation.

    Attributes:
        op: The operation, for transports that can carry it out themselves.
        dtype: The dtype of the arrays the functions take.
        prepare: ``prepare(values)``, in place.
        combine: ``combine(lower, higher, out)``; ``lower`` is the partial result of the lower ranks. Algorithms that
            compute one value on several ranks keep this order, so that all get the same bits (NaN, -0.0).
        finish: ``finish(values)``, in place.
    """

    op: ReduceOp
    dtype: np.dtype
    prepare: InPlace
    combine: Combine
    finish: InPlace


@functools.lru_cache(maxsize=256)
def reduction_for(op: ReduceOp, dtype: np.dtype, size: int) -> Reduction:
    """Make the reduction of ``op`` for arrays of ``dtype`` on ``size`` ranks.

    Sums of integers wrap, sums of bools are "or", as NumPy's. The average of integers is the sum divided, without
    its fraction. Averages in half precision are divided before they are added, so that they can't overflow.

    Raises:
        ArgumentError: when ``op`` has no meaning for ``dtype``.
    """
    if op is Average and dtype.kind == "b":
        raise ArgumentError("a bool has no average", received="op=Average, dtype=bool", fix="Use Sum (or), or a number")
    if op in (Min, Max) and dtype.kind == "c":
        raise ArgumentError("complex numbers have no order", received=f"op={op!r}, dtype={dtype}", fix="Use Sum")
    prepare: InPlace = _nothing
    finish: InPlace = _nothing
    combine = _plain(UFUNCS[op])
    if dtypes.is_half(dtype):
        combine = _widened(UFUNCS[op])
        if op is Average:
            prepare = _divide(size, _divide_half)
    elif op is Average:
        finish = _divide(size, _divide_integer if dtype.kind in "iu" else _divide_float)
    return Reduction(op, dtype, prepare, combine, finish)


def _nothing(values: np.ndarray) -> None:
    pass


def _plain(ufunc: np.ufunc) -> Combine:
    @quiet
    def combine(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> None:
        ufunc(lower, higher, out=out)

    return combine


def _widened(ufunc: np.ufunc) -> Combine:
    @quiet
    def combine(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> None:
        for start in range(0, lower.size, BLOCK):
            block = slice(start, start + BLOCK)
            wide = lower[block].astype(np.float32)
            out[block] = ufunc(wide, higher[block].astype(np.float32), out=wide)

    return combine


def _divide(size: int, by: Callable[[np.ndarray, int], None]) -> InPlace:
    def divide(values: np.ndarray) -> None:
        by(values, size)

    return divide


@quiet
def _divide_float(values: np.ndarray, size: int) -> None:
    np.divide(values, values.dtype.type(size), out=values)


@quiet
def _divide_half(values: np.ndarray, size: int) -> None:
    for start in range(0, values.size, BLOCK):
        block = slice(start, start + BLOCK)
        values[block] = values[block].astype(np.float32) / np.float32(size)


def _divide_integer(values: np.ndarray, size: int) -> None:
    if size > np.iinfo(values.dtype).max:  # no value of the dtype reaches the divisor
        values[...] = 0
        return
    remainder = np.remainder(values, values.dtype.type(size))
    np.floor_divide(values, values.dtype.type(size), out=values)
    np.add(values, 1, out=values, where=(values < 0) & (remainder != 0))
