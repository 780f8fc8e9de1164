"""COLLECTIVE_CHECK_FINITE: values that are no numbers are an error on all ranks, which names whose they were."""

import os

import ml_dtypes
import numpy as np
import pytest

import collective
from collective import Average, Sum
from collective.errors import NonFiniteError


@pytest.fixture
def checking():
    """A job in which results are looked at."""
    collective.shutdown()
    os.environ["COLLECTIVE_CHECK_FINITE"] = "1"
    try:
        collective.init()
    finally:
        del os.environ["COLLECTIVE_CHECK_FINITE"]
    yield
    collective.shutdown()
    collective.init()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.complex64])
@pytest.mark.parametrize("elements", [3, 5000, 3_000_000])
def test_the_rank_and_the_array_are_named_on_all_ranks(checking, rank, size, dtype, elements):
    bad = size - 1
    values = np.ones(elements, dtype)
    poisoned = values.copy()
    if rank == bad:
        poisoned[elements // 2] = np.nan
    group = [values, poisoned, np.ones(2, np.int64)]
    with pytest.raises(NonFiniteError, match=f"array 2 of 3, .*not finite on rank {bad}"):
        collective.grouped_allreduce(group, Average, name="gradients")
    with pytest.raises(NonFiniteError, match=f"allreduce 'loss'.*not finite on rank {bad}"):
        collective.allreduce(poisoned, Sum, name="loss")
    handle = collective.allreduce_async(poisoned, Sum, name="later")
    with pytest.raises(NonFiniteError, match=f"not finite on rank {bad}"):
        handle.wait()
    np.testing.assert_array_equal(collective.allreduce(values, Sum), values * size)


def test_a_sum_that_is_too_large_is_told_from_values_that_are(checking, size):
    if size == 1:
        return
    with pytest.raises(NonFiniteError, match="finite on all ranks, so that the sum is too large"):
        collective.allreduce(np.full(10, 3e38, np.float32), Sum)
    # Each result is finite, though the sum of all of them is not.
    values = np.full(100, 5e37, np.float32)
    np.testing.assert_array_equal(collective.allreduce(values, Sum), values * np.float32(size))


def test_in_place_the_array_is_named(checking, rank):
    values = np.full(100, np.inf if rank == 0 else 1.0)
    with pytest.raises(NonFiniteError, match="array 1 of 1, .*reduced in place"):
        collective.allreduce(values, Sum, out=values)


def test_by_default_such_values_pass(rank, size):
    result = collective.allreduce(np.array([np.nan if rank == 0 else 1.0, 1.0]), Sum)
    assert np.isnan(result[0])
    assert result[1] == size
