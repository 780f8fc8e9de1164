"""Gradients of several backward passes: added up on each rank, then averaged over ranks and applied once."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective.keras as keras_hvd
import collective.tensorflow.keras as hvd
from collective.errors import ArgumentError

PASSES = 3


def network():
    layers = [keras.layers.Dense(4, activation="tanh", kernel_initializer="ones"), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.set_weights([np.linspace(-1, 1, weight.size).reshape(weight.shape) for weight in model.get_weights()])
    return model


def samples(number):
    draw = np.random.default_rng(7)
    return draw.normal(size=(number, 3)).astype(np.float32), draw.normal(size=(number, 2)).astype(np.float32)


def reference(make, batches, size, average):
    """One process: the mean over ranks of the sums (or means) of their passes, and an update every PASSES passes."""
    model, optimizer = network(), make()
    optimizer.build(model.trainable_variables)
    sums = [np.zeros(variable.shape, np.float32) for variable in model.trainable_variables]
    for number, step in enumerate(batches, 1):
        for x, y in step:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            gradients = tape.gradient(loss, model.trainable_variables)
            sums = [total + np.asarray(gradient) / size for total, gradient in zip(sums, gradients, strict=True)]
        if number % PASSES:
            optimizer._iterations.assign_add(1)
        else:
            divisor = PASSES if average else 1
            optimizer.apply([tf.constant(total / divisor) for total in sums], model.trainable_variables)
            sums = [np.zeros_like(total) for total in sums]
    return model


def shares(steps, size, batch=2):
    """Batches of every step and rank, and this order of samples for ranks that read them one after another."""
    x, y = samples(steps * size * batch)
    pieces = [[slice((s * size + r) * batch, (s * size + r + 1) * batch) for r in range(size)] for s in range(steps)]
    return [[(x[piece], y[piece]) for piece in step] for step in pieces]


OPTIMIZERS = {
    "sgd with clipping": lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.05),
    "adam": lambda: keras.optimizers.Adam(0.05),
}


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("eagerly", [False, True])
def test_fit_accumulates_as_one_process_does(make, eagerly, average, rank, size):
    steps = 2 * PASSES + 1
    batches = shares(steps, size)
    model = network()
    wrapped = hvd.DistributedOptimizer(make(), backward_passes_per_step=PASSES, average_aggregated_gradients=average)
    assert int(wrapped._agg_helper.counter.numpy()) == 0
    model.compile(wrapped, "mse", run_eagerly=eagerly)
    mine = [np.concatenate([step[rank][part] for step in batches]) for part in (0, 1)]
    model.fit(*mine, batch_size=2, shuffle=False, verbose=0)
    assert int(wrapped._agg_helper.counter.numpy()) == 1
    assert int(wrapped.iterations.numpy()) == steps
    expected = reference(make, batches, size, average)
    for weight, of_one in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, of_one, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("call", ["apply_gradients", "apply", "compute_gradients"])
def test_loops_of_one_s_own_accumulate(call, compiled, rank, size):
    batches = shares(2 * PASSES, size)
    model = network()
    wrapped = keras_hvd.DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), backward_passes_per_step=PASSES)
    if call == "apply":
        wrapped.build(model.trainable_variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        if call == "compute_gradients":
            wrapped.apply_gradients(wrapped.compute_gradients(loss, model.trainable_variables, tape=tape))
            return
        gradients = tape.gradient(loss, model.trainable_variables)
        if call == "apply":
            wrapped.apply(gradients)
        else:
            wrapped.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    run = tf.function(step) if compiled else step
    for number, all_ranks in enumerate(batches, 1):
        run(*(tf.constant(part) for part in all_ranks[rank]))
        assert int(wrapped._agg_helper.counter.numpy()) == number % PASSES
        assert int(wrapped.iterations.numpy()) == number
    expected = reference(lambda: keras.optimizers.SGD(0.1, momentum=0.9), batches, size, False)
    for weight, of_one in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, of_one, atol=1e-5)


class Adding(keras.optimizers.Optimizer):
    """Adds gradients to variables."""

    def __init__(self, name="adding", learning_rate=0.1, **options):
        super().__init__(learning_rate=learning_rate, name=name, **options)

    def update_step(self, gradient, variable, learning_rate):
        variable.assign_add(gradient)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("local", [0, 2])
def test_tensorflow_variables_and_lists_of_them(average, local, rank, size):
    """Sums of four passes; local variables get their own gradient divided by the number of ranks."""
    wrapped = hvd.DistributedOptimizer(
        Adding(), backward_passes_per_step=4, average_aggregated_gradients=average, sparse_as_dense=True
    )
    xs = [tf.Variable([0.0]) for _ in range(4)]
    ys = [tf.Variable([1.0, 2.0]) for _ in range(4)]
    for variable in [*xs[:local], *ys[:local]]:
        wrapped.register_local_var(variable)

    @tf.function
    def step():
        def loss():
            return tf.stack(xs) - (rank + 1.0) * tf.gather(tf.stack(ys), [0], axis=1)

        pairs = wrapped._compute_gradients(loss, var_list=[xs, ys])
        wrapped.apply_gradients(pairs, experimental_aggregate_gradients=False)

    for number in range(1, 11):
        step()
        updates = number // 4 * (1 if average else 4)
        for place in range(4):
            x = updates / size if place < local else updates
            y = updates * (rank + 1) / size if place < local else updates * (size + 1) / 2
            np.testing.assert_allclose(xs[place], [x], rtol=1e-6)
            np.testing.assert_allclose(ys[place], [1 - y, 2], rtol=1e-5)
        assert int(wrapped.iterations.numpy()) == number
    assert int(wrapped._agg_helper.counter.numpy()) == 2


def test_an_infinite_gradient_is_gone_with_its_update():
    variable = tf.Variable(0.0)
    wrapped = hvd.DistributedOptimizer(keras.optimizers.SGD(), backward_passes_per_step=2)
    for factor in (np.inf, 1.0, 1.0, 1.0):
        pairs = wrapped._compute_gradients(lambda factor=factor: variable * factor, [variable])
        wrapped.apply_gradients(pairs)
    assert float(pairs[0][0]) == 2.0


def test_embeddings_are_accumulated_as_dense_ones_only():
    def model(optimizer):
        embedding = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(16, 2)])
        embedding.set_weights([np.full((16, 2), 3.0)])
        embedding.compile(optimizer, "mse")
        return embedding

    x, y = np.zeros((2, 4), np.int32), np.ones((2, 4, 2), np.float32)
    wrapped = hvd.DistributedOptimizer(keras.optimizers.SGD(0.25), backward_passes_per_step=2, sparse_as_dense=True)
    trained = model(wrapped)
    for _ in range(3):
        trained.train_on_batch(x, y)
    assert int(wrapped._agg_helper.counter.numpy()) == 1
    # The gradient of the mean of (w - 1)^2 over two columns is w - 1, and there are two passes.
    np.testing.assert_allclose(trained.get_weights()[0], [[3 - 0.25 * 2 * 2] * 2] + [[3, 3]] * 15, rtol=1e-6)
    with pytest.raises(ArgumentError, match="Pass sparse_as_dense=True"):
        model(hvd.DistributedOptimizer(keras.optimizers.SGD(), backward_passes_per_step=2)).train_on_batch(x, y)


def test_the_state_that_is_saved_is_the_wrapped_optimizer_s():
    model = network()
    wrapped = hvd.DistributedOptimizer(keras.optimizers.Adam(), backward_passes_per_step=2)
    plain = keras.optimizers.Adam()
    for optimizer in (wrapped, plain):
        optimizer.build(model.trainable_variables)
    assert [variable.shape for variable in wrapped.variables] == [variable.shape for variable in plain.variables]
    assert wrapped.variables() == wrapped.variables
