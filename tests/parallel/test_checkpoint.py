"""Checkpoints: what is read is what was written, or the one before."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import collective
from collective.checkpoint import Checkpoints
from collective.errors import CheckpointError


@pytest.fixture
def folder(tmp_path):
    """A folder of rank 0's, which the others know of but don't need."""
    return collective.broadcast_object(str(tmp_path / "checkpoints"))


def state(number, rank=0):
    return {
        "weights": np.full((3, 4), number + rank, np.float32),
        "half": np.arange(5).astype(ml_dtypes.bfloat16) * number,
        "scalar": np.array(number, np.int64),
        "nothing": np.empty((0, 7), np.float64),
        'a name/../with "everything"': np.arange(6).reshape(2, 3).T,
    }


def test_what_rank_0_saved_is_read_on_all_ranks(folder, rank):
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest() is None
    values = {"epoch": 3, "batch": 17, "seeds": [1, 2], "note": "héllo", "history": {"loss": (0.5, 0.25)}}
    checkpoints.save(12, state(5, rank), values if rank == 0 else None)
    found = checkpoints.newest()
    assert found.step == 12
    assert found.values == values
    assert list(found.arrays) == list(state(5))
    for name, array in state(5).items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_only_the_newest_are_kept(folder, rank):
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 20, 3, 100, 100):
        checkpoints.save(step, state(step))
    if rank == 0:
        assert sorted(os.listdir(folder)) == ["step-000000000020", "step-000000000100"]
    assert checkpoints.newest().step == 100


@pytest.mark.parametrize("damage", ["flip", "cut", "lose the arrays", "lose the end", "another step", "nonsense"])
def test_a_damaged_checkpoint_is_passed_over(folder, rank, damage):
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.save(1, state(1), "good")
    checkpoints.save(2, state(2), "bad")
    if rank == 0:
        newest = os.path.join(folder, "step-000000000002")
        arrays, end = os.path.join(newest, "arrays.bin"), os.path.join(newest, "complete.json")
        if damage == "flip":
            with open(arrays, "r+b") as file:
                file.seek(7)
                byte = file.read(1)
                file.seek(7)
                file.write(bytes([byte[0] ^ 1]))
        elif damage == "cut":
            os.truncate(arrays, 11)
        elif damage == "lose the arrays":
            os.remove(arrays)
        elif damage == "lose the end":
            os.remove(end)
        elif damage == "another step":
            os.rename(newest, os.path.join(folder, "step-000000000003"))
        else:
            with open(end, "w") as file:
                json.dump({"arrays.bin": "x"}, file)
    found = checkpoints.newest()
    assert (found.step, found.values) == (1, "good")
    np.testing.assert_array_equal(found.arrays["weights"], state(1)["weights"])


def test_what_cannot_be_written_is_an_error_on_all_ranks_and_leaves_the_one_before(folder, rank):
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, state(1))
    with pytest.raises(CheckpointError, match="numbers"):
        checkpoints.save(2, {"object": np.array([object()])})
    with pytest.raises(CheckpointError, match="plain|made of"):
        checkpoints.save(2, state(2), values=collective if rank == 0 else None)
    with pytest.raises(CheckpointError):
        Checkpoints("/proc/nowhere").save(1, state(1))
    assert checkpoints.newest().step == 1
    if rank == 0:
        assert os.listdir(folder) == ["step-000000000001"]


def test_a_job_killed_while_it_writes_leaves_the_checkpoint_before(folder, rank):
    """A process of its own is killed at random moments of writing the second checkpoint."""
    if rank == 0:
        code = (
            "import sys, numpy as np, collective as c\nfrom collective.checkpoint import Checkpoints\n"
            "c.init(); k = Checkpoints(sys.argv[1]); k.save(1, {'a': np.ones(10)}); print('go', flush=True)\n"
            "while True: k.save(2, {'a': np.zeros(3_000_000)})"
        )
        alone = {
            name: value for name, value in os.environ.items() if not name.startswith(("OMPI", "PMI", "PRTE", "PMIX"))
        }
        alone["COLLECTIVE_BACKEND"] = "solo"
        for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
            process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, env=alone)
            assert process.stdout.readline() == b"go\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
            process.wait()
            process.stdout.close()
            assert any(name in os.listdir(folder) for name in ("step-000000000001", "step-000000000002"))
    found = Checkpoints(folder).newest()
    expected = {1: np.ones(10), 2: np.zeros(3_000_000)}[found.step]
    np.testing.assert_array_equal(found.arrays["a"], expected)
