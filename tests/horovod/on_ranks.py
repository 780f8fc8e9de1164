"""What only the Horovod backend has to get right; run on every rank, after the suite of all backends."""

import ml_dtypes
import numpy as np
import pytest

import collective
from collective import Average, Max, Min, Sum, world
from collective.backends import horovod
from collective.errors import ArgumentError, MismatchError

SIZE, RANK = collective.size(), collective.rank()
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def bits_of_all(array):
    return collective.allgather(np.frombuffer(np.atleast_1d(array).tobytes(), np.uint8)[None])


def test_horovod_carries_the_data():
    assert isinstance(world.backend(), horovod.HorovodBackend)
    assert world.backend().name == "horovod"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("op", [Sum, Average, Min, Max], ids=repr)
def test_nan_and_zeros_of_either_sign_have_the_same_bits_everywhere(dtype, op):
    nan, zero = np.array([np.nan, 0.0], dtype)
    sign = dtype(-1 if RANK else 1)
    result = collective.allreduce(np.array([np.copysign(nan, sign), np.copysign(zero, sign)] * 9, dtype), op)
    assert np.isnan(result[0])
    assert result[1] == 0
    assert len(np.unique(bits_of_all(result), axis=0)) == 1


def test_small_integers_wrap_as_in_numpy():
    # Open MPI's own sum of these stops at the largest value.
    for dtype in (np.int8, np.uint8, np.int16, np.uint16):
        largest = np.full(1000, np.iinfo(dtype).max, dtype)
        expected = (largest.astype(np.int64) * SIZE).astype(dtype)
        np.testing.assert_array_equal(collective.allreduce(largest, Sum), expected)


def test_a_broadcast_is_cut_and_joined(monkeypatch):
    monkeypatch.setattr(horovod, "BROADCAST_BYTES", 1000)
    root = SIZE - 1
    expected = [np.arange(700.0), np.float32(3), np.arange(999, dtype=np.int8), np.zeros(0), np.arange(7) + 1j]
    mine = [np.array(array) if root == RANK else np.zeros_like(array) for array in expected]
    world.backend().broadcast(mine, root, "cut").wait()
    for array, wanted in zip(mine, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


MISMATCHES = {
    "shape": lambda odd: collective.allreduce(np.zeros(3 if odd else 4)),
    "same elements, other shape": lambda odd: collective.allreduce(np.zeros((2, 3) if odd else (3, 2))),
    "dtype": lambda odd: collective.allreduce(np.zeros(4, np.float64 if odd else np.int64)),
    "dtypes of one carrier": lambda odd: collective.allreduce(np.zeros(4, np.int64 if odd else np.uint64)),
    "dtype by bytes": lambda odd: collective.allreduce(np.zeros(4, np.int16 if odd else np.uint16)),
    "one by bytes": lambda odd: collective.allreduce(np.zeros(4, np.longdouble if odd else np.float64)),
    "op": lambda odd: collective.allreduce(np.zeros(4), Sum if odd else Max),
    "Sum and Average": lambda odd: collective.allreduce(np.zeros(4), Sum if odd else Average),
    "name": lambda odd: collective.allreduce(np.zeros(4), name="a" if odd else "b"),
    "empty": lambda odd: collective.allreduce(np.zeros(0 if odd else 4)),
    "root": lambda odd: collective.broadcast(np.zeros(4), 1 if odd else 0),
    "gather and reduce": lambda odd: collective.allgather(np.zeros(4)) if odd else collective.allreduce(np.zeros(4)),
    "gather and broadcast": lambda odd: (
        collective.allgather(np.zeros(4)) if odd else collective.broadcast(np.zeros(4), 0)
    ),
    "row": lambda odd: collective.allgather(np.zeros((1, 2) if odd else (1, 3))),
    "number of tensors": lambda odd: collective.grouped_allreduce([np.zeros(2)] * (2 if odd else 3)),
    "same elements, other tensors": lambda odd: collective.grouped_allreduce(
        [np.zeros(2), np.zeros(4)] if odd else [np.zeros(4), np.zeros(2)]
    ),
    "barrier": lambda odd: collective.barrier() if odd else collective.alltoall(np.zeros(SIZE)),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_ranks_that_differ_all_get_the_same_error(case):
    if SIZE == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(MismatchError, match="all ranks call the same operations") as caught:
        MISMATCHES[case](RANK == 1)
    assert f"on rank {RANK} of {SIZE}" in str(caught.value)
    texts = collective.allgather_object(str(caught.value).split("Received: ")[1])
    assert len(set(texts)) == 1
    assert "rank 1: " in texts[0]
    assert collective.allreduce(np.ones(3), Sum).tolist() == [SIZE] * 3


def test_a_bad_argument_on_one_rank_is_an_error_on_all():
    if SIZE == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(ArgumentError if RANK == 1 else MismatchError, match="numbers or bool"):
        collective.allreduce(np.array([None]) if RANK == 1 else np.zeros(1))
    assert collective.allreduce(np.ones(3), Sum).tolist() == [SIZE] * 3
