"""Gradients averaged by ``DistributedOptimizer``, together as inside a host and in buckets as between hosts."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

from torch.nn import functional

import collective.torch as hvd
from collective import Max, Sum
from collective.data import Shard
from collective.errors import ArgumentError, MismatchError
from collective.torch import gradients

SAMPLES, FEATURES, CLASSES = 101, 6, 3  # no number of ranks divides 101: the last batch is never full
GLOBAL_BATCH, EPOCHS = 24, 3  # 1, 2, 3 and 4 ranks divide 24

random = np.random.default_rng(5)
IMAGES = torch.from_numpy(random.normal(size=(SAMPLES, FEATURES)).astype(np.float32))
LABELS = torch.from_numpy(random.integers(0, CLASSES, SAMPLES))


@pytest.fixture(params=["together", "in buckets"])
def way(request, monkeypatch):
    """Both ways on one host: as if it were several, buckets are sent during backpropagation."""
    monkeypatch.setattr(gradients, "overlap_pays", lambda: request.param == "in buckets")
    # Some gradients to a bucket, a large one alone.
    monkeypatch.setattr(gradients, "reversed_buckets", lambda sizes: original(sizes, 400))
    return request.param


original = gradients.reversed_buckets


def model(seed, *, kind=torch.float32):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(FEATURES, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8), torch.nn.Linear(8, CLASSES)]
    return torch.nn.Sequential(*layers).to(kind)


def weights_of(network):
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def start_alike(network, optimizer):
    hvd.broadcast_parameters(network.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, eps=1e-3),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.1, max_iter=3),
}


def loss_of(network, indexes, weights):
    losses = functional.cross_entropy(network(IMAGES[indexes]), LABELS[indexes], reduction="none")
    return (losses * torch.as_tensor(weights)).sum() / len(weights)


def train(network, optimizer, batches, set_to_none=True):
    for indexes, weights in batches:

        def closure(indexes=indexes, weights=weights):
            optimizer.zero_grad(set_to_none)
            loss = loss_of(network, indexes, weights)
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def global_batches():
    whole = Shard(SAMPLES, GLOBAL_BATCH, order="shuffled", rank=0, size=1)
    for indexes, weights in itertools.chain.from_iterable(whole.batches(epoch) for epoch in range(EPOCHS)):
        yield indexes[weights > 0], np.ones(int((weights > 0).sum()), np.float32)


def own_batches(size):
    shard = Shard(SAMPLES, GLOBAL_BATCH // size, order="shuffled")
    return itertools.chain.from_iterable(shard.batches(epoch) for epoch in range(EPOCHS))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ranks_on_shards_equal_one_process_on_whole_batches(name, way, rank, size, same_on_all_ranks):
    reference = model(1)
    train(reference, OPTIMIZERS[name](reference.parameters()), global_batches())

    network = model(1 if rank == 0 else 100 + rank)
    optimizer = hvd.DistributedOptimizer(OPTIMIZERS[name](network.parameters()), network.named_parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    start_alike(network, optimizer)
    train(network, optimizer, own_batches(size))
    torch.testing.assert_close(weights_of(network), weights_of(reference), rtol=1e-5, atol=1e-5)
    same_on_all_ranks(weights_of(network).numpy())


def test_gradients_that_are_zeroed_in_place_are_averaged_as_well(way, size):
    """What comes back may lie in shared memory; the next gradients are then added up there."""
    results = []
    for set_to_none in (True, False):
        network = model(1)
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))
        train(network, optimizer, own_batches(size), set_to_none)
        results.append(weights_of(network))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def step_by_hand(network, optimizer, scale=1.0):
    """Give every parameter the gradient (rank + 1) x scale, by backpropagation."""
    loss = sum(parameter.sum() for parameter in network.parameters()) * (hvd.rank() + 1) * scale
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_every_float_is_averaged_in_its_own_dtype(kind, way, size):
    network = model(1, kind=kind)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    step_by_hand(network, optimizer)
    for parameter in network.parameters():
        assert parameter.grad.dtype is kind
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, (size + 1) / 2))


def test_a_mixture_of_dtypes_is_averaged(way, size):
    network = model(1)
    network[0].bfloat16()
    network[2].double()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    step_by_hand(network, optimizer)
    for parameter in network.parameters():
        assert (parameter.grad == (size + 1) / 2).all()


@pytest.mark.parametrize("options", [{"op": Sum}, {"gradient_predivide_factor": 2.0}, {"compression": "fp16"}], ids=str)
def test_options_of_the_reduction(options, way, size):
    if "compression" in options:
        options = {"compression": getattr(hvd.Compression, options["compression"])}
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0), **options)
    step_by_hand(network, optimizer)
    expected = size * (size + 1) / 2 if "op" in options else (size + 1) / 2
    for parameter in network.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, expected), rtol=1e-3, atol=0)


class Partial(torch.nn.Module):
    """A model whose ranks use different parts of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.third, self.nobodys = (torch.nn.Linear(3, 1) for _ in range(4))

    def forward(self, x, parts):
        return sum(part(x).sum() for part in parts)


