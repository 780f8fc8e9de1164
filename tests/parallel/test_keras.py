"""The Keras optimizer and callbacks."""

import json
import subprocess
import sys

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.keras as hvd
from collective.errors import ArgumentError


def small_model(optimizer, **options):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones")])
    model.compile(optimizer, "mse", **options)
    return model


def data(samples, value):
    return np.full((samples, 3), value, np.float32), np.zeros((samples, 2), np.float32)


def test_the_wrapped_optimizer_keeps_class_name_and_options():
    wrapped = hvd.DistributedOptimizer(keras.optimizers.Adam(0.25, clipnorm=3.0, name="mine"))
    assert type(wrapped).__name__ == "Adam"
    assert isinstance(wrapped, keras.optimizers.Adam)
    assert wrapped.get_config() == keras.optimizers.Adam(0.25, clipnorm=3.0, name="mine").get_config()


def test_the_state_of_a_built_optimizer_is_kept(rank):
    model = small_model(keras.optimizers.SGD(0.1, momentum=0.9))
    model.fit(*data(8, 1.0), verbose=0)
    wrapped = hvd.DistributedOptimizer(model.optimizer)
    assert int(wrapped.iterations) == int(model.optimizer.iterations) == 1
    np.testing.assert_array_equal(wrapped.momentums[0], model.optimizer.momentums[0])
    assert np.any(np.asarray(wrapped.momentums[0]) != 0)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (lambda: hvd.DistributedOptimizer("sgd"), "wraps a Keras 3 optimizer"),
        (lambda: hvd.DistributedOptimizer(hvd.DistributedOptimizer(keras.optimizers.SGD())), "averaged twice"),
        (lambda: hvd.DistributedOptimizer(keras.optimizers.SGD(), op=collective.Max), "averaged or summed"),
    ],
)
def test_what_cannot_be_wrapped_is_refused(wrong, rule):
    with pytest.raises(ArgumentError, match=rule):
        wrong()


def test_a_saved_model_loads_without_the_library(tmp_path, rank):
    model = small_model(hvd.DistributedOptimizer(keras.optimizers.Adam(0.125)))
    model.fit(*data(4, 1.0), verbose=0)
    path = tmp_path / f"{rank}.keras"
    model.save(path)
    code = (
        "import sys; sys.modules['collective'] = None\n"
        "import keras, json; m = keras.models.load_model(sys.argv[1])\n"
        "o = m.optimizer; print(json.dumps([type(o).__name__, float(o.learning_rate), int(o.iterations)]))"
    )
    if rank == 0:  # a process by itself: it must not find the launcher's variables
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100,
            env={"PATH": "", "HOME": str(tmp_path)}, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == ["Adam", 0.125, 1]


def test_xla_is_refused_in_plain_words(size):
    if size == 1:
        pytest.skip("one rank has nothing to send")
    model = small_model(hvd.DistributedOptimizer(keras.optimizers.SGD()), jit_compile=True)
    with pytest.raises(ArgumentError, match="Pass jit_compile=False"):
        model.fit(*data(4, 1.0), verbose=0)


def test_weights_and_optimizer_state_start_from_the_root(rank, size, same_on_all_ranks):
    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.01 * (rank + 1), momentum=0.9)), "mse")
    root = size - 1
    before = collective.allgather_object(model.get_weights())
    seen = []
    spy = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: seen.append(model.get_weights()))
    model.fit(
        *data(8, 1.0), batch_size=4, verbose=0, callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(root), spy]
    )
    for first, of_root in zip(seen[0], before[root], strict=True):
        np.testing.assert_array_equal(first, of_root)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 * size)
    for variable in [*model.weights, *model.optimizer.variables]:
        same_on_all_ranks(np.asarray(variable))


