"""A PyTorch training with checkpoints: python torch_training.py FOLDER RANK STEP; that rank dies once in that step.

Each rank notes the samples of every step as it trains on them, and in the end all that it would go on from.
"""

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import torch

import collective.torch as hvd

EPOCHS, BATCH, BATCHES, EVERY = 3, 4, 6, 4
X = torch.from_numpy(np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32))


def seed(number):
    """Begin all random numbers."""
    for begin in (torch.manual_seed, random.seed, np.random.seed):
        begin(number)


def digest(tensors):
    """What differs if one bit does."""
    return hashlib.sha256(b"".join(torch.as_tensor(each).numpy().tobytes() for each in tensors)).hexdigest()


def main():
    """Train, or go on."""
    folder, victim, moment = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    marker = folder / "has-died"
    torch.set_num_threads(1)
    hvd.init()
    seed((1000 if marker.exists() else 1) + hvd.rank())
    layers = [torch.nn.Linear(5, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.4), torch.nn.Linear(6, 1)]
    model = torch.nn.Sequential(*layers)
    hvd.broadcast_parameters(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    sampler = hvd.ElasticSampler(range(BATCH * BATCHES * hvd.size()), seed=5)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "sampler": sampler}
    checkpoint = hvd.Checkpoint(folder / "checkpoints", **parts)
    dataset = torch.utils.data.TensorDataset(torch.arange(len(X)), X)
    loader = torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler, generator=torch.Generator())

    told = checkpoint.restore() or {"epoch": 0, "step": 0}
    step = told["step"]
    print("from step", step, flush=True)
    for epoch in range(told["epoch"], EPOCHS):
        if epoch != sampler.epoch:
            sampler.set_epoch(epoch)
        for number, (places, x) in enumerate(loader):
            with open(folder / f"samples{hvd.rank()}", "a") as file:
                file.write(f"step {step}: {places.tolist()}\n")
            optimizer.zero_grad()
            noise = random.random() + np.random.random()
            (model(x + noise) ** 2).mean().backward()
            if (hvd.rank(), step) == (victim, moment) and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            optimizer.step()
            sampler.record_batch(number, BATCH)
            step += 1
            if step % EVERY == 0:
                checkpoint.save(epoch=epoch, step=step)
        scheduler.step()
        checkpoint.save(epoch=epoch + 1, step=step)
    slots = [value for each in optimizer.state_dict()["state"].values() for value in each.values()]
    end = {
        "step": step,
        "weights": digest(model.state_dict().values()),
        "slots": digest(slots),
        "rate": scheduler.get_last_lr(),
        "random": [torch.rand(3).tolist(), random.random(), np.random.random()],
    }
    (folder / f"end{hvd.rank()}").write_text(json.dumps(end))


if __name__ == "__main__":
    main()
