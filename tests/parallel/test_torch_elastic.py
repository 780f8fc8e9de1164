"""PyTorch's states to go back to."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import collective.torch as hvd

torch.set_num_threads(1)


def test_a_model_its_optimizer_its_sampler_and_objects_go_back(rank, size):
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.fill_(1.0 + rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (rank + 1), momentum=0.9)
    sampler = hvd.elastic.ElasticSampler(range(12), shuffle=False)
    state = hvd.elastic.TorchState(model, optimizer, sampler=sampler, epoch=rank, batch=0)
    state.sync()
    assert torch.equal(model.weight, torch.ones(1, 2))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    assert state.epoch == 0
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    state.sampler.record_batch(0, 2)
    state.batch = 1
    state.restore()
    assert torch.equal(model.weight, torch.ones(1, 2))
    assert state.batch == 0
    assert not sampler.processed_indices
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    changed = model.weight.clone()
    state.sampler.record_batch(0, 2)
    state.commit()
    with torch.no_grad():
        model.weight.zero_()
    state.restore()
    assert torch.equal(model.weight, changed)
    state.sync()
    assert len(sampler.processed_indices) == 2 * size
    assert len(sampler) == (12 - 2 * size) // size + bool((12 - 2 * size) % size)


def test_kinds_of_one_s_own_are_kept_by_their_state(rank):
    class Counter:
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    def sync(counter):
        counter.load_state_dict(hvd.broadcast_object(counter.state_dict(), 0))

    before = hvd.elastic.get_handler_registry()
    hvd.elastic.set_handler_registry([(Counter, sync), *before])
    try:
        state = hvd.elastic.TorchState(counter=Counter(rank + 1))
        state.sync()
        counter = state.counter
        assert counter.count == 1
        counter.count = 9
        state.restore()
        assert state.counter is counter
        assert counter.count == 1
    finally:
        hvd.elastic.set_handler_registry(before)
