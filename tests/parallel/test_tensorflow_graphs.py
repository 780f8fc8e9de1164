"""TF1 graphs and sessions, and the operation that calls Python: exact errors, and any order on any rank."""

import gc

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective
import collective.tensorflow as hvd
from collective.tensorflow import graph, op

v1 = tf.compat.v1


@pytest.fixture
def session():
    """A session with two threads for operations, fewer than wait at once below."""
    config = v1.ConfigProto(inter_op_parallelism_threads=2, intra_op_parallelism_threads=1)
    with tf.Graph().as_default(), v1.Session(config=config) as session:
        yield session


def test_operations_of_a_session_may_wait_in_another_order_on_each_rank(session, rank, size):
    """Many operations without an order among them, more than threads; rank by rank they become ready in turn."""
    count = 24
    delays = v1.placeholder(tf.float32, [count])

    def sleep(seconds):
        import time

        time.sleep(float(seconds))
        return seconds

    results = []
    for number in range(count):
        late = tf.numpy_function(sleep, [delays[number]], tf.float32)
        with tf.control_dependencies([late]):
            value = tf.constant([float(number)]) + rank
        results.append(hvd.allreduce(value, op=hvd.Sum, name=f"tensor{number}"))
    for repetition in range(3):
        order = np.random.default_rng(10 * repetition + rank).permutation(count)
        values = session.run(results, {delays: order * 0.002})
        total = size * (size - 1) / 2
        np.testing.assert_allclose(np.concatenate(values), np.arange(count) * size + total)


def test_an_input_stays_as_it_is_while_its_array_is_kept_and_goes_back_then(monkeypatch):
    """Gradients are handed over and read later, when TensorFlow may have use for their memory."""
    given_back, kept = [], []
    gc.collect()  # inputs that errors of other tests hold
    delete = op.delete_tensor
    monkeypatch.setattr(op, "delete_tensor", lambda tensor: (given_back.append(tensor), delete(tensor)))

    @tf.function(jit_compile=False)
    def step(value):
        (taken,) = graph.call(keep, [tf.fill([100_000], value) * 2], "keep", [()], [tf.int64])
        return taken

    def keep(_, array):
        kept.append(array)
        return [np.int64(0)]

    for number in range(10):
        step(tf.constant(float(number)))
    assert len(given_back) == 10  # the results
    assert [set(array) for array in kept] == [{2.0 * number} for number in range(10)]
    kept.clear()
    assert len(given_back) == 20


def test_all_operations_work_in_a_session(session, rank, size):
    x = v1.placeholder(tf.float32, [None, 2])
    array = np.arange(4.0 * size, dtype=np.float32).reshape(2 * size, 2) + rank
    results = {
        "allreduce": hvd.allreduce(x, op=hvd.Sum),
        "grouped": hvd.grouped_allreduce([x, 2 * x], op=hvd.Average)[1],
        "allgather": hvd.allgather(x),
        "grouped_allgather": hvd.grouped_allgather([x, x + 1])[1],
        "broadcast": hvd.broadcast(x, size - 1),
        "reducescatter": hvd.reducescatter(x, op=hvd.Sum),
        "grouped_reducescatter": hvd.grouped_reducescatter([x, x])[1],
        "alltoall": hvd.alltoall(x),
        "size": hvd.size_op(),
        "rank": hvd.rank_op(),
        "local": hvd.local_rank_op() + hvd.local_size_op(),
        "included": hvd.process_set_included_op(),
    }
    everyone = [np.arange(4.0 * size).reshape(2 * size, 2) + other for other in range(size)]
    expected = {
        "allreduce": sum(everyone),
        "grouped": 2 * sum(everyone) / size,
        "allgather": np.concatenate(everyone),
        "grouped_allgather": np.concatenate(everyone) + 1,
        "broadcast": everyone[-1],
        "reducescatter": sum(everyone)[2 * rank : 2 * rank + 2],
        "grouped_reducescatter": sum(everyone)[2 * rank : 2 * rank + 2] / size,
        "alltoall": np.concatenate([other[2 * rank : 2 * rank + 2] for other in everyone]),
        "size": size,
        "rank": rank,
        "local": collective.local_rank() + collective.local_size(),
        "included": 1,
    }
    for _ in range(2):
        values = session.run(results, {x: array})
        for name, right in expected.items():
            np.testing.assert_allclose(values[name], right, rtol=1e-6, err_msg=name)