def test_a_missing_gradient_counts_as_zeros_and_one_missing_everywhere_stays_missing(way, rank, size):
    network = Partial()
    # With momentum and weight decay, a step with gradients of zeros would move the weights.
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, network.named_parameters())
    before = network.nobodys.weight.detach().clone()
    for _ in range(2):
        parts = [network.first, network.third] if rank == size - 1 else [network.first, network.second]
        network(torch.ones(2, 3), parts).backward()
        optimizer.step()
        shares = {"first": 1.0, "second": (size - 1) / size, "third": 1 / size}
        for name, share in shares.items():
            gradient = getattr(network, name).weight.grad
            if share:
                torch.testing.assert_close(gradient, torch.full((1, 3), 2 * share))
            else:
                assert gradient is None
        assert network.nobodys.weight.grad is None
        optimizer.zero_grad()
    assert torch.equal(network.nobodys.weight, before)


def test_a_step_without_any_backward_pass_does_not_hang(way):
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1))
    before = weights_of(network)
    optimizer.step()
    assert torch.equal(weights_of(network), before)


def test_gradients_add_up_over_backward_passes(way, rank, size):
    network = model(1)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, backward_passes_per_step=3)
    for passes in (3, 2, 1, 3):  # fewer than promised is allowed: a step ends the accumulation
        for _ in range(passes - 1):
            (network(torch.ones(1, FEATURES)) * 0).sum().backward()
        step_by_hand(network, optimizer)
        for parameter in network.parameters():
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, (size + 1) / 2))
        optimizer.zero_grad()
    optimizer.set_backward_passes_per_step(1)
    step_by_hand(network, optimizer)
    optimizer.zero_grad()
    if size > 1:
        network(torch.ones(1, FEATURES)).sum().backward()
        with pytest.raises(AssertionError, match="Increase backward_passes_per_step"):
            network(torch.ones(1, FEATURES)).sum().backward()
        optimizer.synchronize()


def test_a_second_backward_pass_before_the_step_is_an_error(way, rank, size):
    if size == 1:
        pytest.skip("one rank sends nothing")
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1), network.named_parameters())
    network(IMAGES).sum().backward()
    with pytest.raises(ArgumentError, match=rf"rank {rank} of {size}: gradients are computed .* parameter 3.bias"):
        network(IMAGES).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    step_by_hand(network, optimizer)
    assert all((parameter.grad == (size + 1) / 2).all() for parameter in network.parameters())


def test_zero_grad_between_backward_and_step_is_an_error(way, size):
    if size == 1:
        pytest.skip("one rank sends nothing")
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1))
    network(IMAGES).sum().backward()
    with pytest.raises(AssertionError, match="zero_grad.. is not called after loss.backward"):
        optimizer.zero_grad()
    optimizer.synchronize()
    optimizer.zero_grad()


