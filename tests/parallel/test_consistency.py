"""Replicas of a Keras model that drift apart are found in training, named, and repaired if the user wants that."""

import logging

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.tensorflow.keras as hvd
from collective.errors import ArgumentError, DivergenceError

Consistency = hvd.callbacks.ConsistencyCallback


class Drift(keras.callbacks.Callback):
    """Changes a variable on the last rank, at the end of a batch."""

    def __init__(self, at, variable):
        super().__init__()
        self.at, self.variable, self.batches = at, variable, 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.at and collective.rank() == collective.size() - 1:
            variable = self.variable()
            variable.assign(np.asarray(variable) + np.float32(0.25))


def train(*callbacks, local=False):
    layers = [
        keras.layers.Dense(3, name="first"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, name="last"),
    ]
    model = keras.Sequential([keras.Input((2,)), *layers])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    if local:
        for variable in model.layers[0].trainable_variables:
            optimizer.register_local_var(variable)
    model.compile(optimizer, "mse")
    x = np.random.default_rng(collective.rank()).normal(size=(12, 2))
    made = [
        make(model) if callable(make) and not isinstance(make, keras.callbacks.Callback) else make for make in callbacks
    ]
    own = model.layers[0].trainable_variables if local else None
    broadcast = hvd.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=own)
    model.fit(x, np.ones((12, 1)), batch_size=2, epochs=2, verbose=0, callbacks=[broadcast, *made])
    return model


@pytest.mark.parametrize("every", [4, "epoch"])
def test_the_variable_and_the_ranks_are_named(every, size):
    if size == 1:
        return
    drift = [lambda model: Drift(1, lambda: model.layers[-1].kernel), Consistency(every)]
    with pytest.raises(DivergenceError, match=rf"first '.*last/kernel.*': ranks? .* unlike rank {size - 1}"):
        train(*drift)
    drift = [lambda model: Drift(1, lambda: model.optimizer.momentums[0]), Consistency(every)]
    with pytest.raises(DivergenceError, match=r"first '.*first/kernel"):  # which follows its momentum
        train(*drift)


def test_replicas_that_are_alike_pass_and_a_rank_s_own_variables_may_differ():
    train(Consistency(1))
    train(Consistency(1), local=True)


def test_a_repaired_replica_is_that_of_rank_0(caplog, size, rank, same_on_all_ranks):
    with caplog.at_level(logging.WARNING):
        model = train(lambda model: Drift(3, lambda: model.layers[0].bias), Consistency(2, repair=True))
    for variable in [*model.trainable_variables, *model.optimizer.variables]:
        same_on_all_ranks(np.asarray(variable))
    told = [record.getMessage() for record in caplog.records if record.name == "collective"]
    assert len(told) == (1 if size > 1 and rank == 0 else 0)
    if told:
        assert "all ranks have rank 0's values now" in told[0]
        assert "first/bias" in told[0]


def test_a_number_of_batches_is_one():
    with pytest.raises(ArgumentError, match="every=0"):
        Consistency(0)
