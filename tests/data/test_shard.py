"""Shards against definitions written out sample by sample, and against training in one process."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective import world
from collective.data import Shard
from collective.errors import ArgumentError
from collective.topology import Topology

ORDERS = ("strided", "contiguous", "shuffled")
UNEVENS = ("weight", "mask", "pad", "drop")

lengths, batch_sizes, sizes = st.integers(0, 60), st.integers(1, 9), st.integers(1, 5)
orders, unevens, epochs = st.sampled_from(ORDERS), st.sampled_from(UNEVENS), st.integers(0, 3)


def ranks(length, batch_size, size, epoch=0, start=0, **options):
    """Every rank's list of batches."""
    shards = [Shard(length, batch_size, rank=rank, size=size, **options) for rank in range(size)]
    return [list(shard.batches(epoch, start)) for shard in shards]


def real(jobs, step=None):
    """The samples with a weight, of one step or of all."""
    return [i for job in jobs for b in (job if step is None else [job[step]]) for i, w in zip(*b, strict=True) if w]


@given(lengths, batch_sizes, sizes, orders, unevens, epochs)
def test_every_rank_gets_the_same_number_of_full_batches(length, batch_size, size, order, uneven, epoch):
    jobs = ranks(length, batch_size, size, epoch, order=order, uneven=uneven)
    steps = length / (batch_size * size)
    assert {len(job) for job in jobs} == {math.floor(steps) if uneven == "drop" else math.ceil(steps)}
    assert {Shard(length, batch_size, uneven=uneven, rank=r, size=size).steps for r in range(size)} == {len(jobs[0])}
    for indexes, weights in (batch for job in jobs for batch in job):
        assert (indexes.dtype, indexes.shape) == (np.int64, (batch_size,))
        assert (weights.dtype, weights.shape) == (np.float32, (batch_size,))
        assert ((indexes >= 0) & (indexes < length)).all()


@given(lengths, batch_sizes, sizes, orders, st.sampled_from(("weight", "mask")), epochs)
def test_weighted_epoch_holds_every_sample_once(length, batch_size, size, order, uneven, epoch):
    jobs = ranks(length, batch_size, size, epoch, order=order, uneven=uneven)
    assert sorted(real(jobs)) == list(range(length))
    counts = [Shard(length, batch_size, order=order, uneven=uneven, rank=r, size=size).samples for r in range(size)]
    assert counts == [len(real([job])) for job in jobs]


@given(lengths, batch_sizes, sizes, orders, epochs)
def test_weights_make_the_mean_over_ranks_the_mean_over_samples(length, batch_size, size, order, epoch):
    jobs = ranks(length, batch_size, size, epoch, order=order)
    for step in range(len(jobs[0])):
        samples = len(real(jobs, step))
        weights = np.concatenate([job[step].weights for job in jobs])
        np.testing.assert_allclose(weights[weights > 0], batch_size * size / samples, rtol=1e-6)
        np.testing.assert_allclose(weights.sum(), batch_size * size, rtol=1e-6)


@given(lengths, batch_sizes, sizes, orders, epochs)
def test_padded_epoch_holds_every_sample_at_least_once_all_alike(length, batch_size, size, order, epoch):
    jobs = ranks(length, batch_size, size, epoch, order=order, uneven="pad")
    assert {weight for job in jobs for batch in job for weight in batch.weights} <= {1}
    assert set(real(jobs)) == set(range(length))
    for padded, weighted in zip(jobs, ranks(length, batch_size, size, epoch, order=order), strict=True):
        for one, other in zip(padded, weighted, strict=True):
            np.testing.assert_array_equal(one.indexes, other.indexes)


@given(lengths, batch_sizes, sizes, orders, epochs)
def test_dropping_loses_less_than_one_step(length, batch_size, size, order, epoch):
    jobs = ranks(length, batch_size, size, epoch, order=order, uneven="drop")
    samples = real(jobs)
    assert {weight for job in jobs for batch in job for weight in batch.weights} <= {1}
    assert len(samples) == len(set(samples)) == length // (batch_size * size) * batch_size * size


@given(lengths, batch_sizes, sizes, unevens)
def test_a_strided_step_covers_the_batch_of_one_process(length, batch_size, size, uneven):
    jobs = ranks(length, batch_size, size, uneven=uneven)
    whole = batch_size * size
    for step in range(len(jobs[0])):
        globally = [sample % length for sample in range(step * whole, (step + 1) * whole)]
        for rank, job in enumerate(jobs):
            assert job[step].indexes.tolist() == globally[rank::size]
        if uneven in ("weight", "mask"):
            assert sorted(real(jobs, step)) == list(range(length))[step * whole : (step + 1) * whole]


