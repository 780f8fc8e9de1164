"""Arrays in shared memory, reduced in place without a copy."""

import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collective
from collective import Average, Max, Sum
from collective.errors import ArgumentError, MismatchError


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["resident", "ordinary", "grouped", "view", "mixed", "gather"]), st.integers(1, 90_000)
        ),
        min_size=1,
        max_size=8,
    ),
    dtype=st.sampled_from([np.float32, np.int64, np.float16, np.uint8]),
    seed=st.integers(0, 2**20),
)
def test_resident_and_ordinary_arrays_follow_each_other(steps, dtype, seed):
    rank, size = collective.rank(), collective.size()
    buffers = {}
    for number, (kind, length) in enumerate(steps):
        everyone = [np.random.default_rng([seed, number, r]).integers(0, 9, length).astype(dtype) for r in range(size)]
        expected, mine = sum(everyone), everyone[rank]
        if kind in ("resident", "view", "mixed"):
            if length not in buffers:
                buffers[length] = collective.empty(length, dtype)
            buffer = buffers[length]
            buffer[:] = mine
            if kind == "view":
                buffer = buffer[:]
            elif kind == "mixed" and rank == 0:
                buffer = buffer.copy()  # this rank's is an ordinary array, the others' are resident
            assert collective.allreduce(buffer, Sum, out=buffer) is buffer
            np.testing.assert_array_equal(buffer, expected)
        elif kind == "grouped":
            for result in collective.grouped_allreduce([mine, mine[: length // 2]], Sum):
                np.testing.assert_array_equal(result, expected[: result.size])
        elif kind == "gather":
            np.testing.assert_array_equal(collective.allgather(mine), np.concatenate(everyone))
        else:
            np.testing.assert_array_equal(collective.allreduce(mine, Sum), expected)


@pytest.mark.parametrize("op", [Average, Max], ids=repr)
def test_a_resident_array_of_any_shape_is_reduced_in_place(op, rank, size, same_on_all_ranks):
    array = collective.empty((3, 5, 7))
    array[:] = rank + np.arange(105).reshape(3, 5, 7)
    expected = np.arange(105).reshape(3, 5, 7) + ((size - 1) / 2 if op is Average else size - 1)
    collective.allreduce(array, op, out=array)
    np.testing.assert_allclose(array, expected)
    same_on_all_ranks(array)
    for shape in ((), (0,), 4):
        assert collective.empty(shape, np.int8).shape == (shape if isinstance(shape, tuple) else (shape,))


def test_the_memory_is_given_back_with_the_array(rank):
    def mapped():
        with open("/proc/self/maps") as maps:
            ours = [line.rstrip() for line in maps if "/dev/shm/collective-" in line]
        assert all(line.endswith("(deleted)") for line in ours)  # unlinked at once
        return len(ours)

    gc.collect()  # those of earlier tests
    before = mapped()
    array = collective.empty(1_000_000)
    if collective.size() > 1 and collective.world.backend().name == "mpi":
        assert mapped() == before + 1
    collective.barrier()
    del array
    gc.collect()
    assert mapped() == before


def test_ranks_that_ask_for_different_arrays_get_the_same_error(rank, size):
    with pytest.raises(ArgumentError, match="arrays are of numbers or bool"):
        collective.empty(3, object)
    if size > 1 and collective.world.backend().name == "mpi":
        with pytest.raises(MismatchError, match=r"empty 'buffer' of float32\[3\]"):
            collective.empty(3 + (rank == 1), name="buffer")
