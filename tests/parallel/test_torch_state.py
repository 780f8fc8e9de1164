"""Parameters and the optimizer's state start from one rank."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

import collective.torch as hvd
from collective.errors import ArgumentError, MismatchError


def model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )


def state_of(network):
    return torch.cat([value.reshape(-1).double() for value in network.state_dict().values()])


def stepped(network, make, steps):
    optimizer = make(network.parameters())

    def closure():
        optimizer.zero_grad()
        loss = network(torch.randn(2, 2, 3, 3)).square().sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("what", ["state_dict", "named_parameters", "parameters"])
def test_parameters_start_from_the_root(what, memory_format, rank, size):
    root = size - 1
    network = model(rank).to(memory_format=memory_format)
    expected = state_of(model(root))
    parameters = getattr(network, what)()
    hvd.broadcast_parameters(parameters, root_rank=root)
    assert torch.equal(state_of(network), expected)
    assert network[0].weight.is_contiguous(memory_format=memory_format)


def test_buffers_and_shared_parameters_start_from_the_root_as_well(rank, size):
    network = model(0)
    network[1].running_mean += rank
    network[1].num_batches_tracked += rank
    network.again = network[3]
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    assert network[1].num_batches_tracked == 0
    assert (network[1].running_mean == 0).all()
    assert network.again.weight is network[3].weight


def test_other_things_than_tensors_are_refused():
    with pytest.raises(ArgumentError, match=r"parameters are tensors. Received: int, str"):
        hvd.broadcast_parameters({"epoch": 3, "name": "x", "weight": torch.ones(1), "no bias": None}, root_rank=0)


def test_models_that_differ_are_the_same_error_on_all_ranks(rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(MismatchError, match="grouped_broadcast|broadcast 'parameters'"):
        hvd.broadcast_parameters(torch.nn.Linear(2, 2 + rank).state_dict(), root_rank=0)
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == size


MAKERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, betas=(0.8, 0.9)),
    "AdamW with a tensor for rate": lambda p: torch.optim.AdamW(p, torch.tensor(0.01), foreach=False),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p),
}


# All that PyTorch has, but for those that take special parameters and LBFGS, which is above.
EVERY = [
    kind
    for _, kind in sorted(vars(torch.optim).items())
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
    if kind.__name__ not in ("Optimizer", "SparseAdam", "Muon", "LBFGS")
]


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_optimizer_trains_and_goes_on_from_the_roots_state(kind, rank, size, same_on_all_ranks):
    """Each rank uses another part of the model, with other options; then all go on from a checkpoint of rank 0."""
    first, second = (torch.nn.Linear(3, 2) for _ in range(2))
    network = torch.nn.ModuleList([first, second])
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    optimizer = kind(network.parameters(), lr=0.1 if rank == 0 else 0.2)
    optimizer = hvd.DistributedOptimizer(optimizer, network.named_parameters())
    for _ in range(2):
        optimizer.zero_grad()
        (first if rank == 0 else second)(torch.full((2, 3), rank + 1.0)).square().sum().backward()
        optimizer.step()
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.1
    root = hvd.broadcast_object(flat(optimizer.state_dict()), 0)
    assert flat(optimizer.state_dict()) == root
    optimizer.zero_grad()
    network[0](torch.ones(2, 3) * rank).square().sum().backward()
    optimizer.step()
    same_on_all_ranks(state_of(network).numpy())


def test_a_fresh_optimizer_has_gradients_of_zeros_after_the_broadcast(rank, size):
    """As Horovod leaves them; a parameter that isn't trained has none."""

    class Chosen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.places = torch.nn.Parameter(torch.tensor([1, 3], dtype=torch.int32), requires_grad=False)
            self.weights = torch.nn.Parameter(torch.rand(4))

    network = Chosen()
    optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9, nesterov=True, weight_decay=1e-6)
    optimizer = hvd.DistributedOptimizer(optimizer, network.named_parameters())
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    before = network.weights.detach().clone()
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert network.places.grad is None
    assert torch.equal(network.weights.grad, torch.zeros(4))
    assert torch.equal(network.weights, before)
    optimizer.zero_grad()
    (network.weights[network.places.long()] * (rank + 1)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(network.weights.grad, torch.tensor([0.0, 1.0, 0.0, 1.0]) * (size + 1) / 2)


def test_parameters_are_told_apart_by_name_not_by_order(rank):
    pairs = [("a", torch.full((2,), rank + 1.0)), ("b", torch.full((2,), rank + 10.0))]
    parameters = dict(pairs[::-1] if rank % 2 else pairs)
    hvd.broadcast_parameters(parameters, root_rank=0)
    assert parameters["a"].tolist() == [1.0, 1.0]
    assert parameters["b"].tolist() == [10.0, 10.0]


def flat(value):
    """All of a state, in a form that compares exactly."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: flat(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [flat(one) for one in value]
    return value


@pytest.mark.parametrize("started", ["on the root only", "on the others only", "everywhere"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_state_of_an_optimizer_starts_from_the_root(name, started, rank, size):
    root = size - 1
    steps = {"on the root only": 2 * (rank == root), "on the others only": rank != root, "everywhere": rank + 1}[
        started
    ]
    torch.manual_seed(rank)
    network = model(0)
    optimizer = stepped(network, MAKERS[name], steps)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"] * (rank + 1)
    optimizer.param_groups[0]["note"] = f"of rank {rank}"
    before = flat(optimizer.state_dict())
    parameters = list(network.parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=root)
    assert flat(optimizer.state_dict()) == hvd.broadcast_object(before, root)
    assert all(p is q for p, q in zip(parameters, optimizer.param_groups[0]["params"], strict=True))


def test_ranks_go_on_alike_from_the_roots_state(rank, size, same_on_all_ranks):
    """As after a restart: rank 0 has read a checkpoint, the others have just begun."""
    network = model(rank)
    optimizer = torch.optim.Adam(network.parameters(), 0.01 * (rank + 1))
    if rank == 0:
        saved = stepped(model(7), lambda p: torch.optim.Adam(p, 0.5), 3)
        optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    optimizer = hvd.DistributedOptimizer(optimizer, network.named_parameters())
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    network.eval()
    for _ in range(3):
        network(torch.randn(2, 2, 3, 3)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert float(optimizer.state[network[3].weight]["step"]) == 6
    same_on_all_ranks(state_of(network).numpy())


def test_optimizers_that_differ_are_the_same_error_on_all_ranks(rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    network = torch.nn.Linear(2, 2, bias=rank != 1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    with pytest.raises(MismatchError, match=r"of \[2\] parameters.*of \[1\] parameters"):
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == size


def test_what_cannot_be_written_down_is_refused_on_all_ranks(rank, size):
    optimizer = torch.optim.SGD(model(0).parameters(), 0.1)
    optimizer.param_groups[0]["note"] = object()
    with pytest.raises(ArgumentError, match="plain values|numbers, strings"):
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
