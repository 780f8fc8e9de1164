"""The promise: N ranks on shards end with the weights of one process on the whole batches.

Every rank also trains the reference, alone and without the library, on the global batches.
"""

import itertools

import numpy as np
import pytest

import collective
from collective.data import Shard

SAMPLES, FEATURES, CLASSES = 101, 6, 3  # no number of ranks divides 101: the last batch is never full
GLOBAL_BATCH = 24  # divided by 1, 2, 3 and 4 ranks
EPOCHS = 3
ORDERS = ["strided", "shuffled"]

random = np.random.default_rng(5)
IMAGES = random.normal(size=(SAMPLES, FEATURES)).astype(np.float32)
LABELS = random.integers(0, CLASSES, SAMPLES)
START = (random.normal(size=(FEATURES, CLASSES)) * 0.1).astype(np.float32)


def global_batches(order):
    """The batches of one process: indexes, no sample twice."""
    whole = Shard(SAMPLES, GLOBAL_BATCH, order=order, rank=0, size=1)
    for epoch in range(EPOCHS):
        for indexes, weights in whole.batches(epoch):
            yield indexes[weights > 0]


def own_batches(order, size):
    shard = Shard(SAMPLES, GLOBAL_BATCH // size, order=order)
    return itertools.chain.from_iterable(shard.batches(epoch) for epoch in range(EPOCHS))


def softmax_gradient(weights, images, labels, sample_weights):
    scores = images @ weights
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[np.arange(len(labels)), labels] -= 1
    return images.T @ (probabilities * sample_weights[:, None]) / len(labels)


class NumpySgd:
    def __init__(self):
        self.velocity = np.zeros_like(START)

    def step(self, weights, gradient):
        self.velocity = 0.9 * self.velocity - 0.1 * gradient
        weights += self.velocity


class NumpyAdam:
    def __init__(self):
        self.first, self.second, self.steps = np.zeros_like(START), np.zeros_like(START), 0

    def step(self, weights, gradient):
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        corrected = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        weights -= 0.01 * corrected[0] / (np.sqrt(corrected[1]) + 1e-3)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("optimizer", [NumpySgd, NumpyAdam])
def test_numpy(optimizer, order, rank, size, same_on_all_ranks):
    alone, reference = optimizer(), START.copy()
    for indexes in global_batches(order):
        reference_gradient = softmax_gradient(reference, IMAGES[indexes], LABELS[indexes], np.ones(len(indexes)))
        alone.step(reference, reference_gradient.astype(np.float32))

    weights = START.copy() if rank == 0 else np.full_like(START, np.nan)
    collective.broadcast(weights, 0, out=weights)
    ours = optimizer()
    for indexes, sample_weights in own_batches(order, size):
        gradient = softmax_gradient(weights, IMAGES[indexes], LABELS[indexes], sample_weights).astype(np.float32)
        ours.step(weights, collective.allreduce(gradient))
    np.testing.assert_allclose(weights, reference, rtol=1e-5, atol=1e-5)
    same_on_all_ranks(weights)


def keras_model(keras, seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([
        keras.Input((FEATURES,)),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(CLASSES, activation="softmax"),
    ])  # fmt: skip


def optimizers(keras):
    return {
        "SGD with momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        "Adam": lambda: keras.optimizers.Adam(0.01, epsilon=1e-3),
        "clipped SGD": lambda: keras.optimizers.SGD(0.5, global_clipnorm=0.05),
    }


@pytest.mark.parametrize("name", ["SGD with momentum", "Adam", "clipped SGD"])
def test_keras_fit(name, rank, size, same_on_all_ranks):
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    import collective.keras as hvd

    make = optimizers(keras)[name]
    reference = keras_model(keras, 1)
    reference.compile(make(), "sparse_categorical_crossentropy")
    for indexes in global_batches("shuffled"):
        reference.train_on_batch(IMAGES[indexes], LABELS[indexes])

    model = keras_model(keras, 100 + rank)  # every rank starts elsewhere; rank 0's start must count
    if rank == 0:
        model = keras_model(keras, 1)
    model.compile(hvd.DistributedOptimizer(make()), "sparse_categorical_crossentropy")
    steps = Shard(SAMPLES, GLOBAL_BATCH // size).steps
    batches = ((IMAGES[i], LABELS[i], w) for i, w in own_batches("shuffled", size))
    model.fit(
        batches, steps_per_epoch=steps, epochs=EPOCHS, verbose=0, shuffle=False,
        callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0)],
    )  # fmt: skip
    for ours, theirs in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        same_on_all_ranks(ours)


@pytest.mark.parametrize("name", ["SGD with momentum", "Adam"])
def test_tensorflow_custom_loop(name, rank, size, same_on_all_ranks):
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")
    import collective.tensorflow as hvd

    loss_of = keras.losses.SparseCategoricalCrossentropy()

    def train(model, optimizer, batches, wrap):
        @tf.function(reduce_retracing=True)
        def step(images, labels, weights):
            with tf.GradientTape() as tape:
                loss = loss_of(labels, model(images, training=True), sample_weight=weights)
            tape = wrap(tape)
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        for indexes, weights in batches:
            step(tf.constant(IMAGES[indexes]), tf.constant(LABELS[indexes]), tf.constant(weights))

    reference = keras_model(keras, 1)
    optimizer = optimizers(keras)[name]()
    optimizer.build(reference.trainable_variables)
    whole = ((indexes, np.ones(len(indexes), np.float32)) for indexes in global_batches("strided"))
    train(reference, optimizer, whole, lambda tape: tape)

    model = keras_model(keras, 1 if rank == 0 else 200 + rank)
    optimizer = optimizers(keras)[name]()
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables(model.variables + optimizer.variables, root_rank=0)
    train(model, optimizer, own_batches("strided", size), hvd.DistributedGradientTape)
    for ours, theirs in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        same_on_all_ranks(ours)


def test_the_same_job_twice_gives_the_same_bits(rank, size):
    def train():
        weights = START.copy()
        for indexes, sample_weights in own_batches("shuffled", size):
            gradient = softmax_gradient(weights, IMAGES[indexes], LABELS[indexes], sample_weights)
            weights -= 0.1 * collective.allreduce(gradient.astype(np.float32))
        return weights.tobytes()

    assert train() == train()
