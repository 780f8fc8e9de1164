"""Train a PyTorch model on real handwritten digits with any number of ranks: a Horovod script but for its import.

collective run -np 2 -- python examples/torch_mnist.py [--epochs 20]
"""

import argparse
import time
import zlib

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import collective.torch as hvd

GLOBAL_BATCH = 64


def load():
    """Training and test sets of images [n, 1, 8, 8] from 0 to 1 and their labels [n]."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(digits.images).float()[order, None] / 16
    labels = torch.from_numpy(digits.target)[order]
    return TensorDataset(images[:1440], labels[:1440]), TensorDataset(images[1440:], labels[1440:])


def main():
    """Train on this rank's part of every batch; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    hvd.init()
    torch.set_num_threads(1)  # the ranks of a host share its cores
    torch.manual_seed(hvd.rank())  # every rank draws a start of its own; rank 0's counts
    training, test = load()
    sampler = DistributedSampler(training, num_replicas=hvd.size(), rank=hvd.rank())
    loader = DataLoader(training, batch_size=max(1, GLOBAL_BATCH // hvd.size()), sampler=sampler)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Dropout(0.3), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)

    started = time.perf_counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
        schedule.step()
        mean = hvd.allreduce(loss.detach(), name="loss").item()
        if hvd.rank() == 0:
            print(f"Epoch {epoch + 1}/{epochs}: loss of the last batch {mean:.4f}", flush=True)
    seconds = time.perf_counter() - started

    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())
    checksums = hvd.allgather_object(f"{zlib.crc32(weights):08x}")
    images, labels = test.tensors
    with torch.no_grad():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean().item()
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, {len(training) * epochs / seconds:.0f} samples/s")
        print(f"weights equal on all {hvd.size()} ranks: {len(set(checksums)) == 1}, checksums {', '.join(checksums)}")


if __name__ == "__main__":
    main()
