"""Replicas that drift apart are found, and named."""

import numpy as np
import pytest

import collective
from collective.errors import DivergenceError
from collective.replicas import check_replicas


def variables():
    random = np.random.default_rng(3)
    return {
        "dense/kernel": random.normal(size=(20, 30)),
        "dense/bias": np.zeros(0, np.float32),
        "table": random.integers(0, 9, (5, 4)).T,
        "step": np.int64(7),
    }


def test_equal_replicas_pass(size):
    check_replicas(variables())
    check_replicas({})


@pytest.mark.parametrize("name", ["dense/kernel", "table", "step"])
def test_the_first_array_that_differs_and_its_ranks_are_named_on_all_ranks(rank, size, name):
    if size == 1:
        return
    mine = variables()
    if rank == size - 1:
        changed = np.array(mine[name], order="C")
        changed.reshape(-1)[-1] += 1
        mine[name] = changed
        mine["step"] = np.int64(8)
    with pytest.raises(DivergenceError, match=f"first '{name}': ranks? .* unlike rank {size - 1}"):
        check_replicas(mine)
    assert collective.allreduce(np.ones(1), collective.Sum)[0] == size


def test_zeros_of_either_sign_differ(rank, size):
    if size > 1:
        with pytest.raises(DivergenceError, match="1 of 1"):
            check_replicas({"zero": np.array(-0.0 if rank else 0.0)})
