"""How a job keeps its state, by the level it runs at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from collective.chaos import training
from collective.checkpoint import Checkpoints

# Steps between two checkpoints.
EVERY = 5


class Keeper(Protocol):
    """Keeps the state of training."""

    def newest(self) -> training.Model | None:
        """What was kept last; called by all ranks. None: nothing was."""

    def keep(self, model: training.Model) -> None:
        """Keep it if it is time to; called by all ranks after every step."""


class Nothing:
    """L0: nothing is kept."""

    def __init__(self, folder: Path) -> None:
        pass

    def newest(self) -> training.Model | None:
        """See ``Keeper``."""
        return None

    def keep(self, model: training.Model) -> None:
        """See ``Keeper``."""


class OnDisk:
    """L1: checkpoints, every few steps."""

    def __init__(self, folder: Path) -> None:
        self._checkpoints = Checkpoints(folder)

    def newest(self) -> training.Model | None:
        """See ``Keeper``."""
        found = self._checkpoints.newest()
        return found and training.restored(found.arrays, found.values)

    def keep(self, model: training.Model) -> None:
        """See ``Keeper``."""
        if model.step % EVERY == 0:
            self._checkpoints.save(model.step, model.arrays, model.values)


KEEPERS: dict[str, Callable[[Path], Keeper]] = {"L0": Nothing, "L1": OnDisk}