def test_metrics_are_averaged_by_samples(rank, size):
    samples, validation_samples = 4 * (rank + 1), 2 * (size - rank)
    model = small_model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.0)))
    history = model.fit(
        *data(samples, rank), batch_size=1000, verbose=0, epochs=2,
        validation_data=data(validation_samples, rank + 1.0), callbacks=[hvd.callbacks.MetricAverageCallback()],
    ).history  # fmt: skip
    counts, validation_counts = [4 * (r + 1) for r in range(size)], [2 * (size - r) for r in range(size)]
    losses, validation_losses = [(3.0 * r) ** 2 for r in range(size)], [(3.0 * (r + 1)) ** 2 for r in range(size)]
    np.testing.assert_allclose(history["loss"], np.average(losses, weights=counts), rtol=1e-6)
    np.testing.assert_allclose(history["val_loss"], np.average(validation_losses, weights=validation_counts), rtol=1e-6)


class Rates(keras.callbacks.Callback):
    """Notes the learning rate of every batch."""

    def on_train_begin(self, logs=None):
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))


def fitted_rates(callback, epochs=4, momentum=0.0):
    model = small_model(hvd.DistributedOptimizer(keras.optimizers.SGD(0.5, momentum=momentum)))
    rates = Rates()
    history = model.fit(*data(8, 0.0), batch_size=4, epochs=epochs, verbose=0, callbacks=[callback, rates]).history
    return rates.rates, history


def test_variables_that_are_local_are_not_broadcast(rank, size):
    layers = [keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(rank)) for _ in range(3)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.trainable = False
    model.compile(loss="mse")
    callback = hvd.callbacks.BroadcastGlobalVariablesCallback(size - 1, local_variables=model.layers[0].variables)
    callback.register_local_var(model.layers[1].kernel)
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        model.fit(np.ones((4, 3), np.float32), np.ones((4, 3), np.float32), callbacks=[callback], verbose=0)
    assert [float(np.mean(layer.kernel)) for layer in model.layers] == [rank, rank, size - 1]


def test_what_is_no_local_variable_is_refused():
    with pytest.raises(ArgumentError, match="local_variables are variables"):
        hvd.callbacks.BroadcastGlobalVariablesCallback(0, local_variables=[1.0])


def test_metrics_are_averaged_also_without_a_model(rank, size):
    logs = {"loss": float(rank), "accuracy": 1.0 - rank}
    hvd.callbacks.MetricAverageCallback().on_epoch_end(0, logs)
    assert logs == pytest.approx({"loss": (size - 1) / 2, "accuracy": 1 - (size - 1) / 2})


def test_warm_up_rises_from_a_rank_s_share_to_the_whole(size):
    rates, history = fitted_rates(hvd.callbacks.LearningRateWarmupCallback(0.5, warmup_epochs=2, verbose=1))
    expected = [0.5 / size * (1 + (size - 1) * step / 4) for step in (1, 2, 3, 4)] + [0.5] * 4
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    np.testing.assert_allclose(history["lr"], expected[1::2], rtol=1e-6)


def test_schedule_by_epoch_and_by_batch_within_its_epochs():
    rates, _ = fitted_rates(hvd.callbacks.LearningRateScheduleCallback(0.5, lambda epoch: 0.1**epoch, 1, 3))
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005, 0.005, 0.005], rtol=1e-5)
    rates, _ = fitted_rates(
        hvd.callbacks.LearningRateScheduleCallback(1.0, lambda epoch: 1 + epoch, staircase=False), 2
    )
    np.testing.assert_allclose(rates, [1, 1.5, 2, 2.5], rtol=1e-6)


def test_a_number_as_multiplier_is_applied_once_an_epoch():
    rates, _ = fitted_rates(hvd.callbacks.LearningRateScheduleCallback(1.0, 0.25, start_epoch=1))
    np.testing.assert_allclose(rates, [0.5, 0.5, 1, 1, 0.25, 0.25, 0.0625, 0.0625], rtol=1e-6)
    rates, _ = fitted_rates(hvd.callbacks.LearningRateScheduleCallback(1.0, 0.25, staircase=False), 2)
    np.testing.assert_allclose(rates, [1, 0.5, 0.25, 0.125], rtol=1e-6)


