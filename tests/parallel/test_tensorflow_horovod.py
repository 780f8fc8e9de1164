"""What programs written for ``horovod.tensorflow`` rely on: signatures, process sets, tapes, compressions, errors."""

import inspect

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective.tensorflow as hvd

MODES = {"eager": lambda function: function, "graph": tf.function}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.fixture
def some(size):
    """All ranks but the first; on one rank, that one."""
    process_set = hvd.add_process_set(range(1, size) if size > 1 else [0]) if size > 1 else hvd.global_process_set
    yield process_set
    hvd.remove_process_set(process_set)


def test_arguments_have_horovods_order():
    expected = {
        "allreduce": "tensor average device_dense device_sparse compression op prescale_factor postscale_factor name "
        "process_set ignore_name_scope",
        "grouped_allreduce": "tensors average device_dense device_sparse compression op prescale_factor "
        "postscale_factor process_set ignore_name_scope name",
        "allgather": "tensor name ignore_name_scope process_set",
        "broadcast": "tensor root_rank name ignore_name_scope process_set",
        "broadcast_": "variables root_rank name process_set",
        "alltoall": "tensor splits name ignore_name_scope process_set",
        "reducescatter": "tensor device_dense compression op name process_set ignore_name_scope prescale_factor "
        "postscale_factor",
        "grouped_reducescatter": "tensors device_dense compression op process_set prescale_factor postscale_factor",
        "broadcast_object": "obj root_rank session name process_set",
        "allgather_object": "obj session name process_set",
        "DistributedGradientTape": "gradtape device_dense device_sparse compression sparse_as_dense op "
        "gradient_predivide_factor num_groups groups process_set scale_local_gradients",
    }
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(hvd, name)).parameters) == arguments.split(), name
    assert hvd.mpi_ops._basics._get_process_set_ids_and_ranks()[0] == list(range(hvd.size()))
    assert hvd.check_num_rank_power_of_2(4)
    assert not hvd.nccl_built()


def test_the_older_spelling_of_sum_and_average(mode, rank, size):
    x = tf.constant([float(rank)])
    with pytest.warns(DeprecationWarning, match="average"):
        assert mode(lambda: hvd.allreduce(x, average=False))().numpy() == [size * (size - 1) / 2]
    assert mode(lambda: hvd.allreduce(x))().numpy() == [(size - 1) / 2]
    with pytest.raises(ValueError):
        hvd.allreduce(x, average=True, op=hvd.Sum)


def test_slices_are_gathered_and_refuse_what_has_no_meaning(mode, rank, size):
    slices = tf.IndexedSlices(tf.fill([2, 3], float(rank)), tf.constant([rank, size]), tf.constant([size + 1, 3]))

    @mode
    def both():
        return hvd.allreduce(slices), hvd.grouped_allreduce([tf.ones(2), slices], op=hvd.Sum)

    mean, (dense, total) = both()
    expected = np.zeros((size + 1, 3))
    for other in range(size):
        expected[other] += other
        expected[size] += other
    np.testing.assert_allclose(tf.convert_to_tensor(mean), expected / size)
    np.testing.assert_allclose(tf.convert_to_tensor(total), expected)
    np.testing.assert_allclose(dense, [size] * 2)
    for options in ({"op": hvd.Adasum}, {"op": hvd.Min}, {"prescale_factor": 2.0}):
        with pytest.raises(NotImplementedError):
            hvd.allreduce(slices, **options)


