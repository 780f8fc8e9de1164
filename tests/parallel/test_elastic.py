"""States that training can go back to, and the loop that does so."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.keras as hvd
from collective.common.elastic import MOST_RETRIES, ObjectState, run
from collective.errors import ArgumentError, MismatchError
from collective.tensorflow.elastic import TensorFlowState


def model_of(value):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, activation="softmax")])
    model.set_weights([np.full((2, 2), value, np.float32), np.full(2, value, np.float32)])
    return model


def test_objects_are_those_of_rank_0_after_sync_and_go_back_to_the_last_commit(rank):
    state = ObjectState(epoch=10 + rank, history=[rank])
    state.sync()
    assert (state.epoch, state.history) == (10, [0])
    state.epoch, state.history = 11, [1]
    state.history.append(2)
    state.restore()
    assert (state.epoch, state.history) == (10, [0])
    state.epoch = 12
    state.history.append(5)
    state.commit()
    state.history.append(6)
    state.restore()
    assert (state.epoch, state.history, state.commits) == (12, [0, 5], 1)


def test_a_keras_model_and_its_optimizer_go_back(rank):
    model, other = model_of(1.0 + rank), model_of(7.0)
    optimizer = keras.optimizers.SGD(0.1 * (rank + 1), momentum=0.9)
    optimizer.build(model.trainable_variables)
    state = hvd.elastic.KerasState(model, optimizer, batch=20 + rank, epoch=10 + rank)
    state.sync()
    for weight in model.get_weights():
        np.testing.assert_array_equal(weight, np.ones_like(weight))
    assert (state.batch, state.epoch) == (20, 10)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    optimizer.apply([tf.ones_like(variable) for variable in model.trainable_variables])
    model.set_weights(other.get_weights())
    state.batch = 21
    state.restore()
    for weight in model.get_weights():
        np.testing.assert_array_equal(weight, np.ones_like(weight))
    assert state.batch == 20
    assert int(optimizer.iterations) == 0
    np.testing.assert_array_equal(optimizer.variables[2], np.zeros((2, 2)))
    model.set_weights(other.get_weights())
    state.commit()
    model.set_weights(model_of(3.0).get_weights())
    state.restore()
    np.testing.assert_array_equal(model.get_weights()[0], np.full((2, 2), 7.0))


def test_variables_go_back(rank):
    variable = tf.Variable([1.0 + rank])
    state = TensorFlowState([variable], step=rank)
    state.sync()
    variable.assign([5.0])
    state.restore()
    assert (variable.numpy()[0], state.step) == (1.0, 0)


def test_training_goes_on_from_the_last_commit_after_a_failure(rank, size):
    begun = []

    @run
    def train(state, more):
        begun.append(state.step)
        while state.step < 6:
            # In the fourth step, once, one rank's array has another shape.
            odd = state.step == 4 and len(begun) == 1 and rank == 0 and size > 1
            total = collective.allreduce(np.ones(4 if odd else 3), collective.Sum)
            state.total += float(total[0])
            state.step += 1
            if state.step % 2 == 0:
                state.commit()
        return state.total + more

    state = ObjectState(step=rank, total=float(rank))
    resets = []
    state.register_reset_callbacks([lambda: resets.append(collective.size())])
    assert train(state, 1) == 6 * size + 1
    assert begun == ([0, 4] if size > 1 else [0])
    assert resets == ([size] if size > 1 else [])


def test_what_fails_every_time_is_raised_in_the_end(rank, size):
    if size == 1:
        return
    tries = []

    @run
    def train(state):
        tries.append(1)
        collective.allreduce(np.ones(3 + rank))

    with pytest.raises(MismatchError):
        train(ObjectState(step=0))
    assert len(tries) == MOST_RETRIES + 1


def test_a_wrong_argument_is_raised_at_once():
    @run
    def train(state):
        collective.allreduce(np.array([object()]))

    with pytest.raises(ArgumentError):
        train(ObjectState(step=0))


def test_callbacks_keep_the_place_in_training(rank, size):
    model = model_of(1.0)
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    state = hvd.elastic.KerasState(model, batch=0, epoch=2)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((state.epoch, state.batch, state.commits))

    callbacks = [
        hvd.elastic.UpdateBatchStateCallback(state),
        hvd.elastic.UpdateEpochStateCallback(state),
        hvd.elastic.CommitStateCallback(state, batches_per_commit=2),
        Watch(),
    ]
    model.fit(np.ones((12, 2)), np.ones((12, 2)), batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
    assert seen == [(2, 1, 0), (2, 2, 1), (2, 3, 1), (3, 1, 2), (3, 2, 3), (3, 3, 3)]
    assert (state.epoch, state.batch, state.commits) == (4, 0, 4)
