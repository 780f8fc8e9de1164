"""Train a Keras model on real handwritten digits with any number of ranks, and check that all hold the same weights.

collective run -np 2 -- python examples/keras_mnist.py [--data digits|mnist|PATH.npz] [--epochs 20]
"""

import argparse
import time
import zlib

import keras
import numpy as np
from sklearn.datasets import load_digits

import collective.keras as hvd
from collective.data import Shard, batches

GLOBAL_BATCH = 64


def load(source):
    """Training and test images [n, height, width, 1] from 0 to 1, and their labels [n]."""
    if source == "digits":
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        images, labels = digits.images[order, ..., None] / 16, digits.target[order]
        return images[:1440], labels[:1440], images[1440:], labels[1440:]
    for turn in (0, 1):  # one download a host: the other ranks find the file
        if source == "mnist" and min(hvd.local_rank(), 1) == turn:
            (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
        hvd.barrier()
    if source != "mnist":
        with np.load(source) as file:
            x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    return x[..., None] / np.float32(255), y, x_test[..., None] / np.float32(255), y_test


def main():
    """Train on this rank's part of every batch; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="digits (default), mnist, or a file in mnist.npz's layout")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    hvd.init()
    images, labels, test_images, test_labels = load(arguments.data)
    keras.utils.set_random_seed(hvd.rank())  # every rank draws a start of its own; rank 0's counts
    layers = [
        keras.Input(images.shape[1:]),
        *(keras.layers.Conv2D(filters, 3, activation="relu") for filters in (16, 32)),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    shard = {"batch_size": max(1, GLOBAL_BATCH // hvd.size()), "order": "shuffled"}
    steps = Shard(len(labels), **shard).steps
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, arguments.epochs * steps))
    model.compile(hvd.DistributedOptimizer(optimizer), "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    started = time.perf_counter()
    model.fit(
        (batch for epoch in range(arguments.epochs) for batch in batches((images, labels), epoch=epoch, **shard)),
        steps_per_epoch=steps,
        epochs=arguments.epochs,
        callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()],
        verbose=2 if hvd.rank() == 0 else 0,
        shuffle=False,
    )
    seconds = time.perf_counter() - started
    weights = b"".join(array.tobytes() for array in model.get_weights())
    checksums = hvd.allgather_object(f"{zlib.crc32(weights):08x}")
    accuracy = np.mean(model.predict(test_images, verbose=0).argmax(axis=1) == test_labels)
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, {len(labels) * arguments.epochs / seconds:.0f} samples/s")
        print(f"weights equal on all {hvd.size()} ranks: {len(set(checksums)) == 1}, checksums {', '.join(checksums)}")


if __name__ == "__main__":
    main()
