"""How a job keeps its state and goes on from it, by the level it runs at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from collective.chaos import training
from collective.chaos.training import Model
from collective.checkpoint import Checkpoints
from collective.common import elastic
from collective.snapshots import Snapshots

# Steps between two checkpoints; in memory every step is kept.
EVERY = 5

Keep = Callable[[Model], None]
# Trains from a state to the end, and hands every new one over to be kept.
Train = Callable[[Model, Keep], None]


def nothing(train: Train, folder: Path) -> None:  # noqa: ARG001  # nothing is written
    """L0: nothing is kept."""
    train(training.initial(), lambda model: None)  # noqa: ARG005


def on_disk(train: Train, folder: Path) -> None:
    """L1: checkpoints, every few steps."""
    checkpoints = Checkpoints(folder)
    found = checkpoints.newest()

    def keep(model: Model) -> None:
        if model.step % EVERY == 0:
            checkpoints.save(model.step, model.arrays, model.values)

    train(training.restored(found.arrays, found.values) if found else training.initial(), keep)


def in_memory(train: Train, folder: Path) -> None:  # noqa: ARG001  # the job has a folder of its own for them
    """L2: snapshots in the memory of every host."""
    snapshots = Snapshots()
    found = snapshots.newest()

    def keep(model: Model) -> None:
        snapshots.save(model.step, model.arrays, model.values)

    train(training.restored(found.arrays, found.values) if found else training.initial(), keep)


def in_place(train: Train, folder: Path) -> None:  # noqa: ARG001
    """L3: the ranks that are left go on from the last commit, and others come in the place of those that are lost."""
    state = elastic.ObjectState(**vars(training.initial()))

    def keep(model: Model) -> None:
        for name, value in vars(model).items():
            setattr(state, name, value)
        state.commit()

    def from_state(state: elastic.ObjectState) -> None:
        train(Model(**{name: getattr(state, name) for name in vars(training.initial())}), keep)

    elastic.run(from_state)(state)


LEVELS: dict[str, Callable[[Train, Path], None]] = {"L0": nothing, "L1": on_disk, "L2": in_memory, "L3": in_place}
