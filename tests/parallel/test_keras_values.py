"""Operations on values, under the names of Horovod's two Keras modules."""

import contextlib

import numpy as np
import pytest

pytest.importorskip("keras", reason="Keras is not installed")
tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

import collective.keras as keras_hvd
import collective.tensorflow.keras as hvd

NAMES = """
    init shutdown is_initialized start_timeline stop_timeline size local_size cross_size rank local_rank cross_rank
    mpi_threads_supported mpi_enabled mpi_built gloo_enabled gloo_built nccl_built ddl_built ccl_built cuda_built
    rocm_built ProcessSet global_process_set add_process_set remove_process_set Average Sum Compression callbacks
    DistributedOptimizer load_model broadcast_global_variables
"""
BOTH = pytest.mark.parametrize("module", [hvd, keras_hvd])


@BOTH
def test_numbers_lists_arrays_and_tensors_are_reduced(module, rank, size):
    for value in (rank + 1.0, [rank + 1.0], np.array([[rank + 1.0]]), tf.constant([rank + 1.0])):
        result = module.allreduce(value)
        assert result.shape == np.shape(value)
        np.testing.assert_allclose(result.numpy(), np.full(np.shape(value), (size + 1) / 2))
    total = size * (size + 1) / 2
    with contextlib.nullcontext() if module is keras_hvd else pytest.warns(DeprecationWarning, match="op=Sum"):
        assert float(module.allreduce(rank + 1.0, "total", False)) == total
    assert float(module.allreduce(rank + 1.0, op=hvd.Sum, prescale_factor=2.0, postscale_factor=0.25)) == total / 2
    assert float(module.allreduce(1.0, compression=module.Compression.fp16)) == 1.0


def test_one_name_for_the_operation_is_enough():
    with pytest.raises(ValueError, match="average"):
        hvd.allreduce(1.0, average=True, op=hvd.Sum)


@BOTH
def test_values_are_gathered_broadcast_and_scattered(module, rank, size):
    np.testing.assert_array_equal(module.allgather([rank] * (rank + 1)), np.repeat(range(size), range(1, size + 1)))
    assert float(module.broadcast(rank + 0.5, size - 1, name="last")) == size - 0.5
    np.testing.assert_allclose(module.reducescatter(np.arange(size) + float(rank)), [rank + (size - 1) / 2])
    np.testing.assert_allclose(module.reducescatter(np.ones(size), op=hvd.Sum), [size])


@BOTH
def test_variables_without_a_model_are_those_of_a_graph(module):
    with pytest.raises(RuntimeError):
        module.broadcast_global_variables(0)


@BOTH
def test_names_that_horovod_s_programs_use_are_there(module):
    names = NAMES.split()
    assert [name for name in names if not hasattr(module, name)] == []
    assert module.Compression.none is not module.Compression.fp16
