"""PyTorch trainings that go on from a checkpoint end with the bits of those that were never interrupted."""

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

import collective.torch as hvd
from collective.errors import ArgumentError, CheckpointError

torch.set_num_threads(1)
X = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32))


@pytest.fixture
def folder(tmp_path):
    """A folder of rank 0's."""
    return hvd.broadcast_object(str(tmp_path))


class Training:
    """A model and all that belongs to its training, begun with random numbers of its own."""

    def __init__(self, folder, seed):
        for begin in (torch.manual_seed, random.seed, np.random.seed):
            begin(seed + hvd.rank())
        layers = [torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.4), torch.nn.Linear(6, 1)]
        self.model = torch.nn.Sequential(*layers)
        self.model.register_buffer("narrow", torch.full((2,), float(seed), dtype=torch.bfloat16))
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=self.model.named_parameters())
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.sampler = hvd.ElasticSampler(range(23 * hvd.size()), seed=5)  # six batches on every rank
        parts = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "sampler": self.sampler}
        self.checkpoint = hvd.Checkpoint(folder, **parts)
        hvd.broadcast_parameters(self.model.state_dict())

    def run(self, epochs=3, stop=None):
        """Train; before the place ``stop``, an epoch and the batches that were trained on since training began, end."""
        loader = torch.utils.data.DataLoader(X, 4, sampler=self.sampler, generator=torch.Generator())
        told = self.checkpoint.restore() or {"epoch": 0, "batches": 0}
        batches = told["batches"]
        for epoch in range(told["epoch"], epochs):
            if epoch != self.sampler.epoch:
                self.sampler.set_epoch(epoch)
            for number, x in enumerate(loader):
                if batches == stop:
                    return None
                self.optimizer.zero_grad()
                (self.model(x) ** 2).mean().backward()
                self.optimizer.step()
                self.sampler.record_batch(number, 4)
                batches += 1
                if batches % 2 == 0:
                    self.checkpoint.save(epoch=epoch, batches=batches)
            self.scheduler.step()
            self.checkpoint.save(epoch=epoch + 1, batches=batches)
        numbers = [torch.rand(3), torch.tensor([random.random(), np.random.random()])]
        slots = [value for each in self.optimizer.state.values() for value in each.values()]
        return [
            *self.model.state_dict().values(),
            *slots,
            *numbers,
            self.scheduler.get_last_lr()[0],
        ]


@pytest.mark.parametrize("stop", [3, 9, 12])
def test_training_goes_on_with_the_same_bits(folder, stop):
    end = Training(folder + "/undisturbed", 1).run()
    assert Training(folder + "/disturbed", 1).run(stop=stop) is None
    end_again = Training(folder + "/disturbed", 50).run()
    for one, other in zip(end, end_again, strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    after_the_end = Training(folder + "/disturbed", 90).run()
    assert torch.equal(after_the_end[0], end[0])


def test_without_a_checkpoint_nothing_is_changed(folder):
    training = Training(folder, 1)
    before = training.model[0].weight.detach().clone()
    assert training.checkpoint.restore() is None
    assert torch.equal(training.model[0].weight, before)


def test_with_other_ranks_what_nobody_has_read_is_dealt_out_anew(size):
    sampler = hvd.ElasticSampler(range(20), shuffle=False)
    positions = [
        {"epoch": 4, "before": np.zeros(0, np.int64), "read": 2, "known": np.array([2 * rank, 2 * rank + 1])}
        for rank in range(size + 1)
    ]
    sampler.go_on(positions)
    assert sampler.epoch == 4
    left = set().union(*hvd.allgather_object(sampler.indices))
    assert left == set(range(2 * size + 2, 20))


def test_what_does_not_belong_together_is_refused(folder):
    with pytest.raises(ArgumentError, match="epoch: a int"):
        hvd.Checkpoint(folder, epoch=3)
    training = Training(folder, 1)
    training.checkpoint.save()
    with pytest.raises(CheckpointError, match="model, optimizer, scheduler, sampler in it; model in the program"):
        hvd.Checkpoint(folder, model=training.model).restore()

    class Odd(torch.nn.Linear):
        def get_extra_state(self):
            return Odd

        def set_extra_state(self, state):
            pass

    with pytest.raises(ArgumentError, match="numbers, strings"):
        hvd.Checkpoint(folder, model=Odd(1, 1)).save()


def test_a_generator_goes_on(folder):
    generator = torch.Generator().manual_seed(3 + hvd.rank())
    checkpoint = hvd.Checkpoint(folder, generator=generator)
    checkpoint.save(note="here")
    expected = torch.rand(4, generator=generator)
    assert checkpoint.restore() == {"note": "here"}
    assert torch.equal(torch.rand(4, generator=generator), expected)
