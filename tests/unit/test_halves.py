"""Half precision: NumKong's casts give the bits of NumPy's and ml_dtypes' own, and reductions round once."""

import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective import halves
from collective.algorithms import ring
from collective.algorithms.segments import even_bounds
from collective.reduce_ops import Average, Max, Min, Product, Sum
from collective.reduction import reduction_for
from collective.transport.memory import run_ranks

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
ALL = np.arange(1 << 16, dtype=np.uint16)
quiet = np.errstate(all="ignore")


def assert_same_bits(actual, expected):
    """Equal bit by bit, but for NaN, which has many."""
    assert actual.dtype == expected.dtype
    unsigned = f"u{actual.itemsize}"
    same = (actual.view(unsigned) == expected.view(unsigned)) | (np.isnan(actual) & np.isnan(expected))
    assert same.all(), (actual[~same][:5], expected[~same][:5])


@quiet
def narrowed(wide, dtype):
    out = np.empty(wide.size, dtype)
    halves.cast(wide, out)
    return out


@quiet
def around_all_halves(dtype):
    """Every half, every tie between two, and the float32 next to each on both sides."""
    ordered = np.sort(ALL.view(dtype).astype(np.float64))
    ordered = ordered[np.isfinite(ordered)]
    exact = np.concatenate([ordered, (ordered[1:] + ordered[:-1]) / 2]).astype(np.float32)
    infinite = np.float32(np.inf)
    return np.concatenate([exact, np.nextafter(exact, infinite), np.nextafter(exact, -infinite)])


@pytest.mark.parametrize("dtype", HALVES)
@quiet
def test_every_half_is_widened_exactly_and_comes_back(dtype):
    half = ALL.view(dtype)
    wide = np.empty(half.size, np.float32)
    halves.cast(half, wide)
    assert_same_bits(wide, half.astype(np.float32))
    assert_same_bits(narrowed(wide, dtype), half)
    halves.cast(half[:0], wide[:0])
    assert narrowed(wide[:0], dtype).size == 0


@pytest.mark.parametrize("dtype", HALVES)
@quiet
def test_rounding_equals_the_cast_next_to_every_half_and_tie(dtype):
    values = around_all_halves(dtype)
    specials = np.array([np.inf, -np.inf, np.nan, -np.nan, 0.0, -0.0, 65519.99, 65520, -65520, 1e38, 1e-45], np.float32)
    specials = np.concatenate([specials, np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)])
    for wide in (values, values[np.abs(values) < 65520], specials):
        assert_same_bits(narrowed(wide, dtype), wide.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@settings(max_examples=300, deadline=None)
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), max_size=50), mask=st.sampled_from([0x7FFFFFFF, 0x477FFFFF, 0x38FFFFFF])
)
@quiet
def test_rounding_equals_the_cast(dtype, bits, mask):
    wide = (np.array(bits, np.uint32) & (mask | 0x80000000)).view(np.float32)
    before = wide.tobytes()
    assert_same_bits(narrowed(wide, dtype), wide.astype(dtype))
    assert wide.tobytes() == before


