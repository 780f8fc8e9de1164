"""Collective operations on tensors, eagerly and in graphs, their gradients, the tape and the variables."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.tensorflow as ctf
from collective import Average, Compression, Max, Sum
from collective.tensorflow import graph, overlap
from collective.tensorflow.threads import share

MODES = {"eager": lambda function: function, "graph": tf.function}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float16", "bfloat16", "float32", "complex64"])
def test_operations_equal_those_on_arrays(dtype, mode, rank, size):
    dtype = tf.as_dtype(dtype)

    @mode
    def all_of_them(x):
        return (
            ctf.allreduce(x, op=Sum),
            ctf.allgather(x[: rank + 1]),
            ctf.broadcast(x, size - 1),
            ctf.reducescatter(x, op=Sum),
            ctf.alltoall(tf.repeat(x[:1], size, axis=0)),
            ctf.alltoall(tf.repeat(x[:1], size * 2, axis=0), [2] * size)[1],
        )

    values = np.arange(12).reshape(4, 3) % 2 if dtype == tf.bool else np.arange(12).reshape(4, 3) + rank
    x = tf.constant(values, dtype)
    array = x.numpy()
    expected = (
        collective.allreduce(array, Sum),
        collective.allgather(array[: rank + 1]),
        collective.broadcast(array, size - 1),
        collective.reducescatter(array, Sum),
        collective.alltoall(np.repeat(array[:1], size, axis=0)),
        np.full(size, 2, np.int32),
    )
    for result, right in zip(all_of_them(x), expected, strict=True):
        np.testing.assert_array_equal(result.numpy(), right)
        assert result.dtype == tf.as_dtype(right.dtype)


def test_graph_results_keep_their_static_shapes(size):
    shapes = []

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def note(x):
        shapes.extend(t.shape for t in (ctf.allreduce(x), ctf.allgather(x), ctf.broadcast(x, 0), ctf.reducescatter(x)))

    note.get_concrete_function()
    assert [tuple(shape) for shape in shapes] == [(None, 3)] * 4


def test_gradients_are_those_that_horovod_defines(mode, rank, size):
    """Each operation's gradient against what it is written out; averages where every rank has the result."""

    @mode
    def gradients(x, scale):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            losses = [
                tf.reduce_sum(scale * ctf.allreduce(x, op=Sum)),
                tf.reduce_sum(scale * ctf.allreduce(x, op=Average)),
                tf.reduce_sum(scale * ctf.broadcast(x, 0)),
                tf.reduce_sum(scale * ctf.allgather(x)),
                tf.reduce_sum(scale * ctf.reducescatter(x, op=Sum)),
                tf.reduce_sum(scale * ctf.reducescatter(x, op=Average)),
                tf.reduce_sum(scale * ctf.alltoall(x)),
            ]
        return [tape.gradient(loss, x) for loss in losses]

    rows = 2 * size
    scale = float(rank + 1)
    total = sum(range(1, size + 1))
    results = gradients(tf.ones([rows, 3]), tf.constant(scale))
    by_owner = np.repeat(np.arange(1.0, size + 1), 2)[:, None] * np.ones((rows, 3))
    mean = total / size
    expected = [total, mean, mean if rank == 0 else 0, mean, by_owner * size, by_owner, by_owner]
    for result, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.numpy(), np.broadcast_to(right, (rows, 3)), rtol=1e-6)
    with pytest.raises(Exception, match="the gradient of a reduction is defined for Average and Sum"):
        with tf.GradientTape() as tape:
            x = tf.Variable([1.0])
            loss = ctf.allreduce(x, op=Max)
        tape.gradient(loss, x)


def test_the_tape_averages_dense_sparse_and_missing_gradients(mode, rank, size):
    table = tf.Variable(tf.ones([5, 2]))
    dense = tf.Variable([1.0, 2.0])
    unused = tf.Variable(3.0)
    rows = tf.constant([rank % 5, 4])

    @mode
    def step():
        with ctf.DistributedGradientTape(tf.GradientTape()) as tape:
            loss = tf.reduce_sum(tf.gather(table, rows)) * (rank + 1.0) + tf.reduce_sum(dense) * rank
        return tape.gradient(loss, {"table": table, "dense": dense, "unused": unused})

    result = step()
    expected = np.zeros((5, 2))
    for other in range(size):
        for row in (other % 5, 4):
            expected[row] += (other + 1) / size
    assert result["unused"] is None
    np.testing.assert_allclose(result["dense"].numpy(), [(size - 1) / 2] * 2)
    np.testing.assert_allclose(tf.convert_to_tensor(result["table"]).numpy(), expected, rtol=1e-6)


