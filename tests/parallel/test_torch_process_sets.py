"""Tensors in process sets: every operation, its gradient, and optimizers of which only some ranks take part."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

import collective.torch as hvd
from collective import Sum


@pytest.fixture
def mine(rank, size):
    """The set of even or of odd ranks, whichever this rank is in."""
    if size == 1:
        pytest.skip("takes two ranks")
    halves = [hvd.add_process_set(hvd.ProcessSet(range(first, size, 2))) for first in (0, 1)]
    yield halves[rank % 2]
    for half in halves:
        assert hvd.remove_process_set(half)


def test_every_operation_sees_the_ranks_of_its_set(rank, mine):
    members, total = mine.ranks, float(sum(mine.ranks))
    count, place = len(members), members.index(rank)
    x = torch.full((count, 2), float(rank))
    sums = [
        hvd.allreduce(x, op=Sum, process_set=mine),
        hvd.allreduce(x, process_set=mine) * count,
        hvd.allreduce_(x.clone(), op=Sum, process_set=mine),
        hvd.synchronize(hvd.allreduce_async(x, op=Sum, process_set=mine)),
        hvd.synchronize(hvd.allreduce_async_(x.clone(), op=Sum, process_set=mine)),
        hvd.grouped_allreduce([x, x], op=Sum, process_set=mine)[1],
        hvd.grouped_allreduce_([x.clone(), x.clone()], op=Sum, process_set=mine)[1],
        hvd.synchronize(hvd.grouped_allreduce_async([x, x], op=Sum, process_set=mine))[1],
        hvd.synchronize(hvd.grouped_allreduce_async_([x.clone()], op=Sum, process_set=mine))[0],
        hvd.allgather(hvd.reducescatter(x, op=Sum, process_set=mine), process_set=mine),
        hvd.allgather(hvd.synchronize(hvd.reducescatter_async(x, op=Sum, process_set=mine)), process_set=mine),
        hvd.allgather(hvd.grouped_reducescatter([x], op=Sum, process_set=mine)[0], process_set=mine),
    ]
    for result in sums:
        torch.testing.assert_close(result, torch.full((count, 2), total))
    ranks = torch.tensor(members, dtype=torch.float32)
    own = torch.full((1,), float(rank))
    assert torch.equal(hvd.allgather(own, process_set=mine), ranks)
    assert torch.equal(hvd.synchronize(hvd.allgather_async(own, process_set=mine)), ranks)
    assert torch.equal(hvd.grouped_allgather([own, own], process_set=mine)[1], ranks)
    assert torch.equal(hvd.synchronize(hvd.grouped_allgather_async([own], process_set=mine))[0], ranks)
    root = members[-1]
    assert hvd.broadcast(own, root, process_set=mine).item() == root
    assert hvd.broadcast_(own.clone(), root, process_set=mine).item() == root
    assert hvd.synchronize(hvd.broadcast_async(own, root, process_set=mine)).item() == root
    assert hvd.broadcast_object({"of": rank}, root, process_set=mine) == {"of": root}
    received, counts = hvd.alltoall(own.repeat(count), [1] * count, process_set=mine)
    assert torch.equal(received, ranks)
    assert counts.tolist() == [1] * count
    assert torch.equal(hvd.alltoall(torch.arange(float(count)), process_set=mine), torch.full((count,), float(place)))
    sparse = torch.sparse_coo_tensor([[place]], own, (count,), check_invariants=True)
    assert torch.equal(hvd.sparse_allreduce_async(sparse, "s", Sum, process_set=mine)().to_dense(), ranks)
    hvd.barrier(process_set=mine)


def test_gradients_stay_in_the_set(rank, mine):
    """Rank r's loss is (r + 1) times the sum of what the operation gave it."""
    losses = [r + 1.0 for r in mine.ranks]
    count, total, mean = len(losses), sum(losses), sum(losses) / len(losses)
    by_owner = torch.tensor(losses)[:, None].repeat(1, 3)
    at_root = rank == mine.ranks[-1]
    cases = [
        (lambda x: hvd.allreduce(x, op=Sum, process_set=mine), total),
        (lambda x: hvd.allreduce(x, process_set=mine), mean),
        (lambda x: hvd.grouped_allreduce([x, x], process_set=mine)[1], mean),
        (lambda x: hvd.allgather(x, process_set=mine), mean),
        (lambda x: hvd.grouped_allgather([x], process_set=mine)[0], mean),
        (lambda x: hvd.broadcast(x, mine.ranks[-1], process_set=mine), mean if at_root else 0.0),
        (lambda x: hvd.reducescatter(x, process_set=mine), by_owner),
        (lambda x: hvd.reducescatter(x, op=Sum, process_set=mine), by_owner * count),
        (lambda x: hvd.grouped_reducescatter([x], process_set=mine)[0], by_owner),
        (lambda x: hvd.alltoall(x, process_set=mine), by_owner),
    ]
    for function, right in cases:
        x = torch.ones(count, 3, requires_grad=True)
        (function(x).sum() * (rank + 1)).backward()
        torch.testing.assert_close(x.grad, right * torch.ones(count, 3))


