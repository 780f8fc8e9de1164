"""How two partial results become one: the arithmetic of a reduce operation for one dtype and number of ranks.

A reduction is three functions over flat arrays. ``prepare`` runs once on each rank's own values before anything
travels, ``combine`` joins the partial results of two groups of ranks, ``finish`` runs once on each element that is
reduced over all ranks. Where the own values of several ranks are at hand, ``join`` does the first two at once, and
``reduce`` all three where they are those of all ranks.
Algorithms know nothing else of dtypes and operations.
"""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numkong
import numpy as np

from collective import adasum, dtypes, halves
from collective.errors import ArgumentError
from collective.reduce_ops import Adasum, Average, Max, Min, Product, ReduceOp, Sum

InPlace = Callable[[np.ndarray], object]
Combine = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
Cast = Callable[[np.ndarray, np.ndarray], None]
Join = Callable[[Sequence[np.ndarray], np.ndarray], None]

UFUNCS: dict[ReduceOp, np.ufunc] = {
    Average: np.add,
    Sum: np.add,
    Min: np.minimum,
    Max: np.maximum,
    Product: np.multiply,
}

# NumKong's names of the floats that it averages; half precision has its own module.
_AVERAGED: dict[np.dtype, Literal["float32", "float64"]] = {
    np.dtype(np.float32): "float32",
    np.dtype(np.float64): "float64",
}

# Overflow and NaN are the user's numbers, not a warning of one rank.
quiet = np.errstate(all="ignore")


class _Hush(threading.local):
    """``hush.run(ufunc, ...)`` calls it like ``quiet``, for a tenth of the price; not from within another such call."""

    def __init__(self) -> None:
        with np.errstate(all="ignore"):  # of its own: one can be entered once only, and every thread comes here
            self.run = contextvars.copy_context().run


hush = _Hush()


class _Scratch(threading.local):
    """Memory of one thread for the float32 copies of a block."""

    def __init__(self) -> None:
        self.wide = np.empty((2, halves.BLOCK), np.float32)


_scratch = _Scratch()