def test_clipping_sees_the_gradients_of_the_whole_batch(way, rank, size, same_on_all_ranks):
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    before = weights_of(network)
    loss = sum(parameter.sum() for parameter in network.parameters()) * (rank + 1)
    loss.backward()
    optimizer.synchronize()
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
    assert norm.item() == pytest.approx((size + 1) / 2 * len(before) ** 0.5, rel=1e-5)
    with optimizer.skip_synchronize():
        optimizer.step()
    moved = (weights_of(network) - before).norm().item()
    assert moved == pytest.approx(0.5, rel=1e-4)
    same_on_all_ranks(weights_of(network).numpy())


def test_averaging_twice_warns(way):
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    optimizer.synchronize()
    with pytest.warns(UserWarning, match="without optimizer.skip_synchronize"):
        optimizer.step()


def test_frozen_and_added_parameters_are_averaged_once_they_have_gradients(way, size):
    network, more = model(1), torch.nn.Linear(2, 2)
    network[0].requires_grad_(False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    for change in (
        lambda: network[3].requires_grad_(False),
        lambda: network[0].requires_grad_(True),
        lambda: optimizer.add_param_group({"params": more.parameters()}),
        lambda: None,
    ):
        everything = torch.nn.ModuleList([network, more])
        step_by_hand(everything, optimizer)
        for group in optimizer.param_groups:
            for parameter in filter(lambda p: p.requires_grad, group["params"]):
                assert (parameter.grad == (size + 1) / 2).all()
        everything.zero_grad()
        change()


def test_sparse_gradients_of_embeddings(way, rank, size, same_on_all_ranks):
    for as_dense in (False, True):
        torch.manual_seed(1)
        network = torch.nn.Sequential(torch.nn.Embedding(7, 4, sparse=True), torch.nn.Linear(4, 2))
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        optimizer = hvd.DistributedOptimizer(optimizer, sparse_as_dense=as_dense)
        for _ in range(3):
            before = network[0].weight.detach().clone()
            network(torch.tensor([rank, rank, 6])).sum().backward()
            optimizer.step()
            assert network[0].weight.grad.is_sparse
            dense = network[0].weight.grad.to_dense()
            torch.testing.assert_close(before - network[0].weight.detach(), dense)
            same_on_all_ranks(dense.numpy())
            row = network[0].weight.grad.to_dense()[rank].sum() * size
            assert row != 0
            optimizer.zero_grad()


@pytest.mark.parametrize("as_dense", [False, True])
def test_an_optimizer_of_sparse_gradients_gets_them(as_dense, way, rank, size, same_on_all_ranks):
    torch.manual_seed(1)
    network = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(network.parameters(), 0.1)
    optimizer = hvd.DistributedOptimizer(optimizer, sparse_as_dense=as_dense)
    before = network.weight.detach().clone()
    for _ in range(2):
        network(torch.tensor([rank % 5])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = (network.weight.detach() - before).abs().sum(1) > 0.1
    assert moved.tolist() == [row < size for row in range(5)]
    same_on_all_ranks(network.weight.detach().numpy())


def test_ranks_with_more_batches_train_on_until_they_join(way, rank, size, same_on_all_ranks):
    """A rank without batches counts as gradients of zeros, also in the statistics of a normalisation: as no samples."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), hvd.SyncBatchNorm(2), torch.nn.Linear(2, 1))
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameters = [*network.parameters(), parameter]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, 1.0))
    for _ in range(rank + 1):
        optimizer.zero_grad()
        (network(torch.randn(3, 2)).square().sum() * 1e-3 + parameter.sum()).backward()
        optimizer.step()
    last = hvd.join()
    assert last == size - 1
    right = -sum((size - passed) / size for passed in range(rank + 1))
    assert parameter.item() == pytest.approx(right)
    hvd.broadcast_parameters(network.state_dict(), root_rank=last)
    same_on_all_ranks(weights_of(network).numpy())


def test_groups_are_sent_together(way, size):
    for groups in (2, "lists"):
        network = model(1)
        parameters = list(network.parameters())
        if groups == "lists":
            groups = [[parameters[0], parameters[5]], [parameters[2]]]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, 1.0), groups=groups)
        step_by_hand(network, optimizer)
        assert all((parameter.grad == (size + 1) / 2).all() for parameter in parameters)


def test_buckets_are_cut_in_the_order_of_backpropagation():
    parameters = list(model(1).parameters())
    assert [[len(part)] for part in gradients._cut(parameters, 2)] == [[3], [3]]
    assert gradients._cut(parameters, 2)[0][0] is parameters[3]
    cut = gradients._cut(parameters, [[parameters[0], parameters[5]], [parameters[2]]])
    first = [min(next(n for n, p in enumerate(parameters) if p is q) for q in bucket) for bucket in cut]
    assert first == sorted(first, reverse=True)
    assert sorted(id(p) for bucket in cut for p in bucket) == sorted(map(id, parameters))


def test_a_bucket_travels_while_backpropagation_goes_on(monkeypatch, size):
    """Between hosts, the first bucket is handed over before the last gradient is there."""
    if size == 1:
        pytest.skip("one rank sends nothing")
    monkeypatch.setattr(gradients, "overlap_pays", lambda: True)
    monkeypatch.setattr(gradients, "reversed_buckets", lambda sizes: original(sizes, 1))
    network, events = model(1), []
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    send = optimizer._gradients._send
    monkeypatch.setattr(optimizer._gradients, "_send", lambda bucket: (events.append("sent"), send(bucket)))
    next(network.parameters()).register_post_accumulate_grad_hook(lambda p: events.append("last layer's gradient"))
    network(IMAGES).sum().backward()
    assert events.index("sent") < events.index("last layer's gradient")
    assert events.count("sent") == 6
    optimizer.step()
    assert events.count("sent") == 6


def test_two_optimizers_at_once(way, size):
    """As adversarial networks have them: both have gradients under way, and step in another order."""
    networks = [model(1), model(2)]
    optimizers = [hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0)) for network in networks]
    for number, network in enumerate(networks):
        (sum(p.sum() for p in network.parameters()) * (hvd.rank() + 1) * (number + 1)).backward()
    for number in (1, 0):
        optimizers[number].step()
        for parameter in networks[number].parameters():
            assert (parameter.grad == (size + 1) / 2 * (number + 1)).all()


def test_a_dropped_optimizer_no_longer_sends(way, size):
    network = model(1)
    for _ in range(3):  # as cells of a notebook are run again
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
        step_by_hand(network, optimizer)
        assert all((parameter.grad == (size + 1) / 2).all() for parameter in network.parameters())
        optimizer.zero_grad()


def test_a_mismatch_is_the_same_error_on_all_ranks_and_the_next_step_works(way, rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    network = torch.nn.Linear(3, 2 + (rank == 1))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0))
    network(torch.ones(1, 3)).sum().backward()
    with pytest.raises(MismatchError, match="gradients of optimizer") as caught:
        optimizer.step()
    assert len(set(hvd.allgather_object(str(caught.value).split("Received: ")[1]))) == 1
    network = model(1)
    step_by_hand(network, hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 1.0)))
    assert all((parameter.grad == (size + 1) / 2).all() for parameter in network.parameters())


def test_schedulers_hooks_and_checkpoints_work_on_the_wrapped_optimizer(way, size):
    network = model(1)
    plain = torch.optim.Adam(network.parameters(), 0.5)
    early = torch.optim.lr_scheduler.ExponentialLR(plain, 0.5)
    optimizer = hvd.DistributedOptimizer(plain)
    late = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(next(network.parameters()).grad[0, 0].item()))
    for _ in range(2):
        step_by_hand(network, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        late.step()
        optimizer.zero_grad()
    assert seen == [(size + 1) / 2] * 2  # once a step, after averaging
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert type(optimizer).__name__ == "Adam"
    assert early.optimizer is plain
    fresh = torch.optim.Adam(model(1).parameters(), 0.5)
    fresh.load_state_dict(optimizer.state_dict())
    assert float(fresh.state_dict()["state"][0]["step"]) == 2


def test_two_models_that_train_by_turns(way, rank, size, same_on_all_ranks):
    """As generator and discriminator: each is frozen while the other one learns through it."""
    torch.manual_seed(1)
    parts = [torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)]
    optimizers = [
        hvd.DistributedOptimizer(torch.optim.SGD(part.parameters(), 0.1), part.named_parameters()) for part in parts
    ]
    for step in range(6):
        for number, part in enumerate(parts):
            part.requires_grad_(number == step % 2)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (parts[1](parts[0](torch.ones(2, 3))).sum() * (rank + 1)).backward()
        for number, part in enumerate(parts):
            assert all((p.grad is not None and p.grad.any()) == (number == step % 2) for p in part.parameters())
        optimizers[step % 2].step()
    for part in parts:
        same_on_all_ranks(weights_of(part).numpy())


class Sixteenths(hvd.compression.Compressor):
    """A user's own compression: whole sixteenths, as int32."""

    @staticmethod
    def compress(tensor):
        return (tensor * 16).round().int(), tensor.dtype

    @staticmethod
    def decompress(tensor, ctx):
        return tensor.to(ctx) / 16


def test_gradients_travel_as_a_users_compressor_makes_them(way, rank, size):
    network = model(1)
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    optimizer = hvd.DistributedOptimizer(optimizer, compression=Sixteenths, op=Sum)
    for _ in range(2):
        step_by_hand(network, optimizer, 0.26)
        right = sum(round((r + 1) * 0.26 * 16) / 16 for r in range(size)) if size > 1 else 0.26
        for parameter in network.parameters():
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, right))
        optimizer.zero_grad()