def test_variables_start_from_the_root(mode, rank, size):
    keras = pytest.importorskip("keras")
    variables = [
        tf.Variable(np.full((2, 2), rank, np.float32)),
        tf.Variable(rank),
        keras.Variable(np.full(3, rank, np.float32)),
    ]
    mode(lambda: ctf.broadcast_variables(variables, size - 1))()
    for variable in variables:
        np.testing.assert_array_equal(np.asarray(variable), np.full(variable.shape, size - 1))


def test_operations_in_a_graph_run_in_program_order_on_every_rank(rank, size):
    """TensorFlow runs independent operations in any order; ours must keep one, or ranks would wait for each other."""

    @tf.function
    def many(x):
        return [ctf.allreduce(x * (number + 1.0), op=Sum, name=f"tensor {number}") for number in range(30)]

    for repetition in range(10):
        results = many(tf.fill([64 * (repetition + 1)], float(rank)))
        sums = [float(result[0]) for result in results]
        np.testing.assert_allclose(sums, [(number + 1) * size * (size - 1) / 2 for number in range(30)])


def test_xla_is_refused_in_plain_words(rank, size):
    @tf.function(jit_compile=True)
    def compiled(x):
        return ctf.allreduce(x)

    # AutoGraph wraps the errors of what it converts in one of its own.
    with pytest.raises(Exception, match=r"XLA can't hold .* Pass jit_compile=False"):
        compiled(tf.ones(3))


def test_an_error_in_a_graph_tells_its_cause(rank, size):
    @tf.function
    def mismatched(x):
        return ctf.allreduce(x)

    if size == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(tf.errors.FailedPreconditionError, match="all ranks call the same operations"):
        mismatched(tf.ones(3 + (rank == 1)))
    assert ctf.allreduce(tf.ones(1), op=Sum).numpy() == [size]


def test_tensors_sent_while_others_are_computed_are_reduced_like_those_sent_together(rank, size, same_on_all_ranks):
    """Buckets begin in the graph one after the other; steps follow each other without a barrier."""
    shapes = [(3,), (700, 500), (), (1000, 400), (2, 2), (300_000,)]

    @tf.function(jit_compile=False)
    def step(scale):
        values = [tf.fill(shape, scale * (place + 1.0) + rank) for place, shape in enumerate(shapes)]
        return overlap.all_reduce(values, Average, "gradients", Compression.none)

    for number in range(4):
        for place, (result, shape) in enumerate(zip(step(tf.constant(float(number))), shapes, strict=True)):
            assert result.shape == shape
            expected = number * (place + 1.0) + (size - 1) / 2
            np.testing.assert_allclose(result, np.full(shape, expected), rtol=1e-6)
            same_on_all_ranks(result.numpy())


def test_a_bucket_that_differs_is_an_error_on_all_ranks_and_the_next_step_works(rank, size):
    if size == 1:
        pytest.skip("one rank differs from none")

    def step(odd):
        shapes = [(300_000,), (5 + (odd and rank == 1),), (400_000,)]

        @tf.function(jit_compile=False)
        def graph():
            return overlap.all_reduce([tf.ones(shape) for shape in shapes], Sum, "odd", Compression.none)

        return graph()

    with pytest.raises(tf.errors.FailedPreconditionError, match="all ranks call the same operations|same order"):
        step(odd=True)
    for result in step(odd=False):
        assert (result.numpy() == size).all()


@pytest.mark.parametrize(
    ("cores", "allowed", "ranks", "threads"),
    [(64, 64, 1, 0), (64, 64, 8, 8), (64, 64, 100, 1), (1, 1, 2, 0), (64, 8, 8, 0), (64, 4, 8, 0), (64, 32, 8, 8)],
    ids=["alone", "unbound", "crowded", "one core", "bound to its share", "bound to less", "bound to a socket"],
)
def test_a_rank_computes_on_its_share_of_the_cores(cores, allowed, ranks, threads):
    assert share(cores, allowed, ranks) == threads


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.dtypes.experimental.float8_e5m2], ids=lambda dtype: dtype.name)
def test_inputs_of_dtypes_that_only_ml_dtypes_knows(dtype):
    seen = []

    @tf.function(jit_compile=False)
    def step(value):
        return graph.call(lambda _, array: [seen.append(array.astype(float)) or array], [value], "see", [(2,)])[0]

    assert step(tf.cast([0.5, -2.0], dtype)).dtype is dtype
    np.testing.assert_array_equal(seen, [[0.5, -2.0]])
