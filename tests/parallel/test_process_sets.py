"""Process sets: operations among some of the ranks, side by side with those of other sets."""

import os

import numpy as np
import pytest

import collective
from collective import Average, Sum
from collective.errors import ArgumentError, LaunchError, MismatchError, NotInitializedError


@pytest.fixture
def sets(size):
    """Two halves of the ranks, the second with the odd ones; where there is one rank, its own set of it."""
    halves = [collective.ProcessSet(range(0, size, 2)), collective.ProcessSet(range(1, size, 2))]
    made = [collective.add_process_set(each) for each in halves if each.ranks and len(each.ranks) < size]
    yield made
    for each in made:
        assert collective.remove_process_set(each)


def test_a_set_knows_its_ranks(rank, size, sets):
    assert collective.global_process_set.process_set_id == 0
    assert collective.global_process_set.ranks == list(range(size))
    for each in sets:
        assert each.process_set_id >= 1
        assert each.size() == len(each.ranks)
        assert each.included() == (rank in each.ranks)
        assert each.rank() == (each.ranks.index(rank) if rank in each.ranks else None)


def test_operations_in_a_set_see_its_ranks_only(rank, size, sets):
    for each in sets:
        if not each.included():
            with pytest.raises(ArgumentError, match="called by its ranks"):
                collective.allreduce(np.ones(3), process_set=each)
            continue
        for elements in (1, 1000, 2_000_000):  # small, joined, and what carries the most bytes
            values = np.arange(elements, dtype=np.float32) + rank
            total = collective.allreduce(values, Sum, process_set=each)
            np.testing.assert_array_equal(total, sum(np.arange(elements, dtype=np.float32) + r for r in each.ranks))
        average = collective.allreduce(np.array([float(rank)]), Average, process_set=each)
        assert average[0] == np.mean(each.ranks)
        gathered = collective.allgather(np.full((rank + 1, 2), rank), process_set=each)
        np.testing.assert_array_equal(gathered[:, 0], np.repeat(each.ranks, [r + 1 for r in each.ranks]))
        root = each.ranks[-1]
        assert collective.broadcast(np.array([rank]), root, process_set=each)[0] == root
        outside = next((r for r in range(size) if r not in each.ranks), size)
        with pytest.raises(ArgumentError, match="the root is one of the ranks"):
            collective.broadcast(np.array([rank]), outside, process_set=each)
        received, counts = collective.alltoall(np.full(each.size(), rank), np.ones(each.size(), int), process_set=each)
        np.testing.assert_array_equal(received, each.ranks)
        assert counts.tolist() == [1] * each.size()
        part = collective.reducescatter(np.full((each.size(), 3), rank), Sum, process_set=each)
        np.testing.assert_array_equal(part, np.full((1, 3), sum(each.ranks)))
        collective.barrier(process_set=each)


