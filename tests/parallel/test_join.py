"""join: ranks with fewer batches let the others go on."""

import numpy as np
import pytest

import collective
from collective import Average, Max, Min, Product, Sum
from collective.errors import MismatchError


def batches_of(rank):
    return 2 + 3 * rank


def test_ranks_with_more_batches_go_on_alone(rank, size):
    for batch in range(batches_of(rank)):
        taking_part = [r for r in range(size) if batch < batches_of(r)]
        for elements in (1, 3000, 300_000):
            values = np.full(elements, rank + 1.0, np.float32)
            total = collective.allreduce(values, Sum, name=f"step {batch} of {elements}")
            np.testing.assert_array_equal(total, np.full(elements, sum(r + 1.0 for r in taking_part), np.float32))
        average = collective.allreduce(np.array([rank + 1.0]), Average)
        assert average[0] == pytest.approx(sum(r + 1.0 for r in taking_part) / size)
    assert collective.join() == size - 1
    assert collective.allreduce(np.ones(1), Sum)[0] == size


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float16, np.float32])
def test_a_rank_without_data_changes_no_result(rank, size, dtype):
    active = range(max(1, size - 1))
    if rank in active:
        values = np.array([rank + 1, 3], dtype)
        every = [np.array([r + 1, 3], dtype) for r in active]
        for op, reduce in ((Sum, np.sum), (Min, np.min), (Max, np.max), (Product, np.prod)):
            result = collective.allreduce(values, op)
            np.testing.assert_array_equal(result, reduce(every, axis=0).astype(dtype))
        gathered = collective.allgather(np.full((2, 3), rank, dtype))
        np.testing.assert_array_equal(gathered[:, 0], np.repeat(active, 2))
        assert collective.broadcast(np.array([rank], dtype), 0)[0] == 0
        together = collective.grouped_allreduce([values, np.ones((2, 2))], Sum)
        np.testing.assert_array_equal(together[1], np.full((2, 2), len(active)))
        collective.barrier()
    last = collective.join()
    assert last == (size - 2 if size > 1 else 0)


def test_what_would_lose_data_is_an_error_on_the_ranks_that_call_it(rank, size):
    if size == 1:
        return
    if rank != 1:
        rows = np.zeros((size, 2))
        for call in (
            lambda: collective.alltoall(rows),
            lambda: collective.reducescatter(rows),
            lambda: collective.broadcast(rows, 1),
        ):
            with pytest.raises(MismatchError, match="rank 1: join"):
                call()
    assert collective.join() == (size - 1 if size > 2 else 0)
    assert collective.allreduce(np.ones(1), Sum)[0] == size


def test_operations_started_before_the_join_take_part(rank, size):
    handles = [collective.allreduce_async(np.full(100, rank + 1.0), Sum, name=f"early {number}") for number in range(3)]
    if rank == 0:
        late = collective.allreduce(np.ones(5), Sum, name="late")
        np.testing.assert_array_equal(late, np.ones(5))
    collective.join()
    for handle in handles:
        np.testing.assert_array_equal(handle.wait(), np.full(100, size * (size + 1) / 2))


def test_all_may_join_at_once_and_again(size):
    for _ in range(3):
        assert collective.join() == size - 1
