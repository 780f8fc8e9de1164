"""Snapshots: the newest that is complete comes back, on all ranks, with what was each rank's own."""

import os
import resource
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import collective
from collective.archive import Archive
from collective.common import elastic, trees
from collective.errors import ArgumentError, CheckpointError
from collective.snapshots import Snapshots


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder as a supervisor names it: all ranks know of it, and none has made it."""
    path = Path(collective.broadcast_object(str(tmp_path / "snapshots")))
    monkeypatch.setenv("COLLECTIVE_SNAPSHOT_FOLDER", str(path))
    collective.barrier()
    yield path
    collective.barrier()
    if collective.rank() == 0:
        shutil.rmtree(path, ignore_errors=True)


def state(number):
    return {
        "weights": np.full((3, 400_000), number, np.float32),
        "half": np.arange(5).astype(ml_dtypes.bfloat16) * number,
        "step": np.array(number),
        "nothing": np.empty((0, 7)),
    }


def on_this_host(folder):
    return folder / os.uname().nodename


def test_the_newest_comes_back_with_what_was_each_rank_s_own(folder, rank, size):
    snapshots = Snapshots()
    assert snapshots.newest() is None
    for step in (3, 12):
        snapshots.save(step, state(step), {"epoch": step} if rank == 0 else None, own=[rank, "x" * rank])
    found = Snapshots().newest()
    assert (found.step, found.values) == (12, {"epoch": 12})
    assert found.own == [[each, "x" * each] for each in range(size)]
    assert list(found.arrays) == list(state(12))
    for name, array in state(12).items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_what_every_host_has_is_not_sent(folder, monkeypatch):
    """It comes from each host's own memory, several times as fast."""
    snapshots = Snapshots()
    snapshots.save(1, state(1))
    monkeypatch.setattr("collective.snapshots.broadcast_content", None)
    np.testing.assert_array_equal(snapshots.newest().arrays["weights"], state(1)["weights"])


@pytest.mark.parametrize("behind", ["a step", "other arrays", "everything"])
def test_a_host_that_has_another_snapshot_gets_the_newest_and_keeps_it(folder, monkeypatch, rank, size, behind):
    """As after its loss: the others may have gone on to steps of the same numbers with other results."""
    monkeypatch.setattr("socket.gethostname", lambda: f"host {rank}")
    monkeypatch.setattr("collective.world.local_rank", lambda: 0)
    folder.mkdir(mode=0o700, exist_ok=True)
    archive = Archive(folder / f"host {rank}", keep=2, in_memory=True)
    newest = rank == size - 1
    if newest or behind != "everything":
        archive.write(1, state(1), [None, []])
    if newest or behind == "other arrays":
        archive.write(2, state(7 if newest else 2), [None, []])
    found = Snapshots().newest()
    assert found.step == 2
    assert len(set(collective.allgather(found.arrays["weights"][:1, 0]))) == 1
    monkeypatch.setattr("collective.snapshots.broadcast_content", None)
    again = Snapshots().newest()
    np.testing.assert_array_equal(again.arrays["weights"], found.arrays["weights"])


def test_only_its_owner_may_look_and_only_the_newest_are_kept(folder, rank):
    snapshots = Snapshots(keep=2)
    for step in range(5):
        snapshots.save(step, state(step))
    if rank == 0:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert sorted(os.listdir(on_this_host(folder))) == ["step-000000000003", "step-000000000004"]
        files = [path for path in on_this_host(folder).rglob("*") if path.is_file()]
        assert len(files) == 6
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_memory_is_used_again(folder, rank):
    """The arrays' file of a new snapshot is that of the oldest, also when the arrays have become fewer."""
    snapshots = Snapshots()
    arrays = [state(0), state(1), {"weights": np.arange(7)}]
    places = []
    for step, each in enumerate(arrays):
        snapshots.save(step, each)
        if rank == 0:
            places.append((on_this_host(folder) / f"step-{step:012d}" / "arrays.bin").stat())
    if rank == 0:
        assert places[2].st_ino == places[0].st_ino
        assert places[2].st_size == 56
    np.testing.assert_array_equal(snapshots.newest().arrays["weights"], np.arange(7))


