"""States of models come back from snapshots in new processes: weights, optimizer, samplers and objects."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import collective
from collective.common import keeping

keras = pytest.importorskip("keras", reason="Keras is not installed")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from collective.keras.elastic import KerasState
from collective.torch.elastic import ElasticSampler, TorchState


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    path = Path(collective.broadcast_object(str(tmp_path / "snapshots")))
    monkeypatch.setenv("COLLECTIVE_SNAPSHOT_FOLDER", str(path))
    collective.barrier()
    yield
    collective.barrier()
    if collective.rank() == 0:
        shutil.rmtree(path, ignore_errors=True)


def torch_state(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).to(torch.float32)
    model.register_buffer("sixteen_bits", torch.full((3,), float(seed), dtype=torch.bfloat16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1 * seed)
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1)
    sampler = ElasticSampler(range(40), shuffle=False)
    return TorchState(model, optimizer, sampler=sampler, batch=seed, decay=scheduler.gamma, note=("a", seed))


def train(state, steps=3):
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(torch.arange(20, dtype=torch.float32).reshape(5, 4)).square().sum().backward()
        state.optimizer.step()


def flat(content):
    """All tensors and numbers of a ``state_dict``, comparable."""
    if isinstance(content, dict):
        return {key: flat(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [flat(value) for value in content]
    return (str(content.dtype), content.float().tolist()) if isinstance(content, torch.Tensor) else content


def test_a_torch_state_comes_back_whole_and_nobody_reads_a_sample_again(rank, size):
    before = torch_state(1)
    keeping.resume(before)
    train(before)
    before.sampler.record_batch(0, 5)
    before.batch = 77
    before.commit()
    train(before)  # after the commit: lost
    after = torch_state(2 + rank)
    keeping.resume(after)
    assert (after.batch, after.note, after.commits) == (77, ("a", 1), 1)
    again = torch_state(1)
    train(again)
    assert flat(after.model.state_dict()) == flat(again.model.state_dict())
    assert flat(after.optimizer.state_dict()) == flat(again.optimizer.state_dict())
    assert after.sampler.processed_indices == set(range(5 * size))
    train(after)
    assert flat(after.model.state_dict()) == flat(before.model.state_dict())


def keras_state(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.compile(keras.optimizers.Adam(0.01 * seed), "mse", run_eagerly=True)
    return KerasState(model, batch=seed, epoch=0)


def fit(state):
    data = np.arange(20, dtype=np.float32).reshape(5, 4)
    state.model.fit(data, data[:, :3], epochs=3, batch_size=5, verbose=0, shuffle=False)


def test_a_keras_state_comes_back_with_an_optimizer_that_had_no_slots_yet(rank):
    before = keras_state(1)
    keeping.resume(before)
    fit(before)
    before.epoch = 3
    before.commit()
    after = keras_state(2 + rank)
    keeping.resume(after)
    assert (after.batch, after.epoch) == (1, 3)
    for state in (before, after):
        fit(state)
    assert float(after.model.optimizer.learning_rate) == float(before.model.optimizer.learning_rate)
    for mine, theirs in zip(after.model.variables, before.model.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
