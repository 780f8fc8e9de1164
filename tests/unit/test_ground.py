"""Errors, settings, launchers, topology, codec: what everything else stands on."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective import codec, launched, settings, topology
from collective.errors import ArgumentError, CollectiveError, NotInitializedError, SettingError


def test_an_error_names_operation_rank_rule_value_and_remedy():
    error = CollectiveError(
        "the root is a rank", received="root_rank=7", fix="Pass another", operation="broadcast 'w'", where="rank 2 of 4"
    )
    expected = "broadcast 'w' on rank 2 of 4: the root is a rank. Received: root_rank=7. Pass another."
    assert str(error) == expected


def test_not_initialized_is_the_value_error_that_horovod_raises():
    assert issubclass(NotInitializedError, ValueError)


def test_settings_come_from_the_environment_and_others_are_left_alone():
    read = settings.from_environment({"COLLECTIVE_ALGORITHM": "tree", "COLLECTIVE_STALL_SECONDS": "1.5", "HOME": "x"})
    assert (read.algorithm, read.stall_seconds, read.backend) == ("tree", 1.5, "")


@pytest.mark.parametrize("variable", ["COLLECTIVE_", "COLLECTIVE_BACKEN", "COLLECTIVE_LOG"])
def test_an_unknown_setting_is_refused_with_the_known_ones(variable):
    with pytest.raises(SettingError, match="COLLECTIVE_ALGORITHM, COLLECTIVE_BACKEND") as caught:
        settings.from_environment({variable: "mpi"})
    assert f"Received: {variable}=mpi" in str(caught.value)


LAUNCHES = {
    "by hand": ({"SLURM_NTASKS": "8", "PATH": ""}, None),
    "Open MPI's mpirun": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "3", "PMIX_RANK": "2"},
        (4, 2, 3),
    ),
    "MPICH's mpiexec": ({"PMI_SIZE": "3", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2"}, (3, 1, 2)),
    "Intel MPI's mpiexec": ({"PMI_SIZE": "3", "PMI_RANK": "1", "I_MPI_MPIRUN": "mpirun"}, (3, 1, 1)),
    "srun": ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}, (2, 1, 1)),
    "horovodrun --gloo": (
        {"HOROVOD_SIZE": "2", "HOROVOD_RANK": "0", "HOROVOD_LOCAL_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "x"},
        (2, 0, 2),
    ),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launchers_are_told_by_their_variables(name):
    environment, expected = LAUNCHES[name]
    found = launched.detect(environment)
    if expected is None:
        assert found is None
    else:
        assert (found.launcher.name, found.size, found.rank, found.local_size) == (name, *expected)


def test_topology_of_unequal_hosts():
    hosts = ["a", "b", "a", "b", "b"]
    numbers = [topology.from_hosts(rank, hosts) for rank in range(5)]
    assert [t.local_rank for t in numbers] == [0, 0, 1, 1, 2]
    assert [t.local_size for t in numbers] == [2, 3, 2, 3, 3]
    assert [t.cross_rank for t in numbers] == [0, 1, 0, 1, 0]
    assert [t.cross_size for t in numbers] == [2, 2, 2, 2, 1]
    assert numbers[4].where == "rank 4 of 5"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers()) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


@given(PLAIN)
def test_the_codec_gives_back_what_it_was_given(value):
    decoded = codec.decode(codec.encode(value))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "float32", "complex64", "bfloat16"])
def test_the_codec_keeps_arrays_and_scalars(dtype):
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    array = np.array([[0, 1, 1]], dtype)
    for value in (array, array[:, ::2], array[:0], np.array(1, dtype), array[0, 0]):
        decoded = codec.decode(codec.encode(value))
        assert type(decoded) is type(value)
        assert decoded.dtype == dtype
        np.testing.assert_array_equal(decoded, value)


def test_the_codec_reads_and_writes_pickle_only_where_asked():
    with pytest.raises(ArgumentError, match=r"Received: a builtins.range\. Pass allow_pickle=True"):
        codec.encode([range(3)])
    pickled = codec.encode(range(3), allow_pickle=True)
    assert codec.decode(pickled, allow_pickle=True) == range(3)
    with pytest.raises(ArgumentError, match="read only where the user asks"):
        codec.decode(pickled)


def in_fresh_python(code, **environment):
    """What ``code`` prints in a new interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment or None
    ).stdout


def test_import_is_light_and_starts_no_mpi():
    code = (
        "import sys, json, collective;"
        "print(json.dumps([n for n in ('mpi4py', 'tensorflow', 'keras', 'torch', 'jax') if n in sys.modules]))"
    )
    assert json.loads(in_fresh_python(code)) == []


def test_one_process_needs_no_mpi():
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"  # as if it were not installed
        "import numpy as np, collective as c; c.init()\n"
        "assert (c.rank(), c.size(), c.local_rank(), c.cross_size()) == (0, 1, 0, 1)\n"
        "a = np.arange(6.).reshape(3, 2)\n"
        "for r in (c.allreduce(a), c.allgather(a), c.broadcast(a, 0), c.reducescatter(a), c.alltoall(a)):\n"
        "    assert (r == a).all() and r is not a\n"
        "assert c.alltoall(a, [3])[1].tolist() == [3] and c.allgather_object('x') == ['x']\n"
        "c.barrier(); c.shutdown(); print('done')"
    )
    assert in_fresh_python(code) == "done\n"


def test_all_public_names_are_documented():
    import collective

    public = [value for name, value in vars(collective).items() if not name.startswith("_") and callable(value)]
    assert {"init", "allreduce", "broadcast_object"} <= {value.__name__ for value in public}
    assert all(value.__doc__ for value in public)
