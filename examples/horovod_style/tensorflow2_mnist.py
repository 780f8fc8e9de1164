"""A TensorFlow loop of one's own, as Horovod's users write it: only the import of ``hvd`` is another.

collective run -np 2 -- python examples/horovod_style/tensorflow2_mnist.py [--steps 400]
"""

import argparse
import zlib

import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import collective.tensorflow as hvd  # was: import horovod.tensorflow as hvd

TRAINING = 1440


def main():
    """Take ever new batches of the whole set, another order on every rank; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400, help="batches in all, shared by the ranks")
    steps = parser.parse_args().steps
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
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(64, activation="relu"),
        tf.keras.layers.Dense(10),
    ]
    model = tf.keras.Sequential(layers)
    loss_of = tf.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = tf.optimizers.Adam(0.001 * hvd.size())

    @tf.function
    def training_step(images, labels, first_batch):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        # After the first step, because only then the optimizer has variables of its own.
        if first_batch:
            hvd.broadcast_variables(model.variables, root_rank=0)
            hvd.broadcast_variables(optimizer.variables, root_rank=0)
        return loss

    for step, batch in enumerate(dataset.take(steps // hvd.size())):
        loss = training_step(*batch, step == 0)
        if step % 50 == 0 and hvd.rank() == 0:
            print(f"Step {step}: loss {float(loss):.4f}", flush=True)

    weights = b"".join(variable.numpy().tobytes() for variable in model.variables)
    checksums = hvd.allgather_object(zlib.crc32(weights))
    accuracy = np.mean(model(images[TRAINING:]).numpy().argmax(axis=1) == labels[TRAINING:])
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f}, weights equal on {hvd.size()} ranks: {len(set(checksums)) == 1}")


if __name__ == "__main__":
    main()