def test_gradients_of_a_session(session, rank, size):
    x = tf.ones([2 * size, 2]) * (rank + 1.0)
    loss = tf.reduce_sum(hvd.allreduce(x, op=hvd.Sum) * (rank + 1.0)) + tf.reduce_sum(hvd.broadcast(x, 0))
    (gradient,) = tf.gradients(loss, x)
    expected = size * (size + 1) / 2 + (rank == 0)
    np.testing.assert_allclose(session.run(gradient), np.full((2 * size, 2), expected))


def test_an_error_of_a_session_has_its_class_on_all_ranks_and_the_next_operation_works(session, rank, size):
    if size == 1:
        pytest.skip("one rank differs from none")
    wrong = hvd.allreduce(tf.ones([3 + (rank == 0)]), name="wrong")
    right = hvd.allreduce(tf.ones([3]), op=hvd.Sum, name="right")
    with pytest.raises(tf.errors.FailedPreconditionError):
        session.run(wrong)
    np.testing.assert_allclose(session.run(right), [size] * 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        session.run(hvd.alltoall(tf.ones([size + 1]), name="rows"))
    np.testing.assert_allclose(session.run(right), [size] * 3)


def test_global_variables_start_from_the_root(session, rank, size):
    resource = v1.get_variable("resource", initializer=np.full(3, float(rank)), use_resource=True)
    reference = v1.get_variable("reference", initializer=np.full((2, 2), rank), use_resource=False)
    start = hvd.broadcast_global_variables(size - 1)
    session.run(v1.global_variables_initializer())
    session.run(start)
    for value in session.run([resource, reference]):
        assert (value == size - 1).all()
    with pytest.raises(ValueError):
        hvd.broadcast_([resource, reference], 0)
    assert session.run(hvd.broadcast_([resource], 0))[0].tolist() == [size - 1.0] * 3


def test_an_optimizer_of_tf1_trains_like_one_process_on_all_samples(rank, size):
    """The weights of ranks on shards, against the wrapped optimizer's in one process on everything."""
    generator = np.random.default_rng(1)
    inputs, targets = generator.normal(size=(8 * size, 3)), generator.normal(size=(8 * size, 1))

    def train(x, y, wrap):
        with tf.Graph().as_default(), v1.Session() as session:
            weights = v1.get_variable("w", initializer=np.ones((3, 1)))
            bias = v1.get_variable("b", initializer=np.zeros(1))
            loss = tf.reduce_mean((tf.constant(x) @ weights + bias - y) ** 2)
            step = wrap(v1.train.MomentumOptimizer(0.1, 0.9)).minimize(loss)
            session.run(v1.global_variables_initializer())
            for _ in range(5):
                session.run(step)
            return session.run([weights, bias])

    expected = train(inputs, targets, lambda optimizer: optimizer)
    for options in ({}, {"groups": 2}, {"gradient_predivide_factor": 2.0}):
        mine = train(inputs[rank::size], targets[rank::size], lambda o, k=options: hvd.DistributedOptimizer(o, **k))
        for result, right in zip(mine, expected, strict=True):
            np.testing.assert_allclose(result, right, rtol=1e-9)


@pytest.mark.parametrize("average", [False, True])
def test_several_backward_passes_make_one_step(session, average, rank, size):
    variables = [v1.get_variable("a", initializer=np.zeros(2)), v1.get_variable("b", initializer=np.zeros(()))]
    unused = v1.get_variable("unused", initializer=np.ones(1))
    optimizer = hvd.DistributedOptimizer(
        v1.train.GradientDescentOptimizer(1.0), backward_passes_per_step=3, average_aggregated_gradients=average
    )
    number = v1.placeholder(tf.float64, [])
    loss = tf.reduce_sum(variables[0]) * number + variables[1] * (rank + 1.0)
    steps = v1.train.get_or_create_global_step()
    pairs = optimizer.compute_gradients(loss, [*variables, unused])
    assert pairs[2][0] is None
    step = optimizer.apply_gradients(pairs, global_step=steps)
    session.run([v1.global_variables_initializer(), v1.local_variables_initializer()])
    a, b = 0.0, 0.0
    for done in range(1, 7):
        session.run(step, {number: done})
        assert session.run(optimizer._agg_helper.counter) == done % 3
        if done % 3 == 0:
            divisor = 3 if average else 1
            a -= (done - 2 + done - 1 + done) / divisor
            b -= 3 * (size + 1) / 2 / divisor
        for result, right in zip(session.run(variables), [[a, a], b], strict=True):
            np.testing.assert_allclose(result, right)
    assert session.run(steps) == 6


def test_adasum_joins_the_changes_of_several_steps(session, rank, size):
    if size not in (1, 2, 4):
        pytest.skip("Adasum here is checked where all ranks' changes are parallel or equal in number")
    variable = v1.get_variable("v", initializer=np.ones(4))
    optimizer = hvd.DistributedOptimizer(
        v1.train.GradientDescentOptimizer(0.5), op=hvd.Adasum, backward_passes_per_step=2
    )
    step = optimizer.minimize(tf.reduce_sum(variable))
    session.run(v1.global_variables_initializer())
    session.run(step)
    np.testing.assert_allclose(session.run(variable), np.full(4, 0.5))
    session.run(step)
    # Equal changes are joined to themselves.
    np.testing.assert_allclose(session.run(variable), np.zeros(4), atol=1e-12)


def test_objects_travel_where_a_graph_is_the_default(session, rank, size):
    assert hvd.broadcast_object({"rank": rank}, size - 1, session=session) == {"rank": size - 1}
    assert hvd.broadcast_object_fn(0)([rank]) == [0]
    assert hvd.allgather_object((rank, "x")) == [(other, "x") for other in range(size)]


def test_arrays_of_no_elements_and_of_every_kind_pass_through_the_operation(rank, size):
    @tf.function
    def all_kinds(*values):
        return hvd.grouped_allgather(list(values), name="kinds")

    dtypes = ["bool", "uint8", "int16", "int64", "float16", "bfloat16", "float64", "complex128"]
    values = [tf.cast(tf.reshape(tf.range(6) % 2, (3, 2)), dtype) for dtype in dtypes]
    values.append(tf.zeros([0, 3]))
    for value, result in zip(values, all_kinds(*values), strict=True):
        assert result.dtype == value.dtype
        np.testing.assert_array_equal(result.numpy(), np.concatenate([value.numpy()] * size))
    with pytest.raises(tf.errors.InvalidArgumentError, match="numbers or bool"):
        tf.function(lambda: hvd.allgather(tf.constant(["text"]), name="text"))()


def test_conditions_and_loops_hold_operations(rank, size):
    @tf.function
    def looped(x, many):
        for number in tf.range(many):
            if number % 2 == 0:
                x = hvd.allreduce(x, op=hvd.Average, name="even")
            else:
                x = hvd.allreduce(x, op=hvd.Max, name="odd") + 1.0
        return x

    np.testing.assert_allclose(looped(tf.constant([float(rank)]), 5), [(size - 1) / 2 + 2])


def test_a_call_that_returns_what_it_was_given_hands_on_a_copy_of_tensorflow_s_memory():
    places = []

    def give_back(_, array):
        places.append(array.ctypes.data)
        return [array]

    @tf.function
    def through(tensor):
        return graph.call(give_back, [tensor + 1], "give_back", [tensor.shape])[0]

    result = through(tf.range(10_000)).numpy()
    assert result.ctypes.data != places[0]  # else it would be freed with the input
    np.testing.assert_array_equal(result, np.arange(10_000) + 1)
