"""Batch normalisation over all ranks against PyTorch's own over the whole batch."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

import collective.torch as hvd
from collective.errors import ArgumentError

SHAPES = {"rows": (3,), "sequences": (3, 5), "images": (3, 4, 4)}
REFERENCES = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}


def whole(size, shape, dtype=torch.float64):
    """The batches of all ranks: of 2, 3, ... samples, far from zero."""
    torch.manual_seed(3)
    return [torch.randn(rank + 2, *shape, dtype=dtype) * 2 + 100 for rank in range(size)]


def pair(size, shape, **options):
    torch.manual_seed(4)
    reference = REFERENCES[len(shape) + 1](3, **options).double()
    ours = hvd.SyncBatchNorm(3, **options).double()
    if reference.affine:
        torch.nn.init.normal_(reference.weight)
        torch.nn.init.normal_(reference.bias)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("kind", SHAPES)
def test_values_gradients_and_statistics_equal_those_of_the_whole_batch(kind, options, rank, size):
    batches = whole(size, SHAPES[kind])
    reference, ours = pair(size, SHAPES[kind], **options)
    start = sum(len(batch) for batch in batches[:rank])
    mine = slice(start, start + len(batches[rank]))
    for _ in range(3):
        everything = torch.cat(batches).requires_grad_()
        own = batches[rank].clone().requires_grad_()
        upstream = torch.cos(torch.arange(everything.numel(), dtype=torch.float64)).reshape(everything.shape)
        expected = reference(everything)
        (expected * upstream).sum().backward()
        result = ours(own)
        (result * upstream[mine]).sum().backward()
        torch.testing.assert_close(result, expected[mine])
        torch.testing.assert_close(own.grad, everything.grad[mine])
    for parameter, right in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(hvd.allreduce(parameter.grad, op=hvd.Sum), right.grad)
    torch.testing.assert_close(ours.state_dict(), reference.state_dict())
    reference.eval()
    ours.eval()
    if options.get("track_running_stats", True):
        torch.testing.assert_close(ours(batches[rank]), reference(batches[rank]))
    else:
        torch.testing.assert_close(ours(batches[rank]), reference(torch.cat(batches))[mine])


def test_a_rank_without_samples_takes_part(rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    ours = hvd.SyncBatchNorm(3)
    own = (torch.randn(0, 3) if rank == 1 else torch.randn(4, 3)).requires_grad_()
    result = ours(own)
    result.square().sum().backward()
    assert result.shape == own.grad.shape == own.shape
    assert not ours.running_mean.isnan().any()
    assert torch.equal(hvd.broadcast(ours.running_mean, 0), ours.running_mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision_are_taken_in_float32(dtype, rank, size):
    ours = hvd.SyncBatchNorm(3)
    batches = whole(size, (3, 4, 4), torch.float32)
    result = ours(batches[rank].to(dtype))
    assert result.dtype is dtype
    everything = torch.cat(batches).to(dtype).float()
    torch.testing.assert_close(ours.running_mean, 0.1 * everything.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
    start = sum(len(batch) for batch in batches[:rank])
    expected = torch.nn.BatchNorm2d(3)(everything)[start : start + len(batches[rank])]
    torch.testing.assert_close(result.float(), expected, rtol=1e-2, atol=1e-3)


def test_a_single_value_has_no_variance(rank, size):
    batch = torch.ones(int(rank == 0), 3)
    with pytest.raises(ValueError, match=r"at least two values|more than 1 value"):
        hvd.SyncBatchNorm(3)(batch)


def test_an_input_without_features_is_refused(rank, size):
    with pytest.raises(ArgumentError, match=r"takes \[samples, features, ...\]. Received: shape=\[3\]"):
        hvd.SyncBatchNorm(3)(torch.ones(3))


def test_training_equals_one_process_on_the_whole_batch(rank, size, same_on_all_ranks):
    def train(norm, batch, wrap):
        torch.manual_seed(1)
        network = torch.nn.Sequential(torch.nn.Linear(3, 3), norm, torch.nn.Linear(3, 1)).double()
        optimizer = wrap(torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))
        for _ in range(4):
            optimizer.zero_grad()
            network(batch).square().mean().backward()
            optimizer.step()
        return torch.cat([value.reshape(-1) for value in network.state_dict().values()])

    torch.manual_seed(2)
    everything = torch.randn(4 * size, 3, dtype=torch.float64)
    expected = train(torch.nn.BatchNorm1d(3), everything, lambda optimizer: optimizer)
    result = train(hvd.SyncBatchNorm(3), everything[4 * rank : 4 * rank + 4], hvd.DistributedOptimizer)
    torch.testing.assert_close(result, expected)
    same_on_all_ranks(result.numpy())
