"""Models that were saved while they trained on all ranks, and train on."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.keras as keras_hvd
import collective.tensorflow.keras as hvd


class Own(keras.optimizers.RMSprop):
    """An optimizer that Keras doesn't know."""


def decaying(rate):
    return keras.optimizers.schedules.ExponentialDecay(rate, 100, 0.5)


OPTIMIZERS = {
    "rmsprop": lambda: keras.optimizers.RMSprop(0.25, momentum=0.5),
    "schedule": lambda: keras.optimizers.Adam(decaying(0.25)),
    "own": lambda: Own(0.25),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.25, momentum=0.5), 4.0),
    "loss scale, own": lambda: keras.optimizers.LossScaleOptimizer(Own(0.25), 4.0),
}


def trained(optimizer, rank, path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones")])
    # Keras itself does not load an .h5 file that has "mse" by this name.
    model.compile(optimizer, keras.losses.MeanSquaredError())
    step(model, rank)
    model.save(path)
    return model


def step(model, rank):
    model.train_on_batch(np.full((4, 3), rank + 1, np.float32), np.zeros((4, 2), np.float32))


def check_same_and_training_on(model, loaded, rank, same_on_all_ranks):
    assert type(loaded.optimizer).__name__ == type(model.optimizer).__name__
    for value, saved in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, saved)
    for each in (model, loaded):
        step(each, rank)
    for weight, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-6)
        same_on_all_ranks(weight)


@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_loaded_model_trains_on_with_the_state_it_had(make, ending, tmp_path, rank, same_on_all_ranks):
    path = tmp_path / f"{rank}.{ending}"
    model = trained(hvd.DistributedOptimizer(make()), rank, path)
    custom = [Own] if "Own" in (type(model.optimizer).__name__, type(make()).__name__) else None
    inner = getattr(model.optimizer, "inner_optimizer", None)
    loaded = hvd.load_model(path, custom_optimizers=custom or ([Own] if isinstance(inner, Own) else None))
    check_same_and_training_on(model, loaded, rank, same_on_all_ranks)


def test_custom_objects_may_make_the_optimizer_and_name_other_things(tmp_path, rank, same_on_all_ranks):
    def distance(truth, prediction):
        return keras.ops.mean(keras.ops.abs(truth - prediction))

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones")])
    model.compile(keras_hvd.DistributedOptimizer(Own(decaying(0.25))), distance)
    step(model, rank)
    model.save(tmp_path / f"{rank}.keras")
    seen = []

    def make(**options):
        seen.append(options)
        return keras_hvd.DistributedOptimizer(Own(**options))

    loaded = keras_hvd.load_model(tmp_path / f"{rank}.keras", custom_objects={"Own": make, "distance": distance})
    assert isinstance(seen[0]["learning_rate"], keras.optimizers.schedules.ExponentialDecay)
    assert loaded.loss is distance
    check_same_and_training_on(model, loaded, rank, same_on_all_ranks)


def test_the_root_loads_and_the_others_start_anew(tmp_path, rank, size, same_on_all_ranks):
    def fresh():
        return hvd.DistributedOptimizer(keras.optimizers.SGD(0.01 * size, momentum=0.9))

    saved = trained(fresh(), rank, tmp_path / f"{rank}.keras")
    weights, state = saved.get_weights(), [np.asarray(variable) for variable in saved.optimizer.variables]
    if rank == 0:
        model = hvd.load_model(tmp_path / "0.keras")
    else:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(fresh(), "mse")
        assert not model.optimizer.built
    callback = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    x, y = np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32)
    model.fit(x, y, callbacks=[callback], epochs=1, initial_epoch=1, verbose=0)
    for value, expected in zip(model.get_weights(), collective.broadcast_object(weights), strict=True):
        np.testing.assert_array_equal(value, expected)
    for value, expected in zip(model.optimizer.variables, collective.broadcast_object(state), strict=True):
        np.testing.assert_array_equal(value, expected)


def test_a_model_without_an_optimizer_is_loaded_as_it_is(tmp_path, rank):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save(tmp_path / f"{rank}.keras")
    assert getattr(hvd.load_model(tmp_path / f"{rank}.keras"), "optimizer", None) is None