def test_sets_don_t_wait_for_each_other(rank, size, sets):
    """Each set runs another number of operations between two that all ranks take part in."""
    for step in range(20):
        for number, each in enumerate(sets):
            if each.included():
                for _ in range(1 + (step * (number + 1)) % 5):
                    values = np.full(1 + 1000 * step, rank, np.float64)
                    total = collective.allreduce(values, Sum, process_set=each)
                    np.testing.assert_array_equal(total, np.full(values.shape, sum(each.ranks)))
        total = collective.allreduce(np.full(100 * step + 1, rank), Sum)
        np.testing.assert_array_equal(total, np.full(100 * step + 1, size * (size - 1) // 2))


def test_operations_of_several_sets_are_under_way_at_once(rank, size, sets):
    handles = {}
    for each in [*sets, collective.global_process_set][
        :: 1 if rank % 2 else -1
    ]:  # the ranks start them in other orders
        if each.included():
            handles[each.process_set_id] = collective.allreduce_async(
                np.full(5000, rank, np.float32), Sum, name="same name", process_set=each
            )
    for each in [*sets, collective.global_process_set]:
        if each.included():
            np.testing.assert_array_equal(
                handles[each.process_set_id].wait(), np.full(5000, sum(each.ranks), np.float32)
            )


def test_a_mismatch_in_a_set_names_the_job_s_ranks_and_leaves_the_set_usable(rank, size, sets):
    for each in sets:
        if each.included() and each.size() > 1:
            with pytest.raises(MismatchError) as caught:
                collective.allreduce(np.ones(2 + each.rank()), name="grad", process_set=each)
            for member in each.ranks:
                assert f"rank {member}: allreduce 'grad'" in str(caught.value)
            assert collective.allreduce(np.ones(1), Sum, process_set=each)[0] == each.size()


def test_adding_a_set_twice_or_with_other_ranks_is_an_error_on_all_ranks(size, rank, sets):
    for ranks in (list(range(size)), [size], [-1], []):
        with pytest.raises(ValueError):
            collective.add_process_set(collective.ProcessSet(ranks))
    for each in sets:
        with pytest.raises(ValueError):
            collective.add_process_set(each.ranks)
    if size > 2:
        with pytest.raises(MismatchError):
            collective.add_process_set([0, 1] if rank < 2 else [1, 2])
        with pytest.raises(MismatchError if rank < 2 else ValueError):
            collective.add_process_set([0, 1] if rank < 2 else [size])
    assert collective.allreduce(np.ones(1), Sum)[0] == size


def test_a_removed_set_is_unknown(size):
    if size == 1:
        return
    made = collective.add_process_set([0])
    assert collective.remove_process_set(made)
    assert (made.process_set_id, made.included(), made.size(), made.rank()) == (None, None, None, None)
    assert not collective.remove_process_set(made)
    assert not collective.remove_process_set(collective.global_process_set)
    for unknown in (made, collective.ProcessSet([0])):
        unknown.process_set_id = 10  # a user who thinks to know the number
        with pytest.raises(NotInitializedError, match="registered before"):
            collective.allreduce(np.ones(1), process_set=unknown)


def test_sets_given_to_init_are_registered(size):
    collective.shutdown()
    single = collective.ProcessSet([size - 1])
    collective.init(process_sets=[] if size == 1 else [single, range(size - 1)])
    if size > 2:
        assert single.process_set_id == 1
    collective.shutdown()
    with pytest.raises(ValueError):
        collective.init(process_sets=[[0], [0]])
    assert not collective.is_initialized()
    collective.init()
    assert collective.allreduce(np.ones(1), Sum)[0] == size


def test_a_job_of_some_of_the_ranks(rank, size):
    some = list(range(max(1, size - 1)))
    collective.shutdown()
    if rank in some:
        collective.init(comm=some)
        assert (collective.rank(), collective.size()) == (rank, len(some))
        assert collective.allreduce(np.array([rank]), Sum)[0] == sum(some)
        collective.shutdown()
    elif collective.world.launched.detect(os.environ):
        with pytest.raises(LaunchError, match="this one's among them"):
            collective.init(comm=some)
    collective.init()
    assert collective.allreduce(np.ones(1), Sum)[0] == size


def test_jobs_of_a_user_s_own_communicators(rank, size):
    mpi = pytest.importorskip("mpi4py.MPI")
    collective.shutdown()
    own = mpi.COMM_WORLD.Split(rank % 2, rank)
    collective.init(comm=own)
    assert collective.size() == own.size
    alike = range(rank % 2, size, 2)
    assert collective.allreduce(np.array([rank]), Sum)[0] == sum(alike)
    collective.shutdown()
    collective.init()
    if size > 2:
        halves = collective.add_process_set(collective.ProcessSet(own))
        assert halves.ranks == list(alike)
        assert halves.process_set_id == 1 + rank % 2
        assert halves.mpi_comm == own
        assert collective.allreduce(np.array([rank]), Sum, process_set=halves)[0] == sum(alike)
        for each in [each for number, each in collective.world.process_sets().items() if number]:
            assert collective.remove_process_set(each)
    own.Free()


def test_a_removed_set_s_number_is_used_again(size):
    if size < 3:
        return
    first, second = collective.add_process_set([0]), collective.add_process_set([1])
    number = first.process_set_id
    assert collective.remove_process_set(first)
    third = collective.add_process_set([0, 2])
    assert third.process_set_id == number
    assert collective.add_process_set(first).process_set_id not in (number, second.process_set_id)
    for each in (first, second, third):
        assert collective.remove_process_set(each)
