"""The arithmetic of operations in other dtypes than half precision, which has ``test_halves``."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.reduce_ops import Average, Max, Min, Product, Sum
from collective.reduction import quiet, reduction_for

FLOATS = [np.dtype(np.float32), np.dtype(np.float64)]
UFUNCS = {Average: np.add, Sum: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}


def test_joining_other_dtypes_is_to_combine():
    parts = [np.array([1, -2, 7]), np.array([2, -3, 0]), np.array([4, 0, 1])]
    average = reduction_for(Average, parts[0].dtype, 3)
    out = parts[0].copy()
    average.join([out, *parts[1:]], out)
    assert out.tolist() == [7, -5, 8]
    average.finish(out)
    assert out.tolist() == [2, -1, 2]
    reduction_for(Sum, out.dtype, 1).join([parts[1]], out)
    assert out.tolist() == [2, -3, 0]


@pytest.mark.parametrize(
    ("op", "dtype"),
    [
        *itertools.product(UFUNCS, [*FLOATS, np.dtype(np.int32)]),
        *itertools.product([Average, Sum, Product], [np.dtype(np.complex64)]),  # which have no order
    ],
    ids=str,
)
@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 5), length=st.integers(0, 70), seed=st.integers(0, 99))
def test_all_ranks_values_are_reduced_at_once(op, dtype, size, length, seed):
    parts = list(np.random.default_rng(seed).integers(0, 9, (size, length)).astype(dtype))
    expected = functools.reduce(UFUNCS[op], parts[1:], parts[0].copy())
    if op is Average:
        expected = expected // size if dtype.kind == "i" else expected / size
    out = parts[0]
    reduction_for(op, dtype, size).reduce([out, *parts[1:]], out)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert out.dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@quiet
def test_an_average_of_two_is_the_float_next_to_it_for_all_kinds_of_values(dtype):
    """Of any bits: infinite ones, no numbers, and small ones, of which halving may lose the last bit."""
    whole = np.dtype(f"u{dtype.itemsize}")
    bits = np.random.default_rng(1).integers(0, np.iinfo(whole).max, (2, 100_000), whole, endpoint=True)
    lower, higher = bits.view(dtype)
    higher[::2] = lower[::2] * np.asarray(np.random.default_rng(2).uniform(-2, 2, 50_000), dtype)
    out = np.empty_like(lower)
    reduction_for(Average, dtype, 2).reduce([lower, higher], out)
    expected = (lower.astype(np.longdouble) / 2 + higher.astype(np.longdouble) / 2).astype(dtype)
    assert np.isinf(expected).any()
    assert np.isnan(expected).any()
    np.testing.assert_allclose(out, expected, rtol=0, atol=2 * np.finfo(dtype).smallest_subnormal)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_an_average_of_two_does_not_overflow(dtype):
    largest = np.full(9, np.finfo(dtype).max)
    out = np.empty_like(largest)
    reduction_for(Average, dtype, 2).reduce([largest, largest], out)
    np.testing.assert_array_equal(out, largest)
