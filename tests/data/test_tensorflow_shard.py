"""`tf.data` by rank, read by hand and by Keras; the ranks are simulated in this one process."""

import warnings

import numpy as np
import pytest

from collective.data import Shard
from collective.errors import ArgumentError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    from collective.tensorflow.data import shard

CASES = [(0, 2, 3), (1, 2, 3), (5, 4, 4), (10, 2, 1), (12, 2, 3), (13, 2, 3), (17, 3, 2), (23, 5, 3)]
UNEVENS = ("weight", "mask", "pad", "drop")


def numbers(length):
    return tf.data.Dataset.range(length).map(lambda i: (i, -i))


def epoch(dataset):
    """One pass as a list of (indexes, weights)."""
    return [(x.numpy(), w.numpy()) for x, _, w in dataset]


def real(*passes):
    return [int(i) for batches in passes for batch in batches for i, w in zip(*batch, strict=True) if w]


@pytest.mark.parametrize("uneven", UNEVENS)
@pytest.mark.parametrize("order", ["strided", "contiguous"])
@pytest.mark.parametrize(("length", "batch_size", "size"), CASES)
def test_the_dataset_holds_what_the_shard_says(length, batch_size, size, order, uneven):
    for rank in range(size):
        options = {"order": order, "uneven": uneven, "rank": rank, "size": size}
        plan = Shard(length, batch_size, **options)
        dataset = shard(numbers(length), batch_size, **options)
        assert dataset.cardinality() == plan.steps
        assert dataset.element_spec[0].shape == dataset.element_spec[2].shape == (batch_size,)
        np.testing.assert_equal(epoch(dataset), [tuple(batch) for batch in plan.batches()])


@pytest.mark.parametrize("uneven", UNEVENS)
@pytest.mark.parametrize(("length", "batch_size", "size"), CASES)
def test_shuffled_ranks_together_see_every_sample_in_each_epoch(length, batch_size, size, uneven):
    datasets = [
        shard(numbers(length), batch_size, order="shuffled", uneven=uneven, rank=rank, size=size)
        for rank in range(size)
    ]
    steps = Shard(length, batch_size, uneven=uneven, rank=0, size=size).steps
    assert {int(dataset.cardinality()) for dataset in datasets} == {steps}
    for _ in range(3):
        passes = [epoch(dataset) for dataset in datasets]
        assert {len(batches) for batches in passes} == {steps}
        seen = real(*passes)
        if uneven == "pad":
            assert set(seen) == set(range(length))
        elif uneven == "drop":
            assert len(seen) == len(set(seen)) == steps * size * batch_size
        else:
            assert sorted(seen) == list(range(length))
        for rank, batches in enumerate(passes):
            plan = Shard(length, batch_size, uneven=uneven, rank=rank, size=size)
            np.testing.assert_equal([weights for _, weights in batches], [weights for _, weights in plan.batches()])