@dataclasses.dataclass(frozen=True)
class Wire:
    """How values travel in half precision, while they are added in their own dtype.

    An average is divided before it travels, so that half precision, which float16 leaves at 65,504, holds it.

    Attributes:
        dtype: What travels.
        leave: ``leave(own, out)``: a rank's own values, as the first of a ring sends them.
        join: ``join(arrived, own, out)``: what arrived and a rank's own values, as the next one is sent them; ``out``
            may be ``arrived``.
        read: ``read(arrived, out)``: the result in the dtype of the arrays.
    """

    dtype: np.dtype
    leave: Cast
    join: Combine
    read: Cast


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
        join: ``join(parts, out)``: the partial result of ranks of which ``parts`` are the own values, not prepared;
            ``out`` may be the first of them. In half precision this reads each once and rounds once, where preparing
            and combining them one by one rounds each time.
        reduce: ``reduce(parts, out)``: the result, ``parts`` being the own values of all ranks; ``out`` may be the
            first of them.
        wire: How the values travel between hosts, for the algorithms that can change their dtype on the way; None: as
            they are. It takes the place of ``prepare``, ``combine`` and ``finish``.
    """

    op: ReduceOp
    dtype: np.dtype
    prepare: InPlace
    combine: Combine
    finish: InPlace
    join: Join
    reduce: Join
    wire: Wire | None = None


@functools.lru_cache(maxsize=256)
def reduction_for(op: ReduceOp, dtype: np.dtype, size: int, wire: np.dtype | None = None) -> Reduction:
    """Make the reduction of ``op`` for arrays of ``dtype`` on ``size`` ranks.

    Sums of integers wrap, sums of bools are "or", as NumPy's. The average of integers is the sum divided, without
    its fraction. Averages in half precision are divided before they are rounded, so that they can't overflow.

    Args:
        op: The operation.
        dtype: The dtype of the arrays.
        size: Number of ranks.
        wire: A half precision dtype in which float32 and float64 may travel; other arrays travel as they are.

    Raises:
        ArgumentError: when ``op`` has no meaning for ``dtype``.
    """
    if op is Average and dtype.kind == "b":
        raise ArgumentError("a bool has no average", received="op=Average, dtype=bool", fix="Use Sum (or), or a number")
    if op in (Min, Max) and dtype.kind == "c":
        raise ArgumentError("complex numbers have no order", received=f"op={op!r}, dtype={dtype}", fix="Use Sum")
    if op is Adasum:
        return _adasum(dtype)
    ufunc = UFUNCS[op]
    if dtypes.is_half(dtype):
        divisor = size if op is Average else 1
        join = _half_join(ufunc, divisor)
        return Reduction(op, dtype, _half_division(divisor), _half_combine(ufunc), _nothing, join, join)
    finish: InPlace = _nothing
    if op is Average:
        finish = _division(size, _divide_integer if dtype.kind in "iu" else _divide_float)
    travels = None
    if wire is not None and dtypes.is_half(wire) and dtype in (np.float32, np.float64):
        travels = _wire(ufunc, size if op is Average else 1, dtype, wire)
    join = _plain_join(ufunc)
    reduce = join if finish is _nothing else _finished(join, finish)
    if op is Average and size == 2 and dtype in _AVERAGED:
        reduce = _average_of_two(_AVERAGED[dtype])
    return Reduction(op, dtype, _nothing, _plain_combine(ufunc), finish, join, reduce, travels)


def _adasum(dtype: np.dtype) -> Reduction:
    """Not element by element: for algorithms that combine whole arrays."""
    if dtype.kind != "f" and not dtypes.is_half(dtype):
        raise ArgumentError(
            "Adasum is defined for floating point",
            received=f"op=Adasum, dtype={dtype}",
            fix="Use Sum, or a float dtype",
        )
    combine = adasum.combine
    join = _plain_join(combine)
    return Reduction(Adasum, dtype, _nothing, _plain_combine(combine), _nothing, join, join)


# Leaves values as they are. In C: a call of Python's is felt where arrays are small.
_nothing: InPlace = id


def _plain_combine(add: Callable[..., object]) -> Combine:
    def combine(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> None:
        hush.run(add, lower, higher, out=out)

    return combine


def _plain_join(add: Callable[..., object]) -> Join:
    def join(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        if len(parts) == 1:
            np.copyto(out, parts[0])
        else:
            hush.run(add, parts[0], parts[1], out=out)
        for part in parts[2:]:
            hush.run(add, out, part, out=out)

    return join


def _finished(join: Join, finish: InPlace) -> Join:
    def reduce(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        join(parts, out)
        finish(out)

    return reduce


def _average_of_two(name: Literal["float32", "float64"]) -> Join:
    """In one pass and one call. Halves are exact, but for the last bit of subnormals, and their sum can't overflow."""

    def reduce(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        numkong.blend(parts[0], parts[1], name, alpha=0.5, beta=0.5, out=out)

    return reduce


def _division(size: int, by: Callable[[np.ndarray, int], None]) -> InPlace:
    def divide(values: np.ndarray) -> None:
        by(values, size)

    return divide


def _divide_float(values: np.ndarray, size: int) -> None:
    hush.run(np.divide, values, size, out=values)


def _divide_integer(values: np.ndarray, size: int) -> None:
    if size > np.iinfo(values.dtype).max:  # no value of the dtype reaches the divisor
        values[...] = 0
        return
    remainder = np.remainder(values, values.dtype.type(size))
    np.floor_divide(values, values.dtype.type(size), out=values)
    np.add(values, 1, out=values, where=(values < 0) & (remainder != 0))


def _half_join(ufunc: np.ufunc, divisor: int) -> Join:
    factor = np.float32(1 / divisor)
    is_direct = ufunc is np.add and divisor & (divisor - 1) == 0

    def join(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        if len(parts) == 2 and is_direct:
            halves.add(parts[0], parts[1], float(factor), out)
        else:
            widened(parts, out)

    @quiet
    def widened(parts: Sequence[np.ndarray], out: np.ndarray) -> None:
        for block in _blocks(out):
            sums, others = _scratch.wide[:, : out[block].size]
            for number, part in enumerate(parts):
                wide = others if number else sums
                halves.cast(part[block], wide)
                if divisor != 1:
                    # Before they are added: bfloat16 is as large as float32.
                    np.multiply(wide, factor, out=wide)
                if number:
                    ufunc(sums, others, out=sums)
            halves.cast(sums, out[block])

    return join


def _half_combine(ufunc: np.ufunc) -> Combine:
    join = _half_join(ufunc, 1)

    def combine(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> None:
        join((lower, higher), out)

    return combine


def _half_division(divisor: int) -> InPlace:
    if divisor == 1:
        return _nothing
    average = _half_join(np.add, divisor)

    def divide(values: np.ndarray) -> None:
        average((values,), values)

    return divide


def _wire(ufunc: np.ufunc, divisor: int, dtype: np.dtype, wire: np.dtype) -> Wire:
    def read(arrived: np.ndarray, out: np.ndarray) -> None:
        for block in _blocks(out):
            wide = out[block] if dtype == np.float32 else _scratch.wide[0, : out[block].size]
            halves.cast(arrived[block], wide)
            if wide.dtype != dtype:
                np.copyto(out[block], wide)

    def write(values: np.ndarray, out: np.ndarray) -> None:
        if dtype != np.float32:
            np.copyto(_scratch.wide[0, : out.size], values, casting="same_kind")
            values = _scratch.wide[0, : out.size]
        halves.cast(values, out)

    @quiet
    def leave(own: np.ndarray, out: np.ndarray) -> None:
        for block in _blocks(out):
            values = own[block]
            if divisor != 1:
                values = np.divide(values, dtype.type(divisor), out=_room(dtype, values.size))
            write(values, out[block])

    @quiet
    def join(arrived: np.ndarray, own: np.ndarray, out: np.ndarray) -> None:
        for block in _blocks(out):
            values = own[block]
            sums = _room(dtype, values.size)
            if divisor != 1:
                values = np.divide(values, dtype.type(divisor), out=sums)
            others = _scratch.wide[0, : values.size]
            halves.cast(arrived[block], others)
            write(ufunc(others, values, out=sums), out[block])

    return Wire(wire, leave, join, read)


def _blocks(array: np.ndarray) -> Iterator[slice]:
    for start in range(0, array.size, halves.BLOCK):
        yield slice(start, start + halves.BLOCK)


def _room(dtype: np.dtype, elements: int) -> np.ndarray:
    """Memory for a block of values in their own dtype."""
    return _scratch.wide[1, :elements] if dtype == np.float32 else np.empty(elements, dtype)
