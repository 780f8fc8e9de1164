"""Adasum against its definition."""

import numpy as np
import pytest

import collective
from collective import Adasum
from collective.errors import ArgumentError


def adasum(first, second):
    """The definition, in float64."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    product = first @ second
    return (1 - product / (2 * first @ first)) * first + (1 - product / (2 * second @ second)) * second


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_adasum_equals_its_definition(rank, size, dtype):
    gradients = [np.random.default_rng(r).normal(size=(7, 11)).astype(dtype) for r in range(size)]
    flats = [gradient.reshape(-1) for gradient in gradients]
    expected = flats
    if size == 3:  # the first rank hands its gradient to the second
        expected = [adasum(flats[0], flats[1]), flats[2]]
    while len(expected) > 1:
        expected = [adasum(*pair) for pair in zip(expected[::2], expected[1::2], strict=True)]
    result = collective.allreduce(gradients[rank], Adasum)
    assert result.shape == (7, 11)
    tolerance = {np.float16: 3e-3, np.float32: 1e-6, np.float64: 1e-13}[dtype]
    np.testing.assert_allclose(result.reshape(-1), expected[0], rtol=tolerance, atol=tolerance)
    together = collective.grouped_allreduce([gradients[rank], gradients[rank] * 2], Adasum)
    np.testing.assert_array_equal(together[0], result)
    with pytest.raises(ArgumentError, match="floating point"):
        collective.allreduce(np.ones(3, np.int32), Adasum)
