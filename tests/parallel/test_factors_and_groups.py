"""Factors before and after a reduction, and several arrays in one call."""

import numpy as np
import pytest

import collective
from collective import Sum
from collective.errors import MismatchError


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32, np.complex64])
def test_factors_multiply_before_and_after(rank, size, dtype):
    values = np.arange(5).astype(dtype)
    kept = values.copy()
    before = (values.astype(np.complex128) * 1.5).real.astype(dtype)
    expected = ((before * np.array(size, dtype)).astype(np.complex128) * 0.5).real.astype(dtype)
    result = collective.allreduce(values, Sum, prescale_factor=1.5, postscale_factor=0.5)
    np.testing.assert_allclose(result, expected)
    assert result.dtype == dtype
    np.testing.assert_array_equal(values, kept)
    both = collective.grouped_allreduce([values, values], Sum, prescale_factor=1.5, postscale_factor=0.5)
    np.testing.assert_array_equal(both[1], result)
    handle = collective.allreduce_async(values, Sum, prescale_factor=1.5, postscale_factor=0.5)
    np.testing.assert_array_equal(handle.wait(), result)
    part = collective.reducescatter(np.tile(values, (size, 1)), Sum, prescale_factor=1.5, postscale_factor=0.5)
    np.testing.assert_array_equal(part[0], result)
    inplace = values.copy()
    collective.allreduce(inplace, Sum, out=inplace, prescale_factor=1.5, postscale_factor=0.5)
    np.testing.assert_array_equal(inplace, result)


def test_other_factors_on_one_rank_are_an_error_on_all(rank, size):
    if size == 1:
        return
    with pytest.raises(MismatchError, match="times"):
        collective.allreduce(np.ones(3), Sum, prescale_factor=1.0 + (rank == 0))
    with pytest.raises(MismatchError, match="times"):
        collective.allreduce(np.ones(3), Sum, postscale_factor=1.0 + (rank == 0))


def test_an_array_for_the_result_on_one_rank_only_is_an_error_on_all(rank, size):
    if size == 1 or collective.world.backend().name != "mpi":
        pytest.skip("one rank, or another's core, goes the same way with and without")
    for elements in (1, 100, 10_000, 1_000_000):
        values = np.ones(elements)
        with pytest.raises(MismatchError, match="in place"):
            collective.allreduce(values, Sum, out=values if rank == 0 else None)


def test_groups_of_gathers_and_scatters(rank, size):
    gathered = collective.grouped_allgather([np.full((rank + 1, 2), rank), np.array([float(rank)])])
    np.testing.assert_array_equal(gathered[0][:, 0], np.repeat(range(size), range(1, size + 1)))
    np.testing.assert_array_equal(gathered[1], np.arange(size))
    scattered = collective.grouped_reducescatter([np.ones((size + 1, 2)), np.full(size, rank, np.int64)], Sum)
    np.testing.assert_array_equal(scattered[0], np.full((2 if rank == 0 else 1, 2), size))
    np.testing.assert_array_equal(scattered[1], [size * (size - 1) // 2])