@given(lengths, batch_sizes, sizes)
def test_a_contiguous_rank_has_one_block(length, batch_size, size):
    blocks = [block.tolist() for block in np.array_split(np.arange(length), size)]  # the first get one more
    jobs = ranks(length, batch_size, size, order="contiguous")
    assert [real([job]) for job in jobs] == blocks


@given(st.integers(20, 60), batch_sizes, sizes, epochs)
def test_a_shuffled_epoch_is_strided_over_one_order_for_all_ranks(length, batch_size, size, epoch):
    (alone,) = ranks(length, batch_size * size, 1, epoch, order="shuffled")
    order = [i for batch in alone for i in batch.indexes.tolist()]
    for rank, job in enumerate(ranks(length, batch_size, size, epoch, order="shuffled")):
        assert [i for batch in job for i in batch.indexes.tolist()] == order[rank::size]


def test_each_epoch_and_seed_has_its_own_order_that_can_be_repeated():
    def order(seed, epoch):
        return tuple(real(ranks(50, 5, 2, epoch, order="shuffled", seed=seed)))

    runs = [(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({order(*run) for run in runs}) == len(runs)
    assert [order(*run) for run in runs] == [order(*run) for run in runs]


def test_the_shuffled_order_is_the_same_with_every_numpy():
    assert real(ranks(10, 10, 1, epoch=1, order="shuffled", seed=7)) == [1, 4, 9, 3, 2, 6, 5, 8, 0, 7]


@given(lengths, batch_sizes, sizes, orders, unevens, epochs, st.data())
def test_an_epoch_goes_on_where_it_was_interrupted(length, batch_size, size, order, uneven, epoch, data):
    whole = ranks(length, batch_size, size, epoch, order=order, uneven=uneven)
    start = data.draw(st.integers(0, len(whole[0])))
    rest = ranks(length, batch_size, size, epoch, start, order=order, uneven=uneven)
    np.testing.assert_equal([job[start:] for job in whole], rest)


def linear_gradient(x, y, kernel, weights):
    """Gradient of mean(weights * (x @ kernel - y)**2) over the batch."""
    return 2 * x.T @ (weights * (x @ kernel - y)) / len(y)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@given(length=st.integers(1, 60), batch_size=batch_sizes, order=orders, epoch=epochs)
@settings(deadline=None)
def test_average_gradient_of_the_ranks_is_that_of_one_process(size, length, batch_size, order, epoch):
    random = np.random.default_rng(length)
    x, y, kernel = random.normal(size=(length, 3)), random.normal(size=length), random.normal(size=3)
    jobs = ranks(length, batch_size, size, epoch, order=order)
    seen = []
    for step in range(len(jobs[0])):
        average = np.mean([linear_gradient(x[i], y[i], kernel, w) for i, w in (job[step] for job in jobs)], axis=0)
        together = real(jobs, step)
        expected = linear_gradient(x[together], y[together], kernel, np.ones(len(together)))
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)
        seen += together
    assert sorted(seen) == list(range(length))


def test_training_on_ranks_gives_the_parameters_of_one_process():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(101, 4)), random.normal(size=101)
    alone, together = np.zeros(4), np.zeros(4)
    for epoch in range(3):
        for start in range(0, len(x), 3 * 8):
            batch = slice(start, start + 3 * 8)
            alone = alone - 0.1 * linear_gradient(x[batch], y[batch], alone, 1.0)
        for steps in zip(*ranks(len(x), 8, 3, epoch), strict=True):
            together = together - 0.1 * np.mean([linear_gradient(x[i], y[i], together, w) for i, w in steps], axis=0)
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_no_samples_are_no_steps():
    for order in ORDERS:
        for uneven in UNEVENS:
            assert ranks(0, 4, 3, order=order, uneven=uneven) == [[], [], []]


def test_rank_and_size_are_the_jobs(monkeypatch):
    monkeypatch.setattr(world, "topology", lambda: Topology(2, 4, 0, 1, 2, 4))
    assert Shard(10, 2) == Shard(10, 2, rank=2, size=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": -1}, "length=-1"),
        ({"length": 2.5}, "length=2.5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"order": "shufled"}, "Did you mean 'shuffled'?"),
        ({"uneven": "nonsense"}, "Pass one of weight, mask, pad, drop"),
        ({"rank": 4}, "from 0 to 3. Received: rank=4"),
        ({"rank": None}, "rank=None"),
        ({"size": 0}, "size=0"),
        ({"seed": -3}, "seed=-3"),
    ],
)
def test_impossible_shards_are_refused_with_what_was_received(change, words):
    with pytest.raises(ArgumentError) as caught:
        Shard(**{"length": 10, "batch_size": 2, "rank": 0, "size": 4} | change)
    assert words in str(caught.value)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 6)])
def test_an_epoch_and_a_step_that_do_not_exist_are_refused_at_once(epoch, start):
    with pytest.raises(ArgumentError):
        Shard(10, 2, rank=0, size=1).batches(epoch, start)
