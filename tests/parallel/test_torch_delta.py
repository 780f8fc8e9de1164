"""Adasum in the optimizer, against steps taken apart and joined by the operation on arrays."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

import collective
import collective.torch as hvd
from collective import Adasum

MAKERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
}


def network():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()


def loss_of(model, rank, step):
    torch.manual_seed(100 * step + rank)
    return model(torch.randn(5, 4).double()).square().mean()


@pytest.mark.parametrize("name", MAKERS)
def test_steps_are_joined(name, rank, size, same_on_all_ranks):
    alone, together = network(), network()
    plain = MAKERS[name](alone.parameters())
    optimizer = hvd.DistributedOptimizer(MAKERS[name](together.parameters()), together.named_parameters(), op=Adasum)
    assert type(optimizer).__name__ == name
    for step in range(3):
        before = [parameter.detach().clone() for parameter in alone.parameters()]
        plain.zero_grad()
        loss_of(alone, rank, step).backward()
        plain.step()
        with torch.no_grad():
            for parameter, start in zip(alone.parameters(), before, strict=True):
                joined = collective.allreduce((parameter - start).numpy(), Adasum)
                parameter.copy_(start + torch.from_numpy(joined))
        optimizer.zero_grad()
        loss_of(together, rank, step).backward()
        if size > 1:
            optimizer.synchronize()  # nothing to do: it is the steps that are joined
        optimizer.step()
    for parameter, right in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(parameter, right, rtol=1e-12, atol=1e-12)
        same_on_all_ranks(parameter.detach().numpy())


def test_ranks_that_go_the_same_way_go_no_further_than_one(size):
    model, reference = network(), network()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), 0.1), op=Adasum)
    plain = torch.optim.SGD(reference.parameters(), 0.1)
    for one, opt in ((model, optimizer), (reference, plain)):
        loss_of(one, 0, 0).backward()
        opt.step()
    for parameter, right in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter, right)


def test_closures_schedulers_and_passes(rank, size, same_on_all_ranks):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer = hvd.DistributedOptimizer(
        optimizer, backward_passes_per_step=2, op=Adasum, compression=hvd.Compression.fp16
    )
    assert optimizer.backward_passes_per_step == 2
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for step in range(2):
        loss_of(model, rank, 2 * step).backward()
        loss_of(model, rank, 2 * step + 1).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(state)
    optimizer.set_backward_passes_per_step(1)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, rank, 9)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert optimizer.param_groups[0]["lr"] == 0.025
    same_on_all_ranks(torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy())


def test_a_step_is_never_skipped(size):
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network().parameters(), 0.1), op=Adasum)
    if size == 1:
        with optimizer.skip_synchronize():
            optimizer.step()
        return
    with pytest.raises(AssertionError, match="every step is joined"), optimizer.skip_synchronize():
        optimizer.step()
