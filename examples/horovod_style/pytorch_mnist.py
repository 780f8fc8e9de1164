"""PyTorch, as Horovod's users write it: only the import of ``hvd`` is another.

collective run -np 2 -- python examples/horovod_style/pytorch_mnist.py [--epochs 12] [--use-adasum] [--fp16-allreduce]
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


class Net(nn.Module):
    """Two convolutions and two layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.drop = nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x):
        """Logarithms of probabilities [n, 10] of images [n, 1, 8, 8]."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.drop(F.max_pool2d(x, 2).flatten(1))
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1)


def metric_average(value, name):
    """The average of a number over all ranks."""
    return hvd.allreduce(torch.tensor(value), name=name).item()


def test(model, loader, sampler):
    """Loss and accuracy over the test sets of all ranks."""
    model.eval()
    loss, right = 0.0, 0.0
    with torch.no_grad():
        for images, labels in loader:
            output = model(images)
            loss += F.nll_loss(output, labels, reduction="sum").item()
            right += (output.argmax(1) == labels).float().sum().item()
    # Each rank has seen its own part: its length is the sampler's, not the set's.
    return metric_average(loss / len(sampler), "avg_loss"), metric_average(right / len(sampler), "avg_accuracy")


def main():
    """Train on this rank's part of every epoch; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--use-adasum", action="store_true")
    parser.add_argument("--fp16-allreduce", action="store_true")
    arguments = parser.parse_args()
    hvd.init()
    torch.manual_seed(hvd.rank())
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(digits.images).float()[order, None] / 16, torch.from_numpy(digits.target)[order]
    training, testing = TensorDataset(images[:1440], labels[:1440]), TensorDataset(images[1440:], labels[1440:])
    training_sampler = DistributedSampler(training, num_replicas=hvd.size(), rank=hvd.rank())
    training_loader = DataLoader(training, batch_size=32, sampler=training_sampler)
    testing_sampler = DistributedSampler(testing, num_replicas=hvd.size(), rank=hvd.rank())
    testing_loader = DataLoader(testing, batch_size=100, sampler=testing_sampler)

    model = Net()
    # Adasum needs no larger rate for more ranks.
    scale = 1 if arguments.use_adasum else hvd.size()
    optimizer = optim.SGD(model.parameters(), lr=arguments.lr * scale, momentum=0.9)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=hvd.Compression.fp16 if arguments.fp16_allreduce else hvd.Compression.none,
        op=hvd.Adasum if arguments.use_adasum else hvd.Average,
    )
    for epoch in range(arguments.epochs):
        model.train()
        training_sampler.set_epoch(epoch)
        for images, labels in training_loader:
            optimizer.zero_grad()
            F.nll_loss(model(images), labels).backward()
            optimizer.step()
        loss, accuracy = test(model, testing_loader, testing_sampler)
        if hvd.rank() == 0:
            print(f"Epoch {epoch + 1}: test loss {loss:.4f}, test accuracy {accuracy:.4f}", flush=True)

    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    checksums = hvd.allgather_object(zlib.crc32(weights))
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, weights equal on {hvd.size()} ranks: {len(set(checksums)) == 1}")


if __name__ == "__main__":
    main()
