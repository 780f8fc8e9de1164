"""A Keras callback with which training survives being killed: it goes on at the next batch, with the same bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras

from collective import world
from collective.common import trees
from collective.data import Position, Shard
from collective.errors import ArgumentError, CheckpointError
from collective.keras import memory, state
from collective.log import logger
from collective.training import Training, TrainingCheckpoints

Logs = dict[str, Any]


class CheckpointCallback(keras.callbacks.Callback):
    """Save all that training goes on from, now and then, and go on from the newest when ``fit`` begins.

    Saved are the weights, the optimizer's state, the sums of metrics, random numbers (of layers, Keras, Python and
    ``np.random``), where in its data the training is, and Keras's history. What differs between ranks is saved of every
    rank. ``fit`` then goes on at the batch after the last one saved: Keras counts the batches before it without reading
    data or training, so other callbacks and schedules see the right numbers. A job that is started again so
    (``collective run --restarts``) ends with the bits of one that was never disturbed. All ranks have to pass it.

    Example::

        position = Position()
        data = collective.tensorflow.data.batches((x, y), 32, order="shuffled", position=position)
        checkpoints = CheckpointCallback("checkpoints", every=100, position=position)
        model.fit(data, epochs=20, callbacks=[checkpoints])

    Args:
        folder: Where checkpoints are on rank 0's host; one for each ``fit``.
        every: After how many batches one is saved, beside those at the ends of epochs; ``epoch``: at those only.
        keep: How many of the newest are kept.
        position: What the dataset reads that ``fit`` trains on; needed to go on in the middle of an epoch.
        repeat_epochs: Without ``position``: begin an interrupted epoch again, though what was learnt in it stays, so
            that its first batches count twice.
        callbacks: Callbacks that would otherwise forget what they have seen: Keras's ``EarlyStopping``,
            ``ReduceLROnPlateau`` and ``ModelCheckpoint``, and such as have ``state_dict`` and ``load_state_dict``.

    Raises:
        ArgumentError: when checkpoints in the middle of an epoch are wanted and nobody could go on there; when what a
            callback remembers isn't known.

    Cost of a checkpoint:
        See ``TrainingCheckpoints.save``. Training waits for it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int | str = "epoch",
        keep: int = 2,
        *,
        position: Position | None = None,
        repeat_epochs: bool = False,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        if every != "epoch" and (not isinstance(every, int) or every < 1):
            raise ArgumentError("checkpoints are saved every so many batches, or every 'epoch'", received=f"{every=}")
        if every != "epoch" and position is None and not repeat_epochs:
            raise ArgumentError(
                "training goes on in the middle of an epoch with data that can",
                received=f"every={every}, position=None",
                fix="Pass the position that the dataset of collective.tensorflow.data was made with; or every='epoch'; "
                "or repeat_epochs=True, which trains on an interrupted epoch's first batches twice",
            )
        self._checkpoints, self._folder = TrainingCheckpoints(folder, keep), os.fspath(folder)
        self._every = 0 if every == "epoch" else int(every)
        self._position, self._callbacks = position, list(callbacks)
        for each in self._callbacks:
            memory.check(each)
        self._history: list[tuple[int, Logs]] = []
        self._batches = 0  # since training began, whatever has happened since
        self._epoch, self._done = 0, 0  # the epoch, and the batches of it that are done
        self._found: Training | None = None
        self._skipped = 0  # batches of the epoch that were done before the job was started again
        self._begun = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Go back to the newest checkpoint, if there is one."""
        if self._begun:
            raise ArgumentError(
                "checkpoints in a folder belong to one fit",
                received=f"fit was called again with the callback of {self._folder}",
                fix="Make a callback with a folder of its own for each fit",
            )
        self._begun = True
        self._check_steps()
        found = self._checkpoints.newest()
        if found is None:
            return
        if not self.model.built:
            raise CheckpointError(
                "a model is built before it can go on from a checkpoint",
                received=f"a model that isn't, and a checkpoint in {self._folder}",
                fix="Give the model an Input, or call it on a batch before fit",
                where=world.topology().where,
            )
        self._found, self._batches = found, found.values["batches"]
        epoch, self._skipped = found.values["epoch"], self._start(found.values)
        if found.values["stopped"]:
            epoch = self.params["epochs"]
        if world.rank() == 0:
            left = f"epoch {epoch + 1}, batch {self._skipped}" if epoch < self.params["epochs"] else "its end"
            logger.warning(
                "Training goes on from the checkpoint of step %d in %s: at %s", found.step, self._folder, left
            )
        self.model._initial_epoch = epoch
        self._restore()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Let the data begin where training is."""
        self.model._initial_epoch = None  # Keras would begin its next fit there, too
        self._epoch, self._done = epoch, 0
        if self._found:
            self._restore_callbacks()
            if not self._skipped:
                self._found = None
        if self._position:
            self._position.seek(epoch, self._skipped)

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Leave out a batch that was done before."""
        if self._found:
            self._skip_training()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Save if it is time; after the last batch that was done before, begin to train."""
        if self._found:
            self._done = batch + 1
            if self._done >= self._skipped:
                self._restore()
                self._found, self._skipped = None, 0
            return
        before, self._batches = self._batches, self._batches + batch + 1 - self._done
        self._done = batch + 1
        if self._position and not self._position.is_read:
            raise ArgumentError(
                "position is that of the dataset that fit trains on",
                received="one that nobody has read",
                fix="Pass it to collective.tensorflow.data as well, where the dataset is made",
            )
        if self._every and before // self._every < self._batches // self._every:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Save."""
        self._epoch, self._done = epoch + 1, 0
        self._history.append((epoch, dict(logs or {})))
        self._save()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Save what has changed since the last epoch, and that training was stopped if it was."""
        self.model._initial_epoch = None
        if self._found:  # there was nothing left to train
            self._restore_callbacks()
            self._found = None
        if self.model.stop_training:
            self._save(stopped=True)

    @property
    def _plan(self) -> Shard | None:
        return self._position.plan if self._position else None

    def _check_steps(self) -> None:
        plan, steps = self._plan, (self.params or {}).get("steps")
        if self._position and (plan is None or steps != plan.steps):
            raise ArgumentError(
                "position is that of the dataset that fit trains on, a whole pass in each epoch",
                received=f"steps of an epoch: {steps}, of the dataset at this position: {plan and plan.steps}",
                fix="Pass the same position to collective.tensorflow.data, and no steps_per_epoch to fit",
            )

    def _start(self, values: dict[str, Any]) -> int:
        """The batch to go on at, which is another one where the ranks are more or fewer."""
        plan, batch = self._plan, int(values["batch"])
        if plan is None:
            if batch and world.rank() == 0:
                logger.warning("The interrupted epoch begins again: its first %d batches count twice", batch)
            return 0
        samples = plan.size * plan.batch_size
        if samples == values["samples"]:
            return batch
        # Of blocks each rank has another one now.
        return 0 if plan.order == "contiguous" else batch * int(values["samples"]) // samples

    def _skip_training(self) -> None:
        """Let Keras count the next batch without training on it."""
        model, train, history = self.model, self.model.train_function, self.model.history

        def skip(iterator: Any) -> Any:
            model.train_function = train  # at once: nobody is told when fit ends by an exception
            if model.history is not history:  # it has, between the beginning of a batch and this; it is another fit
                return train(iterator)
            build_metrics(model, iterator)
            return dict(model.get_metrics_result())

        model.train_function = skip

    def _restore(self) -> None:
        """Set all variables and random numbers; twice, as callbacks see the batches that are skipped in between."""
        assert self._found is not None  # noqa: S101  # who calls this has looked
        state.build(self.model)
        # Of an epoch that has not begun there are no metrics yet.
        kinds = state.KINDS if self._done else state.LASTING
        arrays = {name: array for name, array in self._found.arrays.items() if name.startswith(kinds)}
        state.assign(state.variables_of(self.model, kinds), arrays)
        state.set_random_numbers(self._found.mine["random"])

    def _restore_callbacks(self) -> None:
        assert self._found is not None  # noqa: S101  # who calls this has looked
        self._history, kept = trees.join(self._found.mine["callbacks"], self._found.arrays, allow_pickle=False)
        memory.retell(self.model.history, self._history)
        if len(kept) != len(self._callbacks):
            raise CheckpointError(
                "training goes on with the callbacks that it had",
                received=f"{len(self._callbacks)} beside this one, where the checkpoint has {len(kept)}",
                fix="Pass the same list to fit, or begin in another folder",
                where=world.topology().where,
            )
        for callback, remembered in zip(self._callbacks, kept, strict=True):
            memory.remind(callback, remembered)

    def _save(self, stopped: bool = False) -> None:
        state.build(self.model)
        arrays = state.arrays_of(state.variables_of(self.model))
        remembered, rest = trees.split([self._history, [*map(memory.of, self._callbacks)]], allow_pickle=False)
        plan = self._plan
        values = {
            "epoch": self._epoch,
            "batch": self._done,
            "batches": self._batches,
            "samples": plan.size * plan.batch_size if plan else 0,
            "stopped": stopped,
        }
        own = {"random": state.random_numbers(), "callbacks": rest}
        self._checkpoints.save(self._batches, arrays | remembered, values, own)


def build_metrics(model: Any, iterator: Any) -> None:
    """Make the variables of metrics before the first step, from what a dataset's iterator says of its elements."""

    def symbol(spec: Any) -> Any:  # what stands for no targets has no dtype
        return spec if hasattr(spec, "dtype") else None

    model._symbolic_build(data_batch=keras.tree.map_structure(symbol, iterator.element_spec))