def test_operations_in_a_process_set(mode, some, rank, size):
    if not some.included():
        with pytest.raises(tf.errors.InvalidArgumentError):
            mode(lambda: hvd.allreduce(tf.ones(2), process_set=some))()
        assert hvd.process_set_included_op(some.process_set_id).numpy() == 0
        assert hvd.size_op(some.process_set_id).numpy() == some.size()
        return
    members = some.ranks
    x = tf.fill([len(members), 2], float(rank))

    @mode
    def all_of_them(x):
        return (
            hvd.allreduce(x, op=hvd.Sum, process_set=some),
            hvd.allgather(x, process_set=some),
            hvd.broadcast(x, members[-1], process_set=some),
            hvd.reducescatter(x, op=hvd.Sum, process_set=some),
            hvd.alltoall(x, process_set=some),
        )

    every = np.repeat(np.array(members, np.float32), len(members))[:, None] * np.ones(2)
    each = np.array(members, np.float32)[:, None] * np.ones(2)
    expected = np.full(x.shape, sum(members)), every, np.full(x.shape, members[-1]), [[sum(members)] * 2], each
    for result, right in zip(all_of_them(x), expected, strict=True):
        np.testing.assert_allclose(result, right)
    assert hvd.broadcast_object(rank, members[0], process_set=some) == members[0]


def test_errors_are_tensorflows_on_every_rank(mode, rank, size):
    if size == 1:
        pytest.skip("one rank differs from none")
    different = [
        lambda: hvd.allreduce(tf.ones([2 + rank % 2])),
        lambda: hvd.allreduce(tf.ones(2, tf.int32 if rank % 2 else tf.float32), op=hvd.Sum),
        lambda: hvd.allgather(tf.ones([1, 2 + rank % 2])),
        lambda: hvd.broadcast(tf.ones(2), rank % 2),
        lambda: hvd.allreduce(tf.ones(2), prescale_factor=1.0 + rank),
    ]
    for operation in different:
        with pytest.raises(tf.errors.FailedPreconditionError):
            mode(operation)()
    for operation in (
        lambda: hvd.reducescatter(tf.ones([])),
        lambda: hvd.alltoall(tf.ones(2), splits=[1] * (size + 1)),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError):
            mode(operation)()
    assert mode(lambda: hvd.allreduce(tf.ones(1), op=hvd.Sum))().numpy() == [size]


def test_compressions_of_ones_own_and_of_the_library(mode, rank, size):
    class Halved(hvd.Compressor):
        @staticmethod
        def compress(tensor):
            return tensor / 2, tensor.dtype

        @staticmethod
        def decompress(tensor, ctx):
            return tf.cast(tensor * 4, ctx)

    x = tf.fill([3], rank + 1.0)
    total = size * (size + 1) / 2
    np.testing.assert_allclose(mode(lambda: hvd.allreduce(x, compression=Halved, op=hvd.Sum))(), [2 * total] * 3)
    for compression, dtype in ((hvd.Compression.fp16, tf.float16), (hvd.Compression.bf16, tf.bfloat16)):
        packed, context = compression.compress(x)
        assert packed.dtype == dtype
        assert compression.decompress(packed, context).dtype == x.dtype
        np.testing.assert_allclose(hvd.allreduce(x, compression=compression, op=hvd.Sum), [total] * 3)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": "lists"}, {"gradient_predivide_factor": 4.0}])
def test_the_tape_reduces_all_but_local_sources(mode, options, rank, size):
    variables = [tf.Variable([1.0, 2.0]), tf.Variable(3.0), tf.Variable([[4.0]]), tf.Variable(5.0)]
    options = {"groups": [[variables[0], variables[2]], [variables[1]]]} if options == {"groups": "lists"} else options

    @mode
    def step():
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(variable) for variable in variables[:3]) * (rank + 1.0)
        tape = hvd.DistributedGradientTape(tape, **options)
        assert isinstance(tape, tf.GradientTape)
        tape.register_local_source(variables[1])
        return tape.gradient(loss, variables)

    mean = (size + 1) / 2
    first, local, third, unused = step()
    assert unused is None
    np.testing.assert_allclose(first, [mean] * 2)
    np.testing.assert_allclose(local, (rank + 1) / size)
    np.testing.assert_allclose(third, [[mean]])


