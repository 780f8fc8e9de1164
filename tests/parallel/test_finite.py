"""COLLECTIVE_CHECK_FINITE: values that are no numbers are an error on all ranks, which names whose they were."""

import os

import ml_dtypes
import numpy as np
import pytest

import collective
from collective import Average, Sum
from collective.errors import NonFiniteError


@pytest.fixture
def checking():
    """A job in which results are looked at."""
    collective.shutdown()
    os.environ["COLLECTIVE_CHECK_FINITE"] = "1"
    try:
        collective.init()
    finally:
        del os.environ["COLLECTIVE_CHECK_FINITE"]
    yield
    collective.shutdown()
    collective.init()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.complex64])
@pytest.mark.parametrize("elements", [3, 5000, 3_000_000])
def test_the_rank_and_the_array_are_named_on_all_ranks(checking, rank, size, dtype, elements):
    bad = size - 1
    values = np.ones(elements, dtype)
    poisoned = values.copy()
    if rank == bad:
        poisoned[elements // 2] = np.nan
    group = [values, poisoned, np.ones(2, np.int64)]
    with pytest.raises(NonFiniteError, match=f"array 2 of 3, .*not finite on rank {bad}"):
        collective.grouped_allreduce(group, Average, name="gradients")
    with pytest.raises(NonFiniteError, match=f"allreduce 'loss'.*not finite on rank {bad}"):
        collective.allreduce(poisoned, Sum, name="loss")
    handle = collective.allreduce_async(poisoned, Sum, name="later")
    with pytest.raises(NonFiniteError, match=f"not finite on rank {bad}"):
        handle.wait()
    np.testing.assert_array_equal(collective.allreduce(values, Sum), values * size)


def test_a_sum_that_is_too_large_is_told_from_values_that_are(checking, size):
    if size == 1:
        return
    with pytest.raises(NonFiniteError, match="finite on all ranks, so that the sum is too large"):
        collective.allreduce(np.full(10, 3e38, np.float32), Sum)
    # Each result is finite, though the sum of all of them is not.
    values = np.full(100, 5e37, np.float32)
    np.testing.assert_array_equal(collective.allreduce(values, Sum), values * np.float32(size))


def test_in_place_the_array_is_named(checking, rank):
    values = np.full(100, np.inf if rank == 0 else 1.0)
    with pytest.raises(NonFiniteError, match="array 1 of 1, .*reduced in place"):
        collective.allreduce(values, Sum, out=values)


def test_by_default_such_values_pass(rank, size):
    result = collective.allreduce(np.array([np.nan if rank == 0 else 1.0, 1.0]), Sum)
    assert np.isnan(result[0])
    assert result[1] == size


def test_keras_names_the_variable(checking, rank, size):
    keras = pytest.importorskip("keras", reason="Keras is not installed")
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.keras as hvd

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1)])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    x = np.full((4, 3), np.inf if rank == 0 else 1.0, np.float32)
    if size > 1:
        with pytest.raises(tf.errors.UnknownError, match=r"first/kernel, float32\[3, 2\]: not finite on rank 0"):
            model.fit(x, np.ones((4, 1)), verbose=0)


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_tape_names_the_variable(checking, monkeypatch, compiled, overlaps, rank, size):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.tensorflow as hvd

    monkeypatch.setattr("collective.world.cross_size", lambda: 2 if overlaps else 1)
    variables = [tf.Variable(tf.ones(shape), name=f"part{shape}") for shape in (1, 300_000, 2)]

    def derive(factor):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(variables[0]) + tf.reduce_sum(variables[1]) + tf.reduce_sum(variables[2]) * factor
        return hvd.DistributedGradientTape(tape).gradient(loss, variables)

    run = tf.function(derive) if compiled else derive
    if size > 1:
        with pytest.raises((NonFiniteError, tf.errors.UnknownError), match="part2:0, float32.* on rank 0"):
            run(tf.constant(np.inf if rank == 0 else 1.0))
    assert [gradient.shape for gradient in run(tf.constant(1.0))] == [1, 300_000, 2]


@pytest.mark.parametrize("way", ["together", "overlapping", "Adasum", "without names"])
def test_torch_names_the_parameter(checking, monkeypatch, way, rank, size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import collective.torch as hvd

    if size == 1:
        return
    monkeypatch.setattr("collective.torch.gradients.overlap_pays", lambda: way == "overlapping")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    named = None if way == "without names" else model.named_parameters()
    op = hvd.Adasum if way == "Adasum" else hvd.Average
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), named_parameters=named, op=op)
    if rank == 0:
        model[1].weight.register_hook(lambda gradient: gradient * np.nan)
    model(torch.ones(1, 2)).sum().backward()
    found = {"without names": r"of shape \[1, 2\], .* on rank 0", "Adasum": "1.weight, "}
    with pytest.raises(NonFiniteError, match="Received: " + found.get(way, "1.weight, .* not finite on rank 0")):
        optimizer.step()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_sparse_gradient_of_tensorflow_is_looked_at(checking, compiled, rank, size):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import collective.tensorflow as hvd

    table = tf.Variable(tf.ones((4, 2)), name="table")

    def derive(factor):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.gather(table, [1, 2])) * factor
        return hvd.DistributedGradientTape(tape).gradient(loss, [table])

    run = tf.function(derive) if compiled else derive
    if size > 1:
        with pytest.raises((NonFiniteError, tf.errors.UnknownError), match="table:0: not finite on rank 0"):
            run(tf.constant(np.inf if rank == 0 else 1.0))
    (gradient,) = run(tf.constant(1.0))
    np.testing.assert_array_equal(tf.convert_to_tensor(gradient), [[0, 0], [1, 1], [1, 1], [0, 0]])


def test_a_sparse_gradient_of_torch_is_looked_at(checking, rank, size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import collective.torch as hvd

    if size == 1:
        return
    table = torch.nn.Embedding(4, 2, sparse=True)
    named = [("table", table.weight)]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(table.parameters(), 0.1), named_parameters=named)
    (table(torch.tensor([1, 2])).sum() * (np.inf if rank == 0 else 1.0)).backward()
    with pytest.raises(NonFiniteError, match="table: not finite on rank 0"):
        optimizer.step()
    optimizer.zero_grad()
    table(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
