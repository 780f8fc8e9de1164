"""Train a Keras model on real handwritten digits with any number of ranks, and check that all hold the same weights.

    collective run -np 2 -- python examples/keras_mnist.py [--data digits|mnist|PATH.npz] [--epochs 10]
"""

import argparse
import time
import zlib

import keras
import numpy as np

import collective.keras as hvd
from collective.data import batches

GLOBAL_BATCH = 64


def load(source):
    """Training and test images [n, height, width, 1] from 0 to 1, and labels [n]."""
    if source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        images, labels = digits.images[order] / 16, digits.target[order]
        images, labels = (images[:1440], images[1440:]), (labels[:1440], labels[1440:])
    else:
        if source == "mnist":  # one download a host; the other ranks find the file
            for turn in (hvd.local_rank() == 0, hvd.local_rank() != 0):
                if turn:
                    (x, y), (x_test, y_test) = keras.datasets.mnist.load_data()
                hvd.barrier()
        else:
            with np.load(source, allow_pickle=False) as file:
                x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        images, labels = (x / 255, x_test / 255), (y, y_test)
    return *(part[..., None].astype(np.float32) for part in images), *labels


def main():
    """Train on this rank's part of every batch; rank 0 tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits (default), mnist, or a file in mnist.npz's layout")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()

    hvd.init()
    images, test_images, labels, test_labels = load(arguments.data)
    model = keras.Sequential([
        keras.Input(images.shape[1:]),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(2e-3))
    model.compile(optimizer, "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])

    def rounds():
        for epoch in range(arguments.epochs):
            yield from batches((images, labels), GLOBAL_BATCH // hvd.size(), epoch=epoch, order="shuffled")

    started = time.perf_counter()
    model.fit(
        rounds(), epochs=arguments.epochs, steps_per_epoch=-(-len(labels) // GLOBAL_BATCH),
        callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()],
        verbose=2 if hvd.rank() == 0 else 0,
    )  # fmt: skip
    seconds = time.perf_counter() - started

    checksums = hvd.allgather_object([zlib.crc32(np.ascontiguousarray(w)) for w in model.get_weights()])
    accuracy = np.mean(model.predict(test_images, verbose=0).argmax(axis=1) == test_labels)
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}")
        print(f"{len(labels) * arguments.epochs / seconds:.0f} samples/s on {hvd.size()} ranks")
        print(f"weights equal on all ranks: {checksums.count(checksums[0]) == hvd.size()} ({checksums[0][0]:08x})")


if __name__ == "__main__":
    main()
