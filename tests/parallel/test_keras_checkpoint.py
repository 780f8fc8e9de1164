"""Training that goes on from a checkpoint ends with the bits of training that was never interrupted."""

import logging
import random

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.tensorflow.keras as hvd
from collective.data import Position
from collective.errors import ArgumentError, CheckpointError
from collective.tensorflow.data import batches, shard

Checkpoint = hvd.callbacks.CheckpointCallback
X = np.random.default_rng(0).normal(size=(53, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.float32)[:, None]


class InterruptedError(Exception):
    """What interrupts training, on all ranks."""


class Interrupt(keras.callbacks.Callback):
    """Raises before a batch of an epoch is trained on; notes which are begun."""

    def __init__(self, epoch=None, batch=None):
        super().__init__()
        self.where, self.begun = (epoch, batch), []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.where:
            raise InterruptedError
        self.begun.append((self.epoch, batch))


@pytest.fixture
def folder(tmp_path):
    """A folder of rank 0's."""
    return collective.broadcast_object(str(tmp_path))


def of_arrays(position, **options):
    return batches((X, Y), 4, order="shuffled", position=position, **options)


def of_a_dataset(position, **options):
    return shard(tf.data.Dataset.from_tensor_slices((X, Y)), 4, order="shuffled", position=position, **options)


def new_model(seed, optimizer=None, **options):
    keras.utils.set_random_seed(seed + collective.rank())
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), Noise()]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(1)])
    model.compile(optimizer or hvd.DistributedOptimizer(keras.optimizers.Adam(0.01)), "mse", **options)
    return model


class Noise(keras.layers.Layer):
    """Draws from Keras's own seeds."""

    def call(self, values, training=False):
        return values + keras.random.normal(keras.ops.shape(values), stddev=0.01) if training else values


def fit(model, folder, make=of_arrays, interrupt=None, epochs=3, every=2, more=()):
    """Train, or go on; returns the history, the batches that were begun, and all that training would go on from."""
    position, interrupt = Position(), interrupt or Interrupt()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    checkpoint = Checkpoint(folder, every, position=position, callbacks=[plateau])
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        interrupt,
        hvd.callbacks.LearningRateWarmupCallback(0.01, warmup_epochs=2),
        hvd.callbacks.MetricAverageCallback(),
        *more,
        plateau,
        checkpoint,
    ]
    history = model.fit(make(position), epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks).history
    numbers = [random.random(), np.random.random(), np.asarray(keras.random.normal((2,)))]
    state = [np.array(variable) for variable in [*model.variables, *model.optimizer.variables]]
    return history, interrupt.begun, [*numbers, *state]


def assert_same(one, other):
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("make", [of_arrays, of_a_dataset])
def test_training_goes_on_at_the_next_batch_with_the_same_bits(folder, make):
    history, begun, end = fit(new_model(1), folder + "/undisturbed", make)
    for epoch, batch in [(0, 3), (1, 5)] if make is of_arrays else [(1, 2), (2, 0)]:
        place = f"{folder}/{epoch}-{batch}"
        with pytest.raises(InterruptedError):
            fit(new_model(1), place, make, Interrupt(epoch, batch))
        resumed = new_model(100)  # another start, other seeds
        history_again, begun_again, end_again = fit(resumed, place, make)
        assert history_again == history
        assert_same(end, end_again)
        # Keras counts those of the epoch that were done.
        assert begun_again == [place for place in begun if place[0] >= epoch]


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("moment", ["begin", "end"])
def test_an_error_while_batches_are_skipped_leaves_a_model_that_trains(folder, moment, where):
    with pytest.raises(InterruptedError):
        fit(new_model(1), folder, interrupt=Interrupt(0, 5))

    def interrupt(batch, logs):
        if batch == 1:
            raise InterruptedError

    model, position, plateau = new_model(1), Position(), keras.callbacks.ReduceLROnPlateau("loss")
    failing = keras.callbacks.LambdaCallback(**{f"on_train_batch_{moment}": interrupt})
    callbacks = [failing, Checkpoint(folder, 2, position=position, callbacks=[plateau])]
    order = callbacks if where == "before" else callbacks[::-1]
    with pytest.raises(InterruptedError):
        model.fit(of_arrays(position), verbose=0, shuffle=False, callbacks=order)
    steps = int(model.optimizer.iterations)
    model.fit(X, Y, batch_size=10, verbose=0)
    assert int(model.optimizer.iterations) == steps + 6


