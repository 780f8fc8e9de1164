"""COLLECTIVE_CHECK_FINITE=skip: a step whose gradients are not finite is left out on all ranks, its cause named."""

import logging
import os

import numpy as np
import pytest

import collective
from collective.errors import NonFiniteError, SettingError
from collective.settings import from_environment


@pytest.fixture
def skipping(caplog):
    """A job that leaves out such steps."""
    collective.shutdown()
    os.environ["COLLECTIVE_CHECK_FINITE"] = "skip"
    try:
        collective.init()
    finally:
        del os.environ["COLLECTIVE_CHECK_FINITE"]
    with caplog.at_level(logging.WARNING):
        yield
    collective.shutdown()
    collective.init()


def told(caplog):
    """What rank 0 has said, which all ranks get."""
    own = [record.getMessage() for record in caplog.records if record.name == "collective"]
    text = collective.broadcast_object(own)
    assert own == ([] if collective.rank() else text)
    caplog.clear()
    return text


def test_a_value_is_one_of_three_or_a_switch():
    assert [
        from_environment({"COLLECTIVE_CHECK_FINITE": text}).check_finite for text in ("0", "1", "pass", "raise", "skip")
    ] == ["pass", "raise", "pass", "raise", "skip"]
    with pytest.raises(SettingError, match="Did you mean skip"):
        from_environment({"COLLECTIVE_CHECK_FINITE": "skipp"})


def test_other_values_than_gradients_pass(skipping, rank, size):
    assert np.isnan(collective.allreduce(np.array([np.nan if rank == 0 else 1.0])))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_keras_leaves_weights_slots_and_iterations_as_they_are(skipping, caplog, compiled, passes, rank, size):
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.keras as hvd

    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.5), backward_passes_per_step=passes)
    variables = [keras.Variable([1.0, 1.0], name="kernel"), keras.Variable([2.0], name="bias")]

    def step(value):
        optimizer.apply([tf.stack([1.0, value]), tf.ones([1])], variables)

    run = tf.function(step) if compiled else step
    for value in [1.0] * passes:
        run(tf.constant(value))
    before = [np.array(each) for each in [*variables, *optimizer.variables]]
    assert before[0][1] < 1.0
    for value in [1.0] * (passes - 1) + [np.nan if rank == size - 1 else 1.0]:
        run(tf.constant(value))
    after = [np.array(each) for each in [*variables, *optimizer.variables]]
    after[2] = after[2] - (passes - 1)  # every pass but the last one counts as an iteration
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    (text,) = told(caplog)
    assert f"left out on all ranks, as reduced gradients are not finite. kernel: not finite on rank {size - 1}" in text
    assert "bias" not in text
    for value in [1.0] * passes:
        run(tf.constant(value))
    assert np.array(variables[0])[1] < before[0][1]
    assert told(caplog) == []


def test_training_with_keras_goes_on_without_the_bad_batch(skipping, caplog, rank, size, same_on_all_ranks):
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.keras as hvd

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1)])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.Adam()), "mse")
    x = np.ones((12, 3), np.float32)
    x[5] = np.inf if rank == 0 else 1.0
    broadcast = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    model.fit(x, np.ones((12, 1)), batch_size=4, shuffle=False, verbose=0, callbacks=[broadcast])
    assert int(model.optimizer.iterations) == 2
    for variable in [*model.weights, *model.optimizer.variables]:
        assert np.isfinite(np.asarray(variable)).all()
        same_on_all_ranks(np.asarray(variable))
    (text,) = told(caplog)
    assert "first/kernel: not finite on rank 0; " in text
    assert "and 1 more" in text


def test_a_tape_cannot_leave_out_a_step(skipping, rank, size):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.tensorflow as hvd

    variable = tf.Variable([1.0], name="weights")
    with tf.GradientTape() as tape:
        loss = variable * (np.inf if rank == 0 else 1.0)
    with pytest.raises(NonFiniteError, match="weights:0: not finite on rank 0"):
        hvd.DistributedGradientTape(tape).gradient(loss, [variable])


@pytest.mark.parametrize("graph", [False, True])
def test_optimizers_of_tf1_leave_it_out(skipping, caplog, graph, rank, size):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.tensorflow as hvd

    v1 = tf.compat.v1

    def make():
        optimizer = hvd.DistributedOptimizer(v1.train.MomentumOptimizer(0.5, 0.9))
        return optimizer, v1.get_variable("weights", initializer=[1.0, 1.0], use_resource=True)

    values = [[1.0, 1.0], [1.0, np.nan if rank == 0 else 1.0], [1.0, 1.0]]
    if graph:
        with tf.Graph().as_default(), v1.Session() as session:
            optimizer, variable = make()
            given, count = v1.placeholder(tf.float32, [2]), v1.train.create_global_step()
            pairs = optimizer.compute_gradients(tf.reduce_sum(variable * given), [variable])
            train = optimizer.apply_gradients(pairs, global_step=count)
            session.run(v1.global_variables_initializer())
            for value in values:
                session.run(train, {given: value})
            result, steps = session.run([variable, count])
        assert steps == 2
    else:
        optimizer, variable = hvd.DistributedOptimizer(v1.train.MomentumOptimizer(0.5, 0.9)), tf.Variable([1.0, 1.0])
        for value in values:
            pairs = optimizer.compute_gradients(lambda value=value: tf.reduce_sum(variable * value), [variable])
            optimizer.apply_gradients(pairs)
        result = variable.numpy()
    np.testing.assert_allclose(result, 1 - 0.5 - 0.95)
    (text,) = told(caplog)
    assert "not finite on rank 0" in text


@pytest.mark.parametrize("way", ["step", "synchronize", "closure"])
def test_torch_leaves_parameters_and_state_as_they_are(skipping, caplog, way, rank, size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import collective.torch as hvd

    model = torch.nn.Linear(2, 1)
    hvd.broadcast_parameters(model.state_dict())
    named = model.named_parameters()
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(model.parameters(), 0.5), named_parameters=named)

    def step(value):
        def loss():
            optimizer.zero_grad()
            result = (model(torch.ones(1, 2)) * value).sum()
            result.backward()
            return result

        if way == "closure":
            return optimizer.step(loss)
        loss()
        if way == "step":
            return optimizer.step()
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            return optimizer.step()

    def state():
        parts = [*model.parameters(), *(value for each in optimizer.state.values() for value in each.values())]
        return [part.detach().clone() for part in parts]

    step(1.0)
    before = state()
    step(float("inf") if rank == size - 1 else 1.0)
    assert all(torch.equal(one, other) for one, other in zip(before, state(), strict=True))
    (text,) = told(caplog)
    assert f"weight: not finite on rank {size - 1}; bias: not finite on rank {size - 1}" in text
    step(1.0)
    assert not torch.equal(before[0], state()[0])
    assert told(caplog) == []