def test_layers_may_keep_their_own_gradients(rank, size):
    keras = pytest.importorskip("keras")
    shared, own = keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1, use_bias=False)
    x = tf.fill([1, 2], rank + 1.0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared(x)) + tf.reduce_sum(own(x))
    tape = hvd.PartialDistributedGradientTape(tape, local_layers=own, scale_local_gradients=False)
    sources = [*shared.trainable_weights, *own.trainable_weights]
    local, shared_ones = tape.get_local_and_global_gradients(loss, sources)
    np.testing.assert_allclose(local[0][1], np.full((2, 1), rank + 1.0))
    np.testing.assert_allclose(shared_ones[0][1], np.full((2, 1), (size + 1) / 2))
    with pytest.raises(ValueError):
        hvd.PartialDistributedGradientTape(tf.GradientTape(), local_layers=[3])


def test_gradients_of_grouped_operations(mode, rank, size):
    @mode
    def gradients(x, y):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            gathered = hvd.grouped_allgather([x, y])
            scattered = hvd.grouped_reducescatter([x, y], op=hvd.Sum, prescale_factor=2.0)
            reduced = hvd.grouped_allreduce([x, y], op=hvd.Sum)
            factors = [1.0, 2.0] * 3
            loss = sum(
                tf.reduce_sum(each) * factor
                for each, factor in zip(gathered + scattered + reduced, factors, strict=True)
            )
        return tape.gradient(loss, [x, y])

    x, y = tf.ones([size, 2]), tf.ones([2 * size, 1])
    for result, factor in zip(gradients(x, y), (1.0, 2.0), strict=True):
        np.testing.assert_allclose(result, np.full(result.shape, factor * (1 + 2 * size + size)))


def test_alltoall_by_splits_and_back(mode, rank, size):
    @mode
    def exchange(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            received, splits = hvd.alltoall(x, splits=tf.range(size))
            loss = tf.reduce_sum(received * (rank + 1.0))
        return received, splits, tape.gradient(loss, x)

    rows = size * (size - 1) // 2
    received, splits, gradient = exchange(tf.fill([rows, 2], float(rank)))
    assert splits.dtype == tf.int32
    np.testing.assert_array_equal(splits, [rank] * size)
    np.testing.assert_allclose(received, np.repeat(np.arange(size), rank)[:, None] * np.ones(2))
    np.testing.assert_allclose(gradient, np.repeat(np.arange(size) + 1.0, np.arange(size))[:, None] * np.ones(2))


def test_batches_of_all_ranks_are_normalized_together(rank, size):
    """Against one process's layer on all samples, ranks with unequal batches."""
    keras = pytest.importorskip("keras")
    batches = [np.random.default_rng(other).normal(size=(3 + other, 4)).astype(np.float32) for other in range(size)]
    ours, plain = hvd.SyncBatchNormalization(), keras.layers.BatchNormalization()
    everything = tf.constant(np.concatenate(batches))
    mine = tf.constant(batches[rank])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([everything, mine])
        whole, part = plain(everything, training=True), ours(mine, training=True)
        losses = tf.reduce_sum(whole**3), tf.reduce_sum(part**3)
    start = sum(len(batch) for batch in batches[:rank])
    np.testing.assert_allclose(part, whole[start : start + len(mine)], rtol=1e-4, atol=1e-5)
    expected = tape.gradient(losses[0], everything)[start : start + len(mine)]
    np.testing.assert_allclose(tape.gradient(losses[1], mine), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.moving_variance, plain.moving_variance, rtol=1e-5)
    with pytest.raises(ValueError):
        hvd.SyncBatchNormalization(fused=True)


def test_numbers_of_the_job_as_operations_outlive_it(rank, size):
    ask = tf.function(lambda: (hvd.size_op(), hvd.rank_op(), hvd.process_set_included_op(99)))
    assert [int(value) for value in ask()] == [size, rank, -3]
    with pytest.raises(tf.errors.InvalidArgumentError):
        hvd.size_op(99)
    hvd.shutdown()
    try:
        with pytest.raises(tf.errors.FailedPreconditionError):
            ask()
        assert hvd.process_set_included_op().numpy() == -1
    finally:
        hvd.init()


def test_ranks_out_of_data_join(rank, size):
    for _ in range(rank):
        hvd.allreduce(tf.ones(2), op=hvd.Sum, name="late")
    assert int(hvd.join()) == size - 1