def test_momentum_follows_the_learning_rate():
    """With the correction, the update is v <- 0.9 (new/old) v - new g (Goyal et al. 2017)."""
    model = small_model(keras.optimizers.SGD(1.0, momentum=0.9))
    schedule = hvd.callbacks.LearningRateScheduleCallback(0.1, lambda epoch: 0.5**epoch)
    gradients, weights = [], [model.get_weights()[0].copy()]
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights()[0].copy())
    )
    model.fit(*data(4, 1.0), epochs=3, batch_size=4, verbose=0, callbacks=[schedule, note])
    velocity, rate = np.zeros_like(weights[0]), 0.1
    for epoch in range(3):
        new = 0.1 * 0.5**epoch
        bias = -sum(gradients) if gradients else 0
        output = weights[epoch].sum(axis=0) + bias
        gradient = output  # d/dw of the mean of the squares of two outputs, for inputs of one
        velocity = 0.9 * (new / rate) * velocity - new * gradient
        np.testing.assert_allclose(weights[epoch + 1] - weights[epoch], velocity, rtol=1e-4)
        gradients.append(-velocity[0])  # the bias moves as every row of the weights does
        rate = new


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras.optimizers.RMSprop])
def test_momentum_is_corrected_where_the_rate_is_part_of_it(optimizer, size):
    """RMSprop's momentum accumulates steps, Adam's accumulates gradients, whatever the rate was."""
    options = {"momentum": 0.9} if optimizer is keras.optimizers.RMSprop else {}
    scaled = keras.optimizers.LossScaleOptimizer(hvd.DistributedOptimizer(optimizer(1.0, **options)), 4.0)
    model = small_model(scaled)
    model.fit(*data(4, 1.0), verbose=0)
    before = [np.array(momentum) for momentum in scaled.inner_optimizer._momentums]
    callback = hvd.callbacks.LearningRateScheduleCallback(1.0, lambda epoch: 0.5)
    callback.set_model(model)
    callback.on_epoch_begin(0)
    callback.on_batch_begin(0)
    assert float(scaled.learning_rate) == 0.5
    for momentum, old in zip(scaled.inner_optimizer._momentums, before, strict=True):
        assert np.any(old)
        np.testing.assert_allclose(momentum, old * (0.5 if options else 1.0), rtol=1e-6)


def test_the_best_model_is_kept_where_the_callback_is_told(tmp_path, rank):
    import collective.tensorflow.keras as tensorflow_hvd

    checkpoints = [
        hvd.callbacks.BestModelCheckpoint("loss", 0, "min", "epoch"),
        tensorflow_hvd.callbacks.BestModelCheckpoint("loss", 0, True, "min", "epoch"),
    ]
    model = small_model(hvd.DistributedOptimizer(keras.optimizers.SGD(10.0)))  # which diverges
    with pytest.raises(ArgumentError, match="Set the callback's filepath"):
        model.fit(*data(4, 1.0), verbose=0, callbacks=checkpoints[:1])
    checkpoints[0].filepath, checkpoints[1].filepath = str(tmp_path / "best.keras"), str(tmp_path / "best.weights.h5")
    weights = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(model.get_weights()))
    model.fit(*data(4, 1.0), verbose=0, epochs=3, callbacks=[*checkpoints, note])
    best = keras.models.load_model(checkpoints[0].filepath)
    for value, first in zip(best.get_weights(), weights[0], strict=True):
        np.testing.assert_array_equal(value, first)
    assert np.any(weights[0][0] != weights[2][0])
    model.load_weights(checkpoints[1].filepath)
    np.testing.assert_array_equal(model.get_weights()[0], weights[0][0])


def test_a_schedule_by_batch_needs_the_number_of_batches(monkeypatch):
    callback = hvd.callbacks.LearningRateScheduleCallback(0.5, lambda epoch: 1.0, staircase=False)
    callback.set_params({"steps": None})
    with pytest.raises(ArgumentError, match="Pass steps_per_epoch to LearningRateScheduleCallback"):
        callback.on_train_begin()
