"""Datasets that go on where a checkpoint was: in the middle of an epoch, in that epoch's order."""

import warnings

import numpy as np
import pytest

from collective.data import Position, Shard
from collective.errors import ArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf = pytest.importorskip("tensorflow")
    from collective.tensorflow.data import batches, shard

ORDERS = ["strided", "contiguous", "shuffled"]


def of_a_dataset(length, position, **options):
    return shard(tf.data.Dataset.range(length).map(lambda i: (i, -i)), 4, position=position, **options)


def of_arrays(length, position, **options):
    return batches((np.arange(length), -np.arange(length)), 4, position=position, **options)


def read(dataset, position, passes):
    """The batches of some passes, each as (indexes, weights); as many as there are from the position on."""
    result = []
    for _ in range(passes):
        iterator, left = iter(dataset), position.plan.steps - position.start
        result.append([(x.numpy(), w.numpy()) for x, _, w in (next(iterator) for _ in range(left))])
    return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("make", [of_a_dataset, of_arrays])
def test_what_is_read_after_a_seek_is_what_would_have_been_read(make, order):
    for rank in range(2):
        options = {"order": order, "seed": 3 * rank, "rank": rank, "size": 2}
        position = Position()
        dataset = make(23, position, **options)
        assert dataset.cardinality() == position.plan.steps == 3
        whole = read(dataset, position, 3)
        tf.random.set_seed(rank + 17)  # of the program that was started again
        position = Position()
        dataset = make(23, position, **options)
        for epoch, start in [(1, 2), (0, 1), (2, 0), (1, 3)]:
            position.seek(epoch, start)
            assert not position.is_read
            np.testing.assert_equal(read(dataset, position, 1)[0], whole[epoch][start:])
            assert position.is_read == (start < 3)
        if order == "shuffled":
            assert any((one[0] != other[0]).any() for one, other in zip(whole[0], whole[1], strict=True))


def test_arrays_are_dealt_out_as_the_shard_says():
    position = Position()
    x, y, own = np.arange(46).reshape(23, 2), {"a": np.arange(23)}, np.linspace(0, 1, 23)
    dataset = batches((x, y, own), 4, order="shuffled", position=position, rank=1, size=2)
    plan = Shard(23, 4, order="shuffled", rank=1, size=2)
    for epoch in range(2):
        for (indexes, weights), batch in zip(plan.batches(epoch), dataset, strict=True):
            np.testing.assert_array_equal(batch[0], x[indexes])
            np.testing.assert_array_equal(batch[1]["a"], y["a"][indexes])
            np.testing.assert_allclose(batch[2], own[indexes] * weights)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(ArgumentError, match="taken out of arrays"):
        batches(["a", "b"], 1, rank=0, size=1)
    position = Position()
    of_arrays(23, position, rank=0, size=2)
    with pytest.raises(ArgumentError, match="start is a whole number from 0 to 3"):
        position.seek(0, 4)