def test_a_rank_outside_is_refused_and_the_next_operation_works(rank, size, mine):
    other = hvd.ProcessSet([rank])
    with pytest.raises(ValueError, match="registered before it is used"):
        hvd.allreduce(torch.ones(1), process_set=other)
    with pytest.raises(ValueError, match="registered before it is used"):
        hvd.DistributedOptimizer(torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1), process_set=other)
    assert hvd.allreduce(torch.ones(1), op=Sum).item() == size
    with pytest.raises(ValueError, match="the root is one of the ranks"):
        hvd.broadcast(torch.ones(1), (rank + 1) % 2, process_set=mine)
    assert hvd.allreduce(torch.ones(1), op=Sum, process_set=mine).item() == mine.size()


def test_ranks_of_a_set_that_differ_get_the_same_error(rank, mine):
    if mine.size() == 1:
        pytest.skip("takes two ranks in the set")
    with pytest.raises(hvd.HorovodInternalError, match="float32"):
        hvd.allreduce(torch.ones(1 + mine.rank()), process_set=mine)
    assert hvd.allreduce(torch.ones(1), op=Sum, process_set=mine).item() == mine.size()


@pytest.mark.parametrize("op", [hvd.Average, hvd.Adasum], ids=str)
def test_an_optimizer_reduces_in_its_set_and_steps_alone_elsewhere(op, rank, size, mine):
    if op is hvd.Adasum and mine.size() & (mine.size() - 1):
        pytest.skip("the expected value below is that of powers of two")
    evens = mine if rank % 2 == 0 else None
    # All ranks wrap one, as programs do that choose only the set by rank.
    weights = torch.zeros(3, requires_grad=True)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weights], 1.0), op=op, process_set=mine)
    (weights * (rank + 1)).sum().backward()
    optimizer.step()
    average = sum(r + 1 for r in mine.ranks) / mine.size()  # also Adasum's, as the steps are parallel
    torch.testing.assert_close(weights.detach(), torch.full((3,), -average))

    # Only some wrap one; those of all ranks are matched all the same afterwards.
    weights = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([weights], 1.0)
    if evens:
        optimizer = hvd.DistributedOptimizer(optimizer, op=op, process_set=evens)
    (weights * (rank + 1)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.full((3,), -average if evens else -(rank + 1.0)))
    weights = torch.zeros(3, requires_grad=True)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weights], 1.0))
    (weights * (rank + 1)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.full((3,), -(size + 1) / 2))


def test_an_optimizer_of_a_set_steps_alone_on_other_ranks(rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    first = hvd.add_process_set([0])
    weights = torch.zeros(3, requires_grad=True)
    for op in (hvd.Average, hvd.Adasum):
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([weights], 1.0), op=op, process_set=first)
        weights.grad = torch.full((3,), rank + 1.0)
        optimizer.step()
    torch.testing.assert_close(weights.detach(), torch.full((3,), -2 * (rank + 1.0)))
    assert hvd.remove_process_set(first)