@pytest.mark.parametrize("dtype", HALVES)
@quiet
def test_long_arrays_with_one_that_is_not_a_number(dtype):
    wide = np.random.default_rng(1).standard_normal(100_001).astype(np.float32)
    wide[70_000] = np.nan
    half = narrowed(wide, dtype)
    assert_same_bits(half, wide.astype(dtype))
    again = np.empty_like(wide)
    halves.cast(half, again)
    assert_same_bits(again, half.astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("op", [Sum, Average, Min, Max, Product])
@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), seed=st.integers(0, 999), spread=st.sampled_from([0.0, 4.0]))
@quiet
def test_what_is_joined_is_rounded_once(dtype, op, size, seed, spread):
    """Of all bit patterns, infinite and not-a-number ones included, and of small numbers."""
    generator = np.random.default_rng(seed)
    if spread:
        scales = 10.0 ** generator.uniform(-spread - 4, spread - 4, (size, 200))
        parts = list((generator.standard_normal((size, 200)) * scales).astype(dtype))
    else:
        parts = list(generator.integers(0, 1 << 16, (size, 200), np.uint16).view(dtype))
    ufunc = {Sum: np.add, Average: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}[op]
    factor = np.float32(1 / size if op is Average else 1)
    expected = parts[0].astype(np.float32) * factor
    for part in parts[1:]:
        expected = ufunc(expected, part.astype(np.float32) * factor)
    out = parts[0].copy()
    reduction_for(op, dtype, size).join([out, *parts[1:]], out)
    assert_same_bits(out, expected.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("op", [Sum, Min, Max, Product])
@quiet
def test_combining_equals_float32_arithmetic_rounded(dtype, op):
    lower, higher = np.random.default_rng(2).permutation(ALL).view(dtype), ALL.view(dtype)
    ufunc = {Sum: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}[op]
    expected = ufunc(lower.astype(np.float32), higher.astype(np.float32)).astype(dtype)
    finite = np.isfinite(lower) & np.isfinite(higher)
    for chosen in (slice(None), finite):
        out = lower[chosen].copy()
        reduction_for(op, dtype, 2).combine(out, higher[chosen], out)
        assert_same_bits(out, expected[chosen])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_an_average_does_not_overflow(dtype, size):
    largest = ml_dtypes.finfo(dtype).max
    parts = [np.full(9, largest, dtype) for _ in range(size)]
    average = reduction_for(Average, dtype, size)
    out = np.empty(9, dtype)
    average.join(parts, out)
    assert (out == largest).all()
    # Rounded in between, the very largest would come out infinite.
    parts = [np.full(9, largest * 0.9, dtype) for _ in range(size)]
    for part in parts:
        average.prepare(part)
    for part in parts[1:]:
        average.combine(parts[0], part, parts[0])
    average.finish(parts[0])
    np.testing.assert_allclose(np.float64(parts[0]), float(largest) * 0.9, rtol=0.02)


@pytest.mark.parametrize("dtype", HALVES)
def test_values_that_must_not_be_written_to(dtype):
    half = np.linspace(-3, 3, 100).astype(dtype)
    wide = half.astype(np.float32)
    half.flags.writeable = wide.flags.writeable = False
    widened, added = np.empty(100, np.float32), np.empty(100, dtype)
    halves.cast(half, widened)
    assert_same_bits(widened, wide)
    assert_same_bits(narrowed(wide, dtype), half)
    reduction_for(Sum, half.dtype, 2).join([half, half], added)
    assert_same_bits(added, (2 * wide).astype(dtype))


def test_threads_do_not_share_their_scratch():
    generator = np.random.default_rng(3)
    inputs = [generator.standard_normal((2, 3 * halves.BLOCK)).astype(np.float16) for _ in range(4)]
    outputs = [np.empty_like(first) for first, _ in inputs]

    def largest(place):
        for _ in range(20):
            reduction_for(Max, outputs[place].dtype, 2).combine(*inputs[place], outputs[place])

    threads = [threading.Thread(target=largest, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for both, out in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(out, both.max(0))


UFUNCS = {Sum: np.add, Average: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}


@pytest.mark.parametrize("wire", HALVES)
@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(1, 9),
    calls=st.lists(
        st.tuples(st.integers(0, 700), st.sampled_from(["f4", "f8"]), st.sampled_from(list(UFUNCS)), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    segment=st.sampled_from([64, 96, 1000, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_the_ring_with_halves_on_the_wire(wire, size, calls, segment, seed):
    """Close to the exact result, the same bits on all ranks, and after one with or without a wire of its own."""

    def values(rank, number):
        length, dtype, *_ = calls[number]
        return np.random.default_rng([seed, number, rank]).standard_normal(length).astype(dtype)

    def one_rank(transport):
        results = []
        for number, (_, dtype, op, compressed) in enumerate(calls):
            array = values(transport.rank, number)
            reduction = reduction_for(op, np.dtype(dtype), size, wire if compressed else None)
            ring.all_reduce(transport, array, reduction, segment)
            results.append(array)
        return results

    results = run_ranks(size, one_rank)
    for number, (_, dtype, op, compressed) in enumerate(calls):
        inputs = [values(rank, number).astype(np.float64) for rank in range(size)]
        expected = UFUNCS[op].reduce(inputs) / (size if op is Average else 1)
        result = results[0][number]
        assert result.dtype == dtype
        assert all(other[number].tobytes() == result.tobytes() for other in results)
        tolerance = 1e-4 if not compressed or size == 1 else size * 2.0 ** (-8 if wire == np.float16 else -6)
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
        if compressed and size > 1:
            np.testing.assert_array_equal(result, result.astype(wire).astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_average_on_a_float16_wire_does_not_overflow(dtype):
    def one_rank(transport):
        array = np.full(10, 65504.0 * (1 - transport.rank / 8), dtype)
        ring.all_reduce(transport, array, reduction_for(Average, array.dtype, 4, np.dtype(np.float16)), 64)
        return array

    for result in run_ranks(4, one_rank):
        np.testing.assert_allclose(result, 65504 * (1 - 1.5 / 8), rtol=2e-3)


def test_only_wide_floats_are_sent_as_halves():
    for dtype in (np.int32, np.float16, ml_dtypes.bfloat16, np.complex64):
        assert reduction_for(Sum, np.dtype(dtype), 2, HALVES[0]).wire is None
    assert reduction_for(Sum, np.dtype(np.float32), 2, np.dtype(np.float32)).wire is None
    assert reduction_for(Sum, np.dtype(np.float32), 2, HALVES[1]).wire.dtype == HALVES[1]


def test_longer_segments_than_a_block_on_the_wire():
    inputs = np.random.default_rng(4).standard_normal((2, 5 * halves.BLOCK + 3))

    def one_rank(transport):
        array = inputs[transport.rank].copy()
        ring.all_reduce(transport, array, reduction_for(Sum, array.dtype, 2, HALVES[1]), 1 << 24)
        return array

    first, second = run_ranks(2, one_rank)
    np.testing.assert_allclose(first, inputs.sum(0), rtol=0.02, atol=0.02)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("op", [Sum, Average])
def test_the_ring_scatters_what_travelled_as_halves(op):
    bounds = even_bounds(100, 3)

    def one_rank(transport):
        array = np.arange(100.0) + transport.rank
        ring.reduce_scatter(transport, array, bounds, reduction_for(op, array.dtype, 3, HALVES[0]), 64)
        return array[bounds[transport.rank] : bounds[transport.rank + 1]]

    expected = (3 * np.arange(100.0) + 3) / (3 if op is Average else 1)
    np.testing.assert_allclose(np.concatenate(run_ranks(3, one_rank)), expected, rtol=2e-3)
