"""Checkpoints of a whole training: what ranks hold alike is kept once, and what differs comes back to its rank."""

import os
import random

import numpy as np
import pytest

import collective
from collective.random_states import random_states, set_random_states
from collective.training import TrainingCheckpoints


@pytest.fixture
def folder(tmp_path):
    """A folder of rank 0's."""
    return collective.broadcast_object(str(tmp_path / "checkpoints"))


def state(rank, step=0):
    return {
        "weights": np.arange(3000, dtype=np.float32) + step,
        "averages": np.full((2, 3), rank + step, np.float64),
        "seed": np.array(7 * rank + step),
        "nothing": np.zeros((0, 4)),
    }


def test_every_rank_gets_its_own_back(folder, rank, size):
    checkpoints = TrainingCheckpoints(folder)
    assert checkpoints.newest() is None
    checkpoints.save(4, state(rank), {"epoch": 1, "rank": rank}, {"of": rank})
    checkpoints.save(5, state(rank, 5), {"epoch": 2, "rank": rank}, {"of": rank})
    found = checkpoints.newest()
    assert found.step == 5
    assert found.values == {"epoch": 2, "rank": 0}
    assert found.own == [{"of": each} for each in range(size)]
    assert found.mine == {"of": rank}
    expected = state(rank, 5)
    assert found.arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)
    found.arrays["averages"][:] = 0  # nobody else's


def test_what_is_alike_is_kept_once(folder, rank, size):
    TrainingCheckpoints(folder).save(1, state(rank))
    if rank == 0:
        expected = sum(
            array.nbytes * (1 if name in ("weights", "nothing") else size) for name, array in state(0).items()
        )
        if size > 1:
            assert os.path.getsize(os.path.join(folder, "step-000000000001", "arrays.bin")) == expected


def test_random_numbers_go_on(folder, rank):
    random.seed(rank)
    np.random.seed(rank)
    np.random.normal()  # which keeps a second one for the next call
    checkpoints = TrainingCheckpoints(folder)
    checkpoints.save(1, {}, own=random_states())
    expected = random.random(), random.gauss(0, 1), np.random.normal(), np.random.random()
    set_random_states(checkpoints.newest().mine)
    assert (random.random(), random.gauss(0, 1), np.random.normal(), np.random.random()) == expected
