"""Mixed precision: overflows are those of the average, so that all ranks skip a step or none does."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective.tensorflow.keras as hvd
from collective.errors import ArgumentError


def around(**options):
    return hvd.DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=8.0), **options
    )


def inside(**options):
    return keras.optimizers.LossScaleOptimizer(
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.5), **options), initial_scale=8.0
    )


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [around, inside])
def test_ranks_skip_a_step_together(make, compiled, rank, size):
    optimizer, variable = make(), keras.Variable([1.0, 1.0])

    def step(gradient):
        optimizer.apply([gradient * optimizer.dynamic_scale], [variable])

    optimizer.build([variable])
    run = tf.function(step) if compiled else step
    run(tf.constant([1.0, rank]))
    np.testing.assert_allclose(variable, [0.5, 1 - 0.5 * (size - 1) / 2])
    after = np.array(variable)
    run(tf.constant([1.0, np.inf if rank == size - 1 else 0.0]))
    np.testing.assert_array_equal(variable, after)
    assert float(optimizer.dynamic_scale) == 4.0
    assert int(optimizer.iterations) == 1
    run(tf.constant([1.0, 1.0]))
    np.testing.assert_allclose(variable, after - 0.5)
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize("make", [around, inside])
def test_scaled_gradients_are_accumulated(make, rank, size):
    optimizer, variable = make(backward_passes_per_step=2), keras.Variable([1.0])
    optimizer.build([variable])

    @tf.function
    def run(gradient):
        optimizer.apply([gradient * optimizer.dynamic_scale], [variable])

    expected = 1.0
    for value in (1.0, 2.0, np.inf if rank == 0 else 0.0, 1.0, 3.0, 4.0):
        run(tf.constant([value]))
        if value in (2.0, 4.0):
            expected -= 0.5 * (2 * value - 1)
        np.testing.assert_allclose(variable, [expected])
    assert float(optimizer.dynamic_scale) == 4.0


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_of_mixed_precision_train_alike_on_all_ranks(policy, eagerly, rank, size, same_on_all_ranks):
    layers = [keras.layers.Dense(4, dtype=policy), keras.layers.Dense(1, dtype="float32")]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.dtype_policy = policy
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse", run_eagerly=eagerly)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    x = np.random.default_rng(rank).normal(size=(12, 3)).astype(np.float32)
    x[4 * (rank + 1) % 12] *= 1e6 if policy == "mixed_float16" else 1.0  # what half precision can't hold
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0)]
    model.fit(x, np.ones((12, 1)), batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
    for variable in [*model.weights, *model.optimizer.variables]:
        same_on_all_ranks(np.asarray(variable))
        assert np.isfinite(np.asarray(variable)).all()
    if policy == "mixed_float16":
        assert float(model.optimizer.dynamic_scale) < 2**15
    else:
        assert int(model.optimizer.iterations) == 6


def test_an_optimizer_that_averages_inside_is_not_wrapped_again():
    with pytest.raises(ArgumentError, match="averaged twice"):
        hvd.DistributedOptimizer(inside())


def test_without_averaging_the_loss_scale_optimizer_does_what_it_did():
    optimizer, variable = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), 8.0), keras.Variable([1.0])
    for value in (8.0, np.nan, 4.0):
        optimizer.apply([tf.constant([value])], [variable])
    np.testing.assert_allclose(variable, [0.0])