def wrap(**options):
    network = model(1)
    return hvd.DistributedOptimizer(torch.optim.SGD(network.parameters(), 0.1), **options)


NAMED = list(model(1).named_parameters())
REFUSED = {
    "no optimizer": (lambda: hvd.DistributedOptimizer(torch.nn.Linear(1, 1)), "wraps a PyTorch optimizer"),
    "twice": (lambda: hvd.DistributedOptimizer(wrap()), "averaged twice"),
    "op": (lambda: wrap(op=Max), "averaged or summed, or steps joined"),
    "predivide": (lambda: wrap(op=Sum, gradient_predivide_factor=2.0), "goes with op=Average"),
    "passes": (lambda: wrap(backward_passes_per_step=0), "at least 1"),
    "no pairs": (lambda: wrap(named_parameters=[torch.ones(1)]), "sequence of tuples"),
    "same names": (lambda: wrap(named_parameters=[("a", p) for _, p in NAMED]), "are unique.*Received: a"),
    "some names": (lambda: wrap(named_parameters=NAMED[:1]), "names all parameters.*none for 6 parameters"),
    "compression": (lambda: wrap(compression="fp16"), "a compression has compress"),
    "groups": (lambda: wrap(groups="all"), "a number or a list of lists"),
    "group twice": (lambda: wrap(groups=[[NAMED[0][1], NAMED[0][1]]]), "one group at most"),
    "groups below zero": (lambda: wrap(num_groups=-1), "not negative"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_wrapped_is_refused(case):
    call, rule = REFUSED[case]
    with pytest.raises(ArgumentError, match=rule):
        call()


def test_hooks_of_the_step_run_once_after_averaging_also_once_a_state_was_loaded(way, size):
    network = model(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.Adam(network.parameters(), 0.1))
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(network[0].weight.grad[0, 0].item()))
    for _ in range(2):
        step_by_hand(network, optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
    assert seen == [(size + 1) / 2] * 2
