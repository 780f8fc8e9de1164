"""The models of the training-step benchmark: small ones, of different ratios of gradient to compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
from keras import layers

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Model:
    """A model and its batch.

    Attributes:
        input_shape: Shape of one sample.
        layers: Makes its layers.
        batch: Samples of one step on one rank.
    """

    input_shape: tuple[int, ...]
    layers: Callable[[], list[keras.Layer]]
    batch: int

    def build(self) -> keras.Sequential:
        """A new model, with the same initial weights each time and on every rank."""
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input(self.input_shape), *self.layers()])


def mlp() -> list[keras.Layer]:
    """0.67 M parameters, little compute: a step is so short that the calls count."""
    return [layers.Dense(512, "relu"), layers.Dense(512, "relu"), layers.Dense(CLASSES)]


def wide() -> list[keras.Layer]:
    """10 M parameters: gradients count, with little compute to hide them behind."""
    return [layers.Dense(2048, "relu"), layers.Dense(4096, "relu"), layers.Dense(CLASSES)]


def cnn() -> list[keras.Layer]:
    """1.2 M parameters, much compute."""
    return [
        layers.Conv2D(32, 3, activation="relu"),
        layers.Conv2D(64, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(128, "relu"),
        layers.Dense(CLASSES),
    ]


MODELS = {
    "mlp": Model((784,), mlp, 32),
    "wide": Model((784,), wide, 32),
    "cnn": Model((28, 28, 1), cnn, 96),
}
