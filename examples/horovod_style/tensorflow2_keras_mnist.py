"""``model.fit`` of tf.keras, as Horovod's users write it: only the import of ``hvd`` is another.

collective run -np 2 -- python examples/horovod_style/tensorflow2_keras_mnist.py [--epochs 8]
"""

import argparse
import zlib

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import collective.tensorflow.keras as hvd  # was: import horovod.tensorflow.keras as hvd

TRAINING, STEPS = 1440, 60


def main():
    """Take ever new batches of the whole set, another order on every rank; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    hvd.init()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = (digits.images[order, ..., None] / 16).astype(np.float32), digits.target[order]
    dataset = tf.data.Dataset.from_tensor_slices((images[:TRAINING], labels[:TRAINING]))
    dataset = dataset.shuffle(TRAINING, seed=hvd.rank()).repeat().batch(64)

    tf.keras.utils.set_random_seed(hvd.rank())
    layers = [
        tf.keras.Input((8, 8, 1)),
        tf.keras.layers.Conv2D(16, 3, activation="relu"),
        tf.keras.layers.Dropout(0.25),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(64, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
    model = tf.keras.Sequential(layers)
    # A step of N ranks is one on N times the batch.
    scaled_lr = 0.001 * hvd.size()
    optimizer = tf.optimizers.Adam(scaled_lr)
    optimizer = hvd.DistributedOptimizer(optimizer, backward_passes_per_step=1, average_aggregated_gradients=True)
    model.compile(loss=tf.losses.SparseCategoricalCrossentropy(), optimizer=optimizer, metrics=["accuracy"])
    callbacks = [
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd.callbacks.MetricAverageCallback(),
        hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=3),
    ]
    verbose = 2 if hvd.rank() == 0 else 0
    model.fit(dataset, steps_per_epoch=STEPS // hvd.size(), epochs=epochs, callbacks=callbacks, verbose=verbose)

    weights = b"".join(array.tobytes() for array in model.get_weights())
    checksums = hvd.allgather(np.array([zlib.crc32(weights)]))
    accuracy = np.mean(model.predict(images[TRAINING:], verbose=0).argmax(axis=1) == labels[TRAINING:])
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, weights equal on {hvd.size()} ranks: {len(np.unique(checksums)) == 1}")


if __name__ == "__main__":
    main()
