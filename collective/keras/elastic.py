"""A Keras model's state to commit and to go back to, and callbacks that commit it; see ``common.elastic``."""

from __future__ import annotations

from typing import Any

import keras

from collective.common.elastic import run as run
from collective.tensorflow.elastic import TensorFlowKerasState


class KerasState(TensorFlowKerasState):
    """A Keras model, its optimizer, and the objects given by name, such as ``epoch=0, batch=0``.

    Args:
        model: A built model.
        optimizer: Its optimizer; None: the one that the model was compiled with, if any.
        kwargs: Attributes.
    """

    # What the callbacks below keep.
    batch: int
    epoch: int

    def __init__(self, model: Any, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(model, optimizer, **kwargs)


class CommitStateCallback(keras.callbacks.Callback):
    """Commits the state after every so many batches, and at the end of an epoch.

    Args:
        state: The state.
        batches_per_commit: How many.
    """

    def __init__(self, state: KerasState, batches_per_commit: int = 1) -> None:
        super().__init__()
        self._state, self._every = state, batches_per_commit
        self._left = batches_per_commit

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Commit if it is time."""
        self._left -= 1
        if self._left == 0:
            self._commit()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Commit."""
        self._commit()

    def _commit(self) -> None:
        self._state.commit()
        self._left = self._every


class UpdateBatchStateCallback(keras.callbacks.Callback):
    """Keeps ``state.batch``, the batches that are done in an epoch.

    An epoch that goes on is told how many are left by ``fit(steps_per_epoch=steps - state.batch)``.

    Args:
        state: The state, with an attribute ``batch``.
    """

    def __init__(self, state: KerasState) -> None:
        super().__init__()
        self._state = state

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count."""
        self._state.batch += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Begin the next epoch at its start."""
        self._state.batch = 0


class UpdateEpochStateCallback(keras.callbacks.Callback):
    """Keeps ``state.epoch``, the epochs that are done, also when training begins at a later one.

    Args:
        state: The state, with an attribute ``epoch``.
    """

    def __init__(self, state: KerasState) -> None:
        super().__init__()
        self._state = state
        self._first = state.epoch

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin where the state is."""
        self._first = self._state.epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count."""
        self._state.epoch = self._first + epoch + 1
