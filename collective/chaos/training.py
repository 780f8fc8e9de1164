"""The training that is disturbed: one process can compute every bit that a job of any ranks has to end with.

Gradients are multiples of 2**-20, so their sum over ranks is exact in float64, whatever order an algorithm adds in. All
the rest is done alike on every rank: a step with momentum, whose rate a random generator draws. Weights, momentum, the
generator's state and the number of the step are the whole state; a job that comes back with any of them wrong ends with
other bits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STEPS = 40
# So much that a fault can strike while it is written to memory.
WIDTH = 2**17
# Gradients are multiples of this.
QUANTUM = 2.0**-20


@dataclasses.dataclass
class Model:
    """The state of training.

    Attributes:
        step: Number of the step that comes next, from 0.
        weights: float64[WIDTH].
        velocity: float64[WIDTH], the momentum.
        random: State of the generator that draws every step's rate, as NumPy tells it.
    """

    step: int
    weights: np.ndarray
    velocity: np.ndarray
    random: Mapping[str, Any]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint holds as arrays."""
        return {"weights": self.weights, "velocity": self.velocity}

    @property
    def values(self) -> dict[str, Any]:
        """What a checkpoint holds as plain values."""
        return {"step": self.step, "random": self.random}


def initial() -> Model:
    """The state before the first step."""
    return Model(0, np.zeros(WIDTH), np.zeros(WIDTH), np.random.default_rng(7).bit_generator.state)


def restored(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> Model:
    """The state that a checkpoint held."""
    return Model(values["step"], arrays["weights"], arrays["velocity"], values["random"])


def gradient(model: Model, rank: int) -> np.ndarray:
    """The gradient of one rank's batch of this step."""
    batch = np.random.default_rng([model.step, rank]).normal(size=WIDTH)
    return np.round((batch - 0.01 * model.weights) / QUANTUM) * QUANTUM


def update(model: Model, total: np.ndarray, size: int) -> Model:
    """The state after a step in which the gradients of ``size`` ranks summed up to ``total``."""
    random = np.random.default_rng()
    random.bit_generator.state = model.random
    rate = 0.05 * (1 + random.random())
    velocity = 0.9 * model.velocity + total / size
    return Model(model.step + 1, model.weights - rate * velocity, velocity, random.bit_generator.state)


def digest(model: Model) -> str:
    """A checksum of the whole state."""
    text = f"{model.step} {sorted(model.random.items())}".encode()
    return hashlib.sha256(text + model.weights.tobytes() + model.velocity.tobytes()).hexdigest()[:16]


def undisturbed(sizes: Sequence[int]) -> str:
    """The checksum that a job ends with which took step k on ``sizes[k]`` ranks; computed here, without a job."""
    model = initial()
    for size in sizes:
        total = np.sum([gradient(model, rank) for rank in range(size)], axis=0)
        model = update(model, total, size)
    return digest(model)