@pytest.mark.parametrize("kind", ["passes", "loss scale"])
def test_all_that_an_optimizer_holds_goes_on(folder, kind):
    def make(seed):
        optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
        if kind == "loss scale":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0, dynamic_growth_steps=3)
        optimizer = hvd.DistributedOptimizer(optimizer, backward_passes_per_step=3 if kind == "passes" else 1)
        return new_model(seed, optimizer, run_eagerly=kind == "loss scale")

    _, _, end = fit(make(1), folder + "/undisturbed", epochs=2)
    with pytest.raises(InterruptedError):
        fit(make(1), folder + "/disturbed", interrupt=Interrupt(1, 3), epochs=2)
    assert_same(end, fit(make(100), folder + "/disturbed", epochs=2)[2])


def test_with_fewer_samples_in_a_step_as_many_samples_are_done(folder, size):
    """As with fewer ranks, which can't be had here."""
    with pytest.raises(InterruptedError):
        fit(new_model(1), folder, interrupt=Interrupt(0, 3))  # saved after 2 steps of 4 samples on each rank
    model = new_model(2)
    fit(model, folder, lambda position: batches((X, Y), 1, order="shuffled", position=position), epochs=1)
    assert int(model.optimizer.iterations) == 2 + -(-len(X) // size) - 8


def test_what_has_ended_is_not_trained_again(folder):
    history, _, end = fit(new_model(1), folder, epochs=2)
    history_again, begun, end_again = fit(new_model(2), folder, epochs=2)
    assert begun == []
    assert history_again == history
    assert_same(end, end_again)
    _, begun, _ = fit(new_model(3), folder, epochs=4)
    assert {epoch for epoch, _ in begun} == {2, 3}


def test_training_that_was_stopped_stays_stopped(folder):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=1)
    _, begun, _ = fit(new_model(1), folder, epochs=9, more=[stop])
    assert begun[-1][0] == 1
    _, begun, _ = fit(new_model(2), folder, epochs=9)
    assert begun == []


def test_an_interrupted_epoch_begins_again_only_if_the_user_says_so(folder, caplog):
    with pytest.raises(ArgumentError, match=r"with data that can.*every=3, position=None.*repeat_epochs=True"):
        Checkpoint(folder, every=3)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": 2}

    def run(model, interrupt, **settings):
        own = slice(collective.rank(), 48, collective.size())
        model.fit(X[own], Y[own], callbacks=[interrupt, Checkpoint(folder, **settings)], **options)

    with pytest.raises(InterruptedError):
        run(new_model(1), Interrupt(1, 1), every=1, repeat_epochs=True)
    interrupt = Interrupt()
    with caplog.at_level(logging.WARNING):
        run(new_model(1), interrupt, every=1, repeat_epochs=True)
    assert interrupt.begun[0] == (1, 0)
    if collective.rank() == 0:
        assert "its first 1 batches count twice" in caplog.text


def test_what_does_not_belong_together_is_refused(folder):
    fit(new_model(1), folder, epochs=1)
    other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(9), keras.layers.Dense(1)])
    other.compile(hvd.DistributedOptimizer(keras.optimizers.Adam(0.01)), "mse")
    with pytest.raises(CheckpointError, match=r"float32\[6, 8\] in the checkpoint, float32\[6, 9\] in the model"):
        fit(other, folder)
    unbuilt = keras.Sequential([keras.layers.Dense(8)])
    unbuilt.compile("sgd", "mse")
    with pytest.raises(CheckpointError, match="Give the model an Input"):
        fit(unbuilt, folder)
    with pytest.raises(CheckpointError, match="0 beside this one, where the checkpoint has 1"):
        new_model(1).fit(of_arrays(Position()), verbose=0, shuffle=False, callbacks=[Checkpoint(folder)])
    callback = Checkpoint(folder + "/other", every=1, position=Position())
    with pytest.raises(ArgumentError, match="the dataset that fit trains on"):
        new_model(1).fit(of_arrays(Position()), verbose=0, shuffle=False, callbacks=[callback])
    with pytest.raises(ArgumentError, match="one fit"):
        new_model(1).fit(of_arrays(Position()), verbose=0, shuffle=False, callbacks=[callback])
    with pytest.raises(ArgumentError, match="state_dict and load_state_dict"):
        Checkpoint(folder, callbacks=[keras.callbacks.TerminateOnNaN()])
