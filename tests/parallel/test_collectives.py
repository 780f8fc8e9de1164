"""Every operation, dtype and shape against NumPy."""

import functools
import time
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collective
from collective import Average, Max, Min, Product, Sum
from collective.errors import ArgumentError, MismatchError

INTEGERS = [np.dtype(kind + width) for kind in "iu" for width in "1248"]
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
FLOATS = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.longdouble)]
COMPLEX = [np.dtype(np.complex64), np.dtype(np.complex128), np.dtype(np.clongdouble)]
DTYPES = [np.dtype(bool), *INTEGERS, *HALVES, *FLOATS, *COMPLEX]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (40_001,)]


def values(rank, shape, dtype, seed=0):
    """What ``rank`` contributes: any rank can compute any other's."""
    random = np.random.default_rng([seed, rank])
    if dtype.kind == "b":
        return np.asarray(random.integers(0, 2, shape), dtype)
    if dtype.kind in "iu":
        information = np.iinfo(dtype)
        return np.asarray(random.integers(information.min, information.max, shape, dtype, endpoint=True))
    real = random.normal(0, 3, shape)
    imaginary = 1j * random.normal(0, 3, shape) if dtype.kind == "c" else 0
    return np.asarray(real + imaginary, dtype)


def reference(arrays, op):
    """The reduction by NumPy alone; in float32 for half precision."""
    dtype = arrays[0].dtype
    wide = [array.astype(np.float32) if dtype in HALVES else array for array in arrays]
    ufunc = {Average: np.add, Sum: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}[op]
    with np.errstate(all="ignore"):
        total = functools.reduce(ufunc, wide)
        if op is Average:
            total = _truncated_quotient(total, len(arrays)) if dtype.kind in "iu" else total / len(arrays)
        return np.asarray(total).astype(dtype)


def _truncated_quotient(total, divisor):
    exact = [abs(int(value)) // divisor * (1 if int(value) >= 0 else -1) for value in np.ravel(total)]
    return np.array(exact, object).reshape(np.shape(total))


def assert_close(result, expected, ranks):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(result, expected)
        return
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    precision = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6, "complex64": 1e-6}.get(expected.dtype.name, 1e-12)
    scale = 3.0 * 4 * ranks
    np.testing.assert_allclose(
        result.astype(kind), expected.astype(kind), rtol=precision * ranks, atol=precision * scale
    )


def has_meaning(op, dtype):
    return not (op is Average and dtype.kind == "b") and not (op in (Min, Max) and dtype.kind == "c")


