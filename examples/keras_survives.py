"""A Keras training that survives being killed: it goes on at the next batch, and ends with the bits it would have had.

collective run -np 2 --restarts 3 -- python examples/keras_survives.py checkpoints [--epochs 5]

Kill a rank while it runs (`kill -9` of one of its python processes), or let it kill itself by --kill 40.
"""

import argparse
import os
import signal
import zlib

import keras
import numpy as np
from sklearn.datasets import load_digits

import collective.tensorflow.keras as hvd
from collective.data import Position
from collective.tensorflow.data import batches


class Kill(keras.callbacks.Callback):
    """Kills the last rank after so many steps, the first time."""

    def __init__(self, step, note):
        super().__init__()
        self.step, self.note = step, note

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002  # Keras prescribes the signature
        """Count the optimizer's steps, which a checkpoint keeps."""
        is_last = hvd.rank() == hvd.size() - 1
        if is_last and int(self.model.optimizer.iterations) == self.step and not os.path.exists(self.note):
            open(self.note, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    """Train; rank 0 tells what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--kill", type=int, default=0, help="the step at which the last rank kills itself")
    arguments = parser.parse_args()
    hvd.init()
    keras.utils.set_random_seed(hvd.rank())
    digits = load_digits()
    images, labels = (digits.images[..., None] / 16).astype(np.float32), digits.target

    position = Position()  # ties the data to the checkpoints
    data = batches((images, labels), 32, order="shuffled", position=position)
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10, activation="softmax")])
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(2e-3))
    model.compile(optimizer, "sparse_categorical_crossentropy", weighted_metrics=["accuracy"])
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        Kill(arguments.kill, f"{arguments.folder}.killed"),
        hvd.callbacks.CheckpointCallback(arguments.folder, every=10, position=position),  # the last one
    ]
    history = model.fit(data, epochs=arguments.epochs, callbacks=callbacks, shuffle=False, verbose=0).history
    weights = b"".join(array.tobytes() for array in model.get_weights())
    checksums = hvd.allgather_object(f"{zlib.crc32(weights):08x}")
    if hvd.rank() == 0:
        print(f"accuracy in {len(history['accuracy'])} epochs {history['accuracy'][-1]:.3f}, weights {checksums}")


if __name__ == "__main__":
    main()
