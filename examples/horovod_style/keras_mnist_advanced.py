"""Keras with warm-up, a schedule, averaged metrics and a checkpoint, as Horovod's users write it: but for one import.

collective run -np 2 -- python examples/horovod_style/keras_mnist_advanced.py [--epochs 10] [--checkpoints FOLDER]
"""

import argparse
import tempfile
import zlib
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import collective.keras as hvd  # was: import horovod.keras as hvd

TRAINING = 1440


def main():
    """Train on this rank's part of the set; rank 0 tells, and keeps the checkpoints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoints", type=Path, default=None, help="folder; default: one that is removed")
    arguments = parser.parse_args()
    hvd.init()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.images[order, ..., None] / 16, keras.utils.to_categorical(digits.target[order], 10)
    mine = slice(hvd.rank(), TRAINING // hvd.size() * hvd.size(), hvd.size())

    keras.utils.set_random_seed(hvd.rank())
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(2),
        keras.layers.Dropout(0.25),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(10, activation="softmax"),
    ]
    model = keras.Sequential(layers)
    scaled_lr = 0.05 * hvd.size()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(scaled_lr, momentum=0.9))
    model.compile(loss="categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    last = int(arguments.epochs * 0.8)
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        # Before those that read the metrics: on all ranks they are to see the same.
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=3, verbose=1),
        hvd.callbacks.LearningRateScheduleCallback(initial_lr=scaled_lr, multiplier=1.0, start_epoch=3, end_epoch=last),
        hvd.callbacks.LearningRateScheduleCallback(initial_lr=scaled_lr, multiplier=0.1, start_epoch=last),
        keras.callbacks.ReduceLROnPlateau(patience=10, verbose=1),
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.checkpoints or Path(temporary)
        # On one rank only: several would write into one file.
        if hvd.rank() == 0:
            callbacks.append(keras.callbacks.ModelCheckpoint(str(folder / "checkpoint-{epoch}.keras")))
        model.fit(
            images[mine],
            labels[mine],
            batch_size=32,
            epochs=arguments.epochs,
            validation_data=(images[TRAINING:], labels[TRAINING:]),
            callbacks=callbacks,
            verbose=2 if hvd.rank() == 0 else 0,
        )
        kept = sorted(path.name for path in folder.glob("*.keras"))

    score = hvd.allreduce(model.evaluate(images[TRAINING:], labels[TRAINING:], verbose=0)[1], name="accuracy")
    weights = b"".join(array.tobytes() for array in model.get_weights())
    checksums = hvd.allgather(np.array([zlib.crc32(weights)]))
    if hvd.rank() == 0:
        print(f"{len(kept)} checkpoints")
        print(f"test accuracy {score:.4f}, weights equal on {hvd.size()} ranks: {len(np.unique(checksums)) == 1}")


if __name__ == "__main__":
    main()