@pytest.mark.parametrize("op", [Average, Sum, Min, Max, Product], ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_allreduce_equals_numpy(op, dtype, rank, size, same_on_all_ranks):
    if not has_meaning(op, dtype):
        with pytest.raises(ArgumentError, match="has no average|have no order"):
            collective.allreduce(np.zeros(3, dtype), op)
        return
    for shape in SHAPES:
        mine = values(rank, shape, dtype)
        result = collective.allreduce(mine, op)
        expected = reference([values(other, shape, dtype) for other in range(size)], op)
        if op is Product and dtype.kind not in "biu":
            finite = np.isfinite(expected)
            np.testing.assert_allclose(
                result[finite].astype(np.complex128), expected[finite].astype(np.complex128), rtol=0.05
            )
        else:
            assert_close(result, expected, size)
        same_on_all_ranks(result)


def test_average_in_half_precision_does_not_overflow(size):
    for dtype, large in zip(HALVES, (60_000, 3e38), strict=True):
        result = collective.allreduce(np.full(1000, large, dtype), Average)
        np.testing.assert_allclose(result.astype(np.float64), np.float64(dtype.type(large)), rtol=1e-2)


def test_average_of_integers_has_no_fraction(rank, size):
    mine = np.array([-7, 7, -1, 1, 0, rank], np.int32)
    expected = [int(total / size) for total in (-7 * size, 7 * size, -size, size, 0, sum(range(size)))]
    np.testing.assert_array_equal(collective.allreduce(mine), expected)
    np.testing.assert_array_equal(collective.allreduce(np.int64([-1 if rank == 0 else 0])), [-1 if size == 1 else 0])


def test_nan_reaches_every_rank(rank, size):
    for op in (Sum, Min, Max, Average):
        mine = np.array([np.nan if rank == size - 1 else 1.0, 1.0], np.float32)
        result = collective.allreduce(mine, op)
        assert np.isnan(result[0])
        assert np.isfinite(result[1])


@given(
    shape=st.lists(st.integers(0, 6), max_size=3).map(tuple),
    dtype=st.sampled_from([np.float32, np.int16, np.float64]),
    layout=st.sampled_from(["C", "F", "strided", "reversed", "read-only", "swapped"]),
    out=st.sampled_from(["none", "new", "in place"]),
    seed=st.integers(0, 2**20),
)
def test_any_layout_gives_the_same(shape, dtype, layout, out, seed):
    rank, size = collective.rank(), collective.size()
    dtype = np.dtype(dtype)
    mine = laid_out(values(rank, shape, dtype, seed), layout)
    expected = reference([values(other, shape, dtype, seed) for other in range(size)], Sum)
    target = None if out == "none" else mine if out == "in place" and mine.flags.writeable else np.empty(shape, dtype)
    before = mine.copy()
    result = collective.allreduce(mine, Sum, out=target)
    assert target is None or result is target
    assert_close(np.asarray(result, dtype), expected, size)
    if target is not mine:
        np.testing.assert_array_equal(mine, before)


def laid_out(array, layout):
    if layout == "F":
        return array.copy(order="F")
    if layout == "strided" and array.ndim:
        wide = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
        wide[::2] = array
        return wide[::2]
    if layout == "reversed" and array.ndim:
        return array[::-1].copy()[::-1]
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    if layout == "read-only":
        array.flags.writeable = False
    return array


@given(sizes=st.lists(st.integers(0, 70_000), max_size=8), seed=st.integers(0, 2**20))
def test_grouped_allreduce_equals_one_by_one(sizes, seed):
    rank = collective.rank()
    dtypes = [DTYPES[(seed + place) % len(DTYPES)] for place in range(len(sizes))]
    arrays = [values(rank, (length,), dtype, seed) for length, dtype in zip(sizes, dtypes, strict=True)]
    together = collective.grouped_allreduce(arrays, Sum)
    for array, result in zip(arrays, together, strict=True):
        assert_close(result, collective.allreduce(array, Sum), collective.size())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_allgather_joins_uneven_rows(dtype, rank, size):
    for row in [(), (3,), (0,), (2, 2)]:
        result = collective.allgather(values(rank, (2 * rank, *row), dtype))
        expected = np.concatenate([values(other, (2 * other, *row), dtype) for other in range(size)])
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_broadcast_from_every_root(dtype, rank, size):
    for root in range(size):
        for shape in SHAPES:
            mine = values(rank, shape, dtype)
            np.testing.assert_array_equal(collective.broadcast(mine, root), values(root, shape, dtype))
            in_place = mine.copy()
            assert collective.broadcast(in_place, root, out=in_place) is in_place
            np.testing.assert_array_equal(in_place, values(root, shape, dtype))


@pytest.mark.parametrize("op", [Average, Sum, Min, Max], ids=repr)
@pytest.mark.parametrize("rows", [0, 1, 5, 8, 1000])
def test_reducescatter_gives_each_rank_its_rows(op, rows, rank, size):
    dtype = np.dtype(np.float64)
    for row in [(), (3,)]:
        result = collective.reducescatter(values(rank, (rows, *row), dtype), op)
        whole = reference([values(other, (rows, *row), dtype) for other in range(size)], op)
        expected = np.array_split(whole, size)[rank]
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_alltoall_sends_splits(dtype, rank, size):
    def sent(source, to):
        return np.full((source + 2 * to, 2), source * 10 + to).astype(dtype)

    splits = [rank + 2 * to for to in range(size)]
    outgoing = np.concatenate([sent(rank, to) for to in range(size)])
    received, counts = collective.alltoall(outgoing, splits)
    np.testing.assert_array_equal(received, np.concatenate([sent(source, rank) for source in range(size)]))
    np.testing.assert_array_equal(counts, [source + 2 * rank for source in range(size)])
    even = collective.alltoall(np.repeat(np.arange(size), 2) * 100 + rank)
    np.testing.assert_array_equal(even, np.repeat(np.arange(size), 2) + 100 * rank)


def test_objects_travel_without_pickle(rank, size):
    def thing(of):
        return {
            "rank": of,
            "nested": (1, [2.5, None, {"x", "y"}], b"\0\xff", 1 + 2j),
            7: np.arange(of * 3.0),
            "π": np.float32(of),
        }

    for root in range(size):
        assert_same(collective.broadcast_object(thing(rank), root), thing(root))
    for of, received in enumerate(collective.allgather_object(thing(rank))):
        assert_same(received, thing(of))


def assert_same(left, right):
    assert left.keys() == right.keys()
    np.testing.assert_array_equal(left[7], right[7])
    assert {k: v for k, v in left.items() if k != 7} == {k: v for k, v in right.items() if k != 7}


class Unknown:
    """An object that only pickle can carry."""

    def __eq__(self, other):
        return isinstance(other, Unknown)

    __hash__ = None


def test_other_objects_need_pickle_asked_for_by_name(rank):
    with pytest.raises(ArgumentError, match="plain values|numbers, strings"):
        collective.broadcast_object(Unknown() if rank == 0 else None)
    with pytest.raises(ArgumentError, match="plain values|numbers, strings"):
        collective.allgather_object(Unknown() if rank == 0 else None)
    everyone = collective.allgather_object(Unknown(), allow_pickle=True)
    assert everyone == [Unknown()] * collective.size()


BAD_CALLS = {
    "object array": (lambda: collective.allreduce(np.array([None])), "arrays are of numbers or bool"),
    "strings": (lambda: collective.allgather(np.array(["a"])), "arrays are of numbers or bool"),
    "dates": (lambda: collective.broadcast(np.array(["2020"], "M8"), 0), "arrays are of numbers or bool"),
    "root too large": (lambda: collective.broadcast(np.zeros(2), collective.size()), "the root is a rank from 0"),
    "root negative": (lambda: collective.broadcast(np.zeros(2), -1), "the root is a rank from 0"),
    "op of another kind": (lambda: collective.allreduce(np.zeros(2), "Sum"), "op is one of Average, Sum"),
    "scalar gather": (lambda: collective.allgather(np.float32(1)), "at least one dimension"),
    "scalar scatter": (lambda: collective.reducescatter(np.float32(1)), "at least one dimension"),
    "splits": (lambda: collective.alltoall(np.zeros(3), [1] * (collective.size() + 1)), "whole numbers"),
    "splits sum": (lambda: collective.alltoall(np.zeros(3), [0] * collective.size()), "add up to the 3 rows"),
    "out shape": (lambda: collective.allreduce(np.zeros(3), out=np.zeros(4)), "out is a writeable array"),
    "out dtype": (lambda: collective.allreduce(np.zeros(3), out=np.zeros(3, "f4")), "out is a writeable array"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_refused_with_rank_and_operation(case, rank, size):
    call, rule = BAD_CALLS[case]
    with pytest.raises(ArgumentError, match=rule) as caught:
        call()
    assert f"rank {rank} of {size}" in str(caught.value)
    assert "Received: " in str(caught.value)
    assert collective.allreduce(np.ones(3), Sum).tolist() == [size] * 3


def test_an_array_like_one_before_is_checked_where_it_differs(rank, size):
    total = size * (size + 1) / 2
    plain = np.full((2, 3), rank + 1.0)
    for _ in range(3):
        assert (collective.allreduce(plain, Sum) == total).all()
        in_place = plain.copy()
        assert collective.allreduce(in_place, Sum, out=in_place) is in_place
        assert (in_place == total).all()
    fixed = plain.copy()
    fixed.flags.writeable = False
    unaligned = np.frombuffer(bytearray(b"x" + plain.tobytes()), np.uint8)[1:].view(np.float64).reshape(2, 3)
    for other in (fixed, unaligned, plain.tolist(), plain.astype(">f8"), np.asfortranarray(plain), plain.view(Matrix)):
        result = collective.allreduce(other, Sum)
        assert type(result) is np.ndarray
        assert (result == total).all()
        for _ in range(2):
            results = collective.grouped_allreduce([plain, other], Sum)
            assert all(type(result) is np.ndarray and (result == total).all() for result in results)
    matrix = plain.copy().view(np.matrix)
    assert collective.allreduce(matrix, out=matrix) is matrix
    assert (matrix == total / size).all()
    swapped = plain.astype(">f8")
    assert collective.allreduce(swapped, Sum, out=swapped) is swapped
    assert (swapped == total).all()
    assert (collective.allreduce(plain, Sum, prescale_factor=2.0) == 2 * total).all()
    with pytest.raises(ArgumentError, match="out is a writeable array"):
        collective.allreduce(fixed, Sum, out=fixed)
    for wrong in ("Sum", ["Sum"]):
        with pytest.raises(ArgumentError, match="op is one of Average, Sum"):
            collective.allreduce(plain, wrong)
    assert (plain == rank + 1).all()


class Matrix(np.ndarray):
    """An array of a user's own kind."""


def test_a_bad_argument_on_one_rank_is_an_error_on_all(rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(ArgumentError if rank == 1 else MismatchError, match="numbers or bool"):
        collective.allreduce(np.array([None]) if rank == 1 else np.zeros(1))
    assert collective.allreduce(np.ones(3), Sum).tolist() == [size] * 3


MISMATCHES = {
    "shape": lambda odd: collective.allreduce(np.zeros(3 if odd else 4)),
    "same bytes, other shape": lambda odd: collective.allreduce(np.zeros((2, 3) if odd else (3, 2))),
    "dtype": lambda odd: collective.allreduce(np.zeros(4, np.float64 if odd else np.int64)),
    "op": lambda odd: collective.allreduce(np.zeros(4), Sum if odd else Max),
    "name": lambda odd: collective.allreduce(np.zeros(4), name="a" if odd else "b"),
    "root": lambda odd: collective.broadcast(np.zeros(4), 1 if odd else 0),
    "operation": lambda odd: collective.allgather(np.zeros(4)) if odd else collective.allreduce(np.zeros(4)),
    "row": lambda odd: collective.allgather(np.zeros((1, 2) if odd else (1, 3))),
    "number of tensors": lambda odd: collective.grouped_allreduce([np.zeros(2)] * (2 if odd else 3)),
    "barrier": lambda odd: collective.barrier() if odd else collective.alltoall(np.zeros(collective.size())),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_ranks_that_differ_all_get_the_same_error(case, rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(MismatchError, match="all ranks call the same operations") as caught:
        MISMATCHES[case](rank == 1)
    texts = collective.allgather_object(str(caught.value).split("Received: ")[1])
    assert len(set(texts)) == 1
    assert "rank 1: " in texts[0]


@pytest.mark.parametrize("elements", [7, 100_000])
@pytest.mark.parametrize("dtype", [*HALVES, np.dtype(np.float32)], ids=str)
def test_arrays_at_odd_addresses(dtype, elements, rank, size):
    """Such as ``np.frombuffer`` makes; on one rank only."""
    memory = np.zeros(elements * dtype.itemsize + 1, np.uint8)
    array = memory[1:].view(dtype) if rank == 0 else np.empty(elements, dtype)
    array[:] = rank + 1
    total = size * (size + 1) / 2
    for op, expected in ((Sum, total), (Average, total / size), (Max, size)):
        # Horovod's core rounds an average of three twice.
        np.testing.assert_allclose(collective.allreduce(array, op).astype(float), expected, rtol=0.01)
        grouped = collective.grouped_allreduce([array, array[:3]], op)[1]
        np.testing.assert_allclose(grouped.astype(float), expected, rtol=0.01)
    assert (collective.reducescatter(array, Sum).astype(float) == total).all()
    assert len(collective.allgather(array)) == size * elements
    compressed = collective.allreduce(array, Sum, compression=collective.Compression.fp16)
    assert (compressed.astype(float) == total).all()
    assert collective.allreduce(array, Sum, out=array) is array
    assert (array.astype(float) == total).all()


OPERATIONS = {
    "allreduce": collective.allreduce,
    "allreduce in place": lambda array: collective.allreduce(array, out=array),
    "allreduce_async": lambda array: collective.allreduce_async(array).wait(),
    "grouped_allreduce": lambda array: collective.grouped_allreduce([array, array + 1]),
    "allgather": collective.allgather,
    "broadcast": lambda array: collective.broadcast(array, 0, out=array),
    "alltoall": lambda array: collective.alltoall(array, [len(array) // collective.size()] * collective.size()),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_an_array_is_free_as_soon_as_its_operation_is_over(operation, size):
    array = np.ones(12 * 10_000, np.float32)
    alive = weakref.ref(array)
    operation(array)
    del array
    deadline = time.monotonic() + 10
    while alive() is not None and time.monotonic() < deadline:
        time.sleep(1e-3)  # the engine's thread may be just about to let go
    assert alive() is None


def test_averages_after_arrays_of_odd_lengths(size):
    """Results lie one after the other in shared memory, and floats at odd addresses are refused there."""
    for length in (3001, 150_001):
        kept = []
        for dtype in (np.uint8, np.float32, np.float16, np.float64, ml_dtypes.bfloat16, np.float32):
            for op in (Sum, Average):
                if dtype is not np.uint8 or op is Sum:
                    kept.append(collective.allreduce(np.ones(length, dtype), op))
                    assert (kept[-1] == (size if op is Sum else 1)).all()
                    assert kept[-1].ctypes.data % kept[-1].itemsize == 0
        mixed = [np.ones(length, ml_dtypes.bfloat16), np.ones(length, np.float32), np.ones(length)]
        for result in collective.grouped_allreduce(mixed):
            assert (result == 1).all()
