"""Data-parallel training on one page, without a framework: split the data, ring all-reduce the gradient, start alike.

Run it on 2 ranks:            collective run -np 2 -- python examples/numpy_softmax.py
and, for the same answer, on 1:               python examples/numpy_softmax.py
"""

import numpy as np
from sklearn.datasets import load_digits

import collective
from collective.data import Shard

EPOCHS, GLOBAL_BATCH, RATE, MOMENTUM = 20, 96, 0.5, 0.9


def gradient(weights, images, labels, sample_weights):
    """Gradient of the mean of sample weight x cross entropy, with respect to the weights of a softmax regression."""
    scores = images @ weights
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[np.arange(len(labels)), labels] -= 1
    return images.T @ (probabilities * sample_weights[:, None]) / len(labels)


def main():
    """Train and let rank 0 tell."""
    collective.init()
    digits = load_digits()
    images = np.hstack([digits.data / 16, np.ones((len(digits.data), 1))]).astype(np.float32)
    training, test = slice(0, 1440), slice(1440, None)

    # Every rank has drawn its own start; rank 0's counts.
    weights = np.random.default_rng().normal(0, 0.01, (65, 10)).astype(np.float32)
    collective.broadcast(weights, root_rank=0, out=weights)

    velocity = np.zeros_like(weights)
    shard = Shard(1440, batch_size=GLOBAL_BATCH // collective.size(), order="shuffled")
    for epoch in range(EPOCHS):
        for batch in shard.batches(epoch):
            local = gradient(
                weights, images[training][batch.indexes], digits.target[training][batch.indexes], batch.weights
            )
            collective.allreduce(local, out=local)  # the ring: the average over all ranks, in place
            velocity = MOMENTUM * velocity - RATE * local
            weights += velocity
    accuracy = np.mean((images[test] @ weights).argmax(axis=1) == digits.target[test])
    sums = collective.allgather(weights.sum(dtype=np.float64).reshape(1))
    if collective.rank() == 0:
        print(f"{collective.size()} ranks, test accuracy {accuracy:.3f}, weights equal: {len(set(sums)) == 1}")


if __name__ == "__main__":
    main()