@pytest.mark.parametrize("damage", ["flip", "cut", "lose the end", "leave scratch"])
def test_a_damaged_snapshot_is_passed_over(folder, rank, damage):
    snapshots = Snapshots(keep=3)
    snapshots.save(1, state(1), "good")
    snapshots.save(2, state(2), "bad")
    if rank == 0:
        newest = on_this_host(folder) / "step-000000000002"
        if damage == "flip":
            with open(newest / "arrays.bin", "r+b") as file:
                file.seek(2_000_000)
                file.write(b"\x01")
        elif damage == "cut":
            os.truncate(newest / "arrays.bin", 11)
        elif damage == "lose the end":
            (newest / "complete.json").unlink()
        else:
            newest.rename(newest.with_name(".step-2.dead"))
    collective.barrier()  # every rank reads by itself
    found = snapshots.newest()
    assert (found.step, found.values) == (1, "good")
    np.testing.assert_array_equal(found.arrays["weights"], state(1)["weights"])
    snapshots.save(3, state(3))
    if rank == 0:
        assert not list(on_this_host(folder).glob(".*"))
    assert snapshots.newest().step == 3


def test_what_cannot_be_kept_is_an_error_on_all_ranks_and_leaves_the_one_before(folder, rank, size):
    snapshots = Snapshots()
    snapshots.save(1, state(1))
    with pytest.raises(ArgumentError, match="made of"):
        snapshots.save(2, state(2), own=object() if rank == size - 1 else None)
    with pytest.raises(CheckpointError, match="arrays of numbers"):
        snapshots.save(2, {"object": np.array([object()])})
    snapshots.save(3, state(3))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="room for snapshots.*File too large"):
            snapshots.save(4, state(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshots.newest().step == 3


def test_a_folder_open_to_others_is_refused(folder, rank):
    if rank == 0:
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
    collective.barrier()
    with pytest.raises(CheckpointError, match="open to others"):
        Snapshots().save(1, state(1))


def test_without_a_supervisor_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("COLLECTIVE_SNAPSHOT_FOLDER", raising=False)
    Snapshots().save(1, state(1))
    assert Snapshots().newest() is None
    with pytest.raises(ArgumentError, match="at least 2"):
        Snapshots(keep=1)


class Odd:
    """What no codec knows."""

    def __init__(self, number):
        self.number = number


def test_trees_are_put_together_as_they_were():
    tree = {"a": [1, (2.5, np.arange(3))], 7: {"b": None, "c": b"raw", "d": Odd(4)}, "e": [], "f": np.float32(0.1)}
    arrays, rest = trees.split(tree)
    assert [array.tolist() for array in arrays.values()] == [[0, 1, 2]]
    again = trees.join(collective.broadcast_object(rest), arrays)
    assert again[7].pop("d").number == tree[7].pop("d").number == 4
    one, (two_and_a_half, array) = again["a"]
    assert (one, two_and_a_half, array.tolist()) == (1, 2.5, [0, 1, 2])
    assert (again[7], again["e"], again["f"]) == (tree[7], [], np.float32(0.1))


def test_a_state_begins_with_the_last_commit_of_a_process_that_is_no_more(folder, rank):
    def train(state, until):
        while state.step < until:
            state.weights = state.weights + 1
            state.step += 1
            if state.step % 2 == 0:
                state.commit()
        return state.weights.copy(), state.step

    run = elastic.run_fn(train, lambda: None)
    first = elastic.ObjectState(step=0, weights=np.zeros(3), odd=Odd(5))
    run(first, 5)
    second = elastic.ObjectState(step=0, weights=np.full(3, float(rank)), odd=None)
    weights, step = run(second, 4)  # was committed at 4: nothing is left to do
    assert (step, second.commits, second.odd.number) == (4, 2, 5)
    np.testing.assert_array_equal(weights, np.full(3, 4.0))
    # A state outside of a loop keeps nothing.
    outside = elastic.ObjectState(step=99)
    for _ in range(9):
        outside.commit()
    assert Snapshots().newest().step == 2
