"""A training loop of one's own in TensorFlow: a distributed tape, sharded tf.data, variables from rank 0.

collective run -np 2 -- python examples/tensorflow_custom_loop.py
"""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import collective.tensorflow as hvd
from collective.tensorflow.data import shard

EPOCHS, GLOBAL_BATCH = 10, 64


def main():
    """Train on this rank's shard; rank 0 tells."""
    hvd.init()
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = (digits.images[order, ..., None] / 16).astype(np.float32), digits.target[order]
    training = tf.data.Dataset.from_tensor_slices((images[:1440], labels[:1440]))
    training = shard(training, GLOBAL_BATCH // hvd.size(), order="shuffled", seed=1)

    keras.utils.set_random_seed(hvd.rank())  # every rank draws a start of its own; rank 0's counts
    layers = [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(10),
    ]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.Adam(3e-3)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hvd.broadcast_variables(model.variables + optimizer.variables, root_rank=0)

    @tf.function
    def step(x, y, weights):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True), sample_weight=weights)
        tape = hvd.DistributedGradientTape(tape)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return hvd.allreduce(loss, name="loss")

    for epoch in range(EPOCHS):
        losses = [float(step(*batch)) for batch in training]
        if hvd.rank() == 0:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {np.mean(losses):.4f}", flush=True)

    accuracy = np.mean(model.predict(images[1440:], verbose=0).argmax(axis=1) == labels[1440:])
    if hvd.rank() == 0:
        print(f"test accuracy {accuracy:.4f} on {hvd.size()} ranks")


if __name__ == "__main__":
    main()
