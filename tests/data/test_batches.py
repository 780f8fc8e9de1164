"""Batches taken out of arrays, memory maps, lists and nests of these."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective.data import Shard, batches
from collective.errors import ArgumentError


class Watched(np.ndarray):
    """An array that notes what is read of it."""

    keys: list

    def __getitem__(self, key):
        self.keys.append(key)
        return np.asarray(self)[key]


def watched(length):
    array = np.arange(length).view(Watched)
    array.keys = []
    return array


@given(
    st.integers(0, 40),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from(("strided", "contiguous", "shuffled")),
    st.sampled_from(("weight", "mask", "pad", "drop")),
)
def test_batches_hold_the_samples_of_the_shard(length, batch_size, size, order, uneven):
    x, y, names = np.arange(3.0 * length).reshape(length, 3), np.arange(length), [f"{i}.npz" for i in range(length)]
    for rank in range(size):
        options = {"order": order, "uneven": uneven, "rank": rank, "size": size}
        taken = list(batches(({"x": x, "more": (y,)}, names), batch_size, epoch=2, **options))
        expected = list(Shard(length, batch_size, **options).batches(epoch=2))
        assert len(taken) == len(expected)
        for (inputs, paths, weights), batch in zip(taken, expected, strict=True):
            np.testing.assert_array_equal(inputs["x"], x[batch.indexes])
            np.testing.assert_array_equal(inputs["more"][0], y[batch.indexes])
            assert paths == [names[i] for i in batch.indexes]
            np.testing.assert_array_equal(weights, batch.weights)


def test_one_array_and_one_dict_come_beside_their_weights():
    (array, weights), *_ = batches(np.arange(4), 2, rank=1, size=2)
    assert (array.tolist(), weights.tolist()) == ([1, 3], [1, 1])
    (parts, _), *_ = batches({"a": np.arange(4)}, 2, rank=1, size=2)
    assert parts["a"].tolist() == [1, 3]


def test_files_are_dealt_out_one_by_one():
    ranks = [list(batches(["a", "b", "c"], 1, rank=rank, size=2)) for rank in range(2)]
    dealt = [[(path, weight) for (path,), (weight,) in rank] for rank in ranks]
    assert dealt == [[("a", 1), ("c", 2)], [("b", 1), ("a", 0)]]


@pytest.mark.parametrize("order", ["strided", "contiguous"])
def test_samples_in_a_row_are_read_by_slices_of_one_batch(order):
    array = watched(24)
    assert len(list(batches(array, 4, order=order, rank=1, size=3))) == 2
    assert all(isinstance(key, slice) for key in array.keys)
    assert [len(range(24)[key]) for key in array.keys] == [4, 4]


def test_batches_of_a_memory_map_are_plain_arrays_of_their_own(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(10))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for order in ("contiguous", "shuffled"):
        for batch, _ in batches(mapped, 3, order=order, rank=0, size=2):
            assert type(batch) is np.ndarray
            assert not np.shares_memory(batch, mapped)


def test_an_interrupted_epoch_goes_on():
    whole = list(batches(np.arange(30), 3, epoch=4, order="shuffled", rank=1, size=2))
    rest = list(batches(np.arange(30), 3, epoch=4, start=2, order="shuffled", rank=1, size=2))
    np.testing.assert_equal(whole[2:], rest)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ((np.zeros(3), {"y": np.zeros(4)}), "[0]: 3, [1]['y']: 4"),
        ((), "()"),
        (np.float32(1), "type float32"),
        (np.zeros(()), "type ndarray"),
        ("a.npz", "type str"),
        ((np.zeros(2), memoryview), "[1] of type type"),
    ],
)
def test_data_without_one_length_is_refused_at_once(data, words):
    with pytest.raises(ArgumentError) as caught:
        batches(data, 2, rank=0, size=1)
    assert words in str(caught.value)
