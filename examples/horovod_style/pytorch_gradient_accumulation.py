"""Several backward passes for one all-reduce in PyTorch, as Horovod's users write it: but for one import.

collective run -np 2 -- python examples/horovod_style/pytorch_gradient_accumulation.py [--batches-per-allreduce 4]
"""

import argparse
import zlib

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import collective.torch as hvd  # was: import horovod.torch as hvd

BATCH = 16


def main():
    """Cut each batch of the loader into small ones, add their gradients up, then step; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batches-per-allreduce", type=int, default=4)
    arguments = parser.parse_args()
    hvd.init()
    torch.manual_seed(hvd.rank())
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(digits.images).float()[order, None] / 16, torch.from_numpy(digits.target)[order]
    training, test_images, test_labels = TensorDataset(images[:1440], labels[:1440]), images[1440:], labels[1440:]
    sampler = DistributedSampler(training, num_replicas=hvd.size(), rank=hvd.rank())
    passes = arguments.batches_per_allreduce
    # Every rank makes the same number of passes for a step: no small batch at the end.
    loader = DataLoader(training, batch_size=BATCH * passes, sampler=sampler, drop_last=True)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    optimizer = optim.SGD(model.parameters(), lr=0.02 * hvd.size(), momentum=0.9)
    optimizer = hvd.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), backward_passes_per_step=passes
    )
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            for some, theirs in zip(images.split(BATCH), labels.split(BATCH), strict=True):
                # The gradients of the passes are added: each counts as its part of the batch.
                (F.cross_entropy(model(some), theirs) / passes).backward()
            optimizer.step()
        if hvd.rank() == 0:
            print(f"Epoch {epoch + 1} done", flush=True)

    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    checksums = hvd.allgather_object(zlib.crc32(weights))
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, weights equal on {hvd.size()} ranks: {len(set(checksums)) == 1}")


if __name__ == "__main__":
    main()