def test_shuffled_epochs_differ_and_so_do_ranks_but_not_runs():
    def run(rank, seed=0):
        dataset = shard(numbers(40), 4, order="shuffled", seed=seed, rank=rank, size=2)
        return [tuple(real(epoch(dataset))) for _ in range(3)]

    orders = [*run(0), *run(0, seed=1)]
    assert len(set(orders)) == 6
    assert run(0) == run(0)
    assert [i // 2 for i in run(0)[0]] != [i // 2 for i in run(1)[0]]


def test_a_rank_that_makes_a_pass_more_loses_no_sample():
    first, second = (shard(numbers(11), 2, order="shuffled", rank=rank, size=2) for rank in range(2))
    for _ in first.take(1):
        pass
    tf.random.set_seed(5)  # on one rank only
    assert sorted(real(epoch(first), epoch(second))) == list(range(11))


def test_a_short_shuffle_buffer_still_deals_every_sample():
    passes = [epoch(shard(numbers(29), 2, order="shuffled", shuffle_buffer=3, rank=rank, size=3)) for rank in range(3)]
    assert sorted(real(*passes)) == list(range(29))


def test_elements_become_what_keras_unpacks():
    x, y, own = tf.range(3.0), tf.range(3), tf.constant([1, 2, 3])
    options = {"batch_size": 2, "rank": 0, "size": 2}

    def last(*parts):
        parts = parts if len(parts) > 1 else parts[0]
        return list(shard(tf.data.Dataset.from_tensor_slices(parts), **options))[-1]

    assert last(x)[1] is None
    assert last({"a": x})[0]["a"].numpy().tolist() == [0, 2]
    np.testing.assert_allclose(last(x, y)[2], [4 / 3] * 2)
    np.testing.assert_allclose(last(x, y, own)[2], [4 / 3, 4])
    steps = tf.cast(own[:, None] * tf.ones((3, 5), tf.int32), tf.float16)
    weights = last(x, y, {"a": steps, "b": own})[2]
    np.testing.assert_allclose(weights["a"], [[4 / 3] * 5, [4] * 5], rtol=1e-3)
    assert weights["a"].dtype == tf.float16
    with pytest.raises(ArgumentError, match="a tuple of 4"):
        last(x, x, x, x)


def test_a_dataset_of_unknown_length_needs_it_said():
    unknown = tf.data.Dataset.range(10).filter(lambda i: i < 9)
    with pytest.raises(ArgumentError, match=r"tf\.data\.experimental\.assert_cardinality"):
        shard(unknown, 2, rank=0, size=2)
    with pytest.raises(ArgumentError, match="endless"):
        shard(tf.data.Dataset.range(10).repeat(), 2, rank=0, size=2)
    with pytest.raises(ArgumentError, match="length=11 for a dataset of 10"):
        shard(tf.data.Dataset.range(10), 2, length=11, rank=0, size=2)
    told = unknown.apply(tf.data.experimental.assert_cardinality(9))
    for dataset, length in ((unknown, 9), (told, None)):
        parts = [shard(dataset.map(lambda i: (i, i)), 2, length=length, rank=rank, size=2) for rank in range(2)]
        assert [int(part.cardinality()) for part in parts] == [3, 3]
        assert sorted(real(*map(epoch, parts))) == list(range(9))


@pytest.mark.parametrize("order", ["strided", "contiguous", "shuffled"])
def test_running_out_of_samples_is_an_error_and_more_are_cut(order):
    unknown = numbers(10).filter(lambda i, _: i < 9)
    for length in (7, 8):
        passes = [epoch(shard(unknown, 2, length=length, order=order, rank=rank, size=2)) for rank in range(2)]
        assert sorted(real(*passes)) == list(range(length))
    too_long = shard(unknown, 2, length=11, order=order, rank=1, size=2)
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 11"):
        epoch(too_long)


def test_a_shuffle_buffer_needs_the_shuffled_order():
    with pytest.raises(ArgumentError, match="order='strided'"):
        shard(numbers(4), 2, shuffle_buffer=3, rank=0, size=1)
    with pytest.raises(ArgumentError, match="shuffle_buffer=0"):
        shard(numbers(4), 2, order="shuffled", shuffle_buffer=0, rank=0, size=1)


def test_the_result_is_not_sharded_again():
    options = shard(numbers(4), 2, rank=0, size=2).options()
    assert options.experimental_distribute.auto_shard_policy == tf.data.experimental.AutoShardPolicy.OFF


@pytest.mark.parametrize("order", ["strided", "contiguous", "shuffled"])
@pytest.mark.parametrize(("length", "batch_size", "size"), [(13, 2, 3), (9, 2, 4), (5, 4, 4)])
def test_average_of_keras_gradients_is_that_of_the_whole_batch(length, batch_size, size, order):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(length, 3)).astype(np.float32)
    y = np.arange(length) % 4
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(4)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def gradient(x, y, weights=None):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x), weights)
        return tape.gradient(loss, model.trainable_variables)

    data = tf.data.Dataset.from_tensor_slices((x, y)).enumerate().map(lambda i, xy: ((i, xy[0]), xy[1]))
    datasets = [shard(data, batch_size, order=order, rank=rank, size=size) for rank in range(size)]
    for step in zip(*datasets, strict=True):
        locals_ = [gradient(inputs, targets, weights) for (_, inputs), targets, weights in step]
        averages = [np.mean(gradients, axis=0) for gradients in zip(*locals_, strict=True)]
        samples = [int(i) for (indexes, _), _, weights in step for i, w in zip(indexes, weights, strict=True) if w]
        for average, expected in zip(averages, gradient(x[samples], y[samples]), strict=True):
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-6)


def test_fit_on_every_rank_sees_every_sample_once_an_epoch():
    seen = {}

    class Watching(keras.Model):
        def train_step(self, data):
            indexes, _, weights = keras.utils.unpack_x_y_sample_weight(data)
            seen.setdefault(self.name, []).append((indexes.numpy(), weights.numpy()))
            return {"loss": 0.0}

    for rank in range(3):
        model = Watching(name=f"rank_{rank}")
        model.compile(run_eagerly=True)
        dataset = shard(numbers(23), 2, order="shuffled", rank=rank, size=3)
        model.fit(dataset, epochs=3, verbose=0, shuffle=False)
    assert {len(steps) for steps in seen.values()} == {3 * 4}
    for number in range(3):
        assert sorted(real(*(steps[4 * number : 4 * number + 4] for steps in seen.values()))) == list(range(23))


def test_evaluation_with_the_mask_counts_every_sample_once():
    x, right = np.zeros((11, 1), np.float32), (np.arange(11) % 3 == 0).astype(np.float32)
    totals = []
    for rank in range(3):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        model.compile(loss="mse", weighted_metrics=[keras.metrics.MeanSquaredError(name="error")])
        dataset = tf.data.Dataset.from_tensor_slices((x, right[:, None]))
        options = {"uneven": "mask", "rank": rank, "size": 3}
        error = model.evaluate(shard(dataset, 2, **options), verbose=0, return_dict=True)["error"]
        totals.append(error * Shard(11, 2, **options).samples)
    np.testing.assert_allclose(sum(totals) / 11, right.mean(), rtol=1e-6)
