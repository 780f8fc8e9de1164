"""Keras callbacks: start from one rank's variables, average metrics, warm up and schedule the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from collective import collectives, world
from collective.errors import ArgumentError
from collective.keras.bridge import broadcast_variables, is_variable, key
from collective.keras.checkpoint import CheckpointCallback as CheckpointCallback
from collective.keras.consistency import ConsistencyCallback as ConsistencyCallback
from collective.monitor import activity
from collective.reduce_ops import Sum

Logs = dict[str, Any]


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """Start all ranks from the weights and the optimizer state of one.

    Before the first step if the model is built by then (as ``fit`` sees to), else after it. Random seeds (dropout) and
    metrics stay each rank's own.

    Args:
        root_rank: The rank whose variables all get.
        device: Of no effect: arrays are broadcast from the host's memory.
        local_variables: A variable or several that stay each rank's own.

    Raises:
        ArgumentError: when ``local_variables`` are no variables.
    """

    def __init__(self, root_rank: int, device: str = "", local_variables: Any = None) -> None:
        super().__init__()
        self.root_rank, self.device = root_rank, device
        self.broadcast_done = False
        self._local: dict[int, Any] = {}
        if local_variables is None:
            return
        for variable in [local_variables] if is_variable(local_variables) else local_variables:
            if not is_variable(variable):
                raise ArgumentError("local_variables are variables", received=f"local_variables={local_variables!r}")
            self.register_local_var(variable)

    def register_local_var(self, var: Any) -> None:
        """Let a variable stay this rank's own."""
        self._local[key(var)] = var  # kept, or another could get its key

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Broadcast if there is something to broadcast yet."""
        if self.model.built and not self.broadcast_done:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._broadcast()

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Broadcast after the first step a model that was not built before; count the step for reports."""
        activity.count_step()
        if not self.broadcast_done:
            self._broadcast()

    def _broadcast(self) -> None:
        every = [*self.model.weights, *self.model.optimizer.variables]
        broadcast_variables([each for each in every if key(each) not in self._local], self.root_rank)
        self.broadcast_done = True


class MetricAverageCallback(keras.callbacks.Callback):
    """Average the logs of each epoch over all ranks, weighted by the samples each rank has seen.

    Put it before callbacks that read the logs (checkpoints, early stopping), which then decide alike on all ranks.
    Rank r's training metrics weigh as much as the samples it trained on, its ``val_`` metrics as much as those it
    validated on.

    Args:
        device: Of no effect: numbers are averaged in the host's memory.

    Cost an epoch: one all-reduce of a few numbers.
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self.device = device
        self._training_samples: float | None = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Forget the last epoch's samples."""
        self._training_samples = None

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Note the samples of the training before validation resets the count."""
        if self._training_samples is None:
            self._training_samples = self._samples()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Overwrite the logs in place; later callbacks, the history and the progress bar see the averages."""
        if not logs or world.size() == 1:
            return
        names = sorted(name for name, value in logs.items() if np.ndim(value) == 0)
        validated = self._samples()
        trained = validated if self._training_samples is None else self._training_samples
        weights = np.array([validated if name.startswith("val_") else trained for name in names])
        values = np.array([float(logs[name]) for name in names])
        label = f"metrics of epoch {epoch}: {', '.join(names)}"
        weighted, total = collectives.allreduce(np.stack([values * weights, weights]), Sum, name=label)
        # A rank without samples has no metrics to tell; where none has any, the values are left as they are.
        logs.update({
            name: float(sum_ / count)
            for name, sum_, count in zip(names, weighted, total, strict=True)
            if count
        })  # fmt: skip

    def _samples(self) -> float:
        """Samples since the metrics were reset: what the loss's mean was taken over; 1 where Keras keeps no such."""
        for metric in () if self.model is None else self.model.metrics:
            if metric.name == "loss" and hasattr(metric, "count"):
                return float(keras.ops.convert_to_numpy(metric.count))
        return 1.0


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Set the learning rate to ``initial_lr * multiplier(epoch)`` between two epochs.

    Args:
        initial_lr: The learning rate that is multiplied.
        multiplier: A function from the epoch (from 0; with a fraction where not ``staircase``) to a number; or a number
            that is multiplied by once an epoch: ``multiplier ** (epoch - start_epoch)``.
        start_epoch: The first epoch it acts in.
        end_epoch: The first epoch it no longer acts in; None: it acts to the end.
        staircase: Change at the start of an epoch only, otherwise before every batch.
        momentum_correction: Scale the optimizer's momentum with the learning rate, so that past gradients keep their
            weight (Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2).
        steps_per_epoch: Batches an epoch; None: those that Keras tells.
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: float | Callable[[float], float],
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ArgumentError("a schedule multiplies a learning rate", received="initial_lr=None")
        self.initial_lr = initial_lr
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.momentum_correction, self.steps_per_epoch = momentum_correction, steps_per_epoch
        self.staircase = staircase
        self.multiplier: Callable[[float], float] = (
            multiplier if callable(multiplier) else lambda epoch: multiplier ** (epoch - start_epoch)
        )
        self._epoch = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Find out the number of batches."""
        self.steps_per_epoch = self.steps_per_epoch or (self.params or {}).get("steps")
        if not self.staircase and not self.steps_per_epoch:
            raise ArgumentError(
                "a learning rate that changes by batch needs to know the batches of an epoch",
                received="steps_per_epoch=None, and Keras can't tell",
                fix=f"Pass steps_per_epoch to {type(self).__name__}",
            )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Set the rate: before every batch, or before the first of an epoch."""
        if self.start_epoch <= self._epoch and (self.end_epoch is None or self._epoch < self.end_epoch):
            if not self.staircase:
                assert self.steps_per_epoch  # noqa: S101  # on_train_begin saw to it
                self._set(self.multiplier(self._epoch + batch / self.steps_per_epoch))
            elif batch == 0:
                self._set(self.multiplier(self._epoch))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log the rate as ``lr``."""
        if logs is not None:
            logs["lr"] = self._rate()

    def _rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _set(self, multiplier: float) -> None:
        old, new = self._rate(), self.initial_lr * multiplier
        self.model.optimizer.learning_rate = new
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if self.momentum_correction and hasattr(optimizer, "momentum") and old and new != old:
            # Keras compiles the momentum coefficient into its graph as a constant. Its product with the accumulated
            # gradient is what counts, and that is a variable.
            for momentum in getattr(optimizer, "momentums", None) or getattr(optimizer, "_momentums", None) or []:
                momentum.assign(momentum * (new / old))


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """Raise the learning rate from ``initial_lr / size`` to ``initial_lr``, batch by batch, over the first epochs.

    For ``initial_lr`` that was multiplied by the number of ranks, as a batch that is so many times as large allows
    (Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2).

    Args:
        initial_lr: The learning rate in the end.
        warmup_epochs: Epochs until then.
        momentum_correction: As in ``LearningRateScheduleCallback``.
        steps_per_epoch: As in ``LearningRateScheduleCallback``.
        verbose: 1: rank 0 says when the end is reached.
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        def multiplier(epoch: float) -> float:
            # The last batch of the warm-up is to run at the full rate.
            progress = min(1.0, (epoch + 1 / (self.steps_per_epoch or 1)) / warmup_epochs) if warmup_epochs else 1.0
            return 1 / world.size() * (progress * (world.size() - 1) + 1)

        super().__init__(
            initial_lr, multiplier, 0, warmup_epochs, staircase=False, momentum_correction=momentum_correction,
            steps_per_epoch=steps_per_epoch,
        )  # fmt: skip
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log the rate; say when the warm-up is over."""
        super().on_epoch_end(epoch, logs)
        if self.verbose and epoch + 1 == self.end_epoch and world.rank() == 0:
            print(f"\nEpoch {epoch + 1}: the learning rate is warmed up to {self._rate():g}.")


class BestModel(keras.callbacks.ModelCheckpoint):
    """Keep the best model only, in a ``filepath`` that is set after the callback is made, before training begins.

    Args:
        monitor: The log that tells what is best.
        verbose: 1: say when a model is kept.
        save_weights_only: Whether only its weights are kept.
        mode: ``min``, ``max``, or ``auto``: by the log's name.
        save_freq: ``epoch``, or a number of batches.
    """

    def __init__(self, monitor: str, verbose: int, save_weights_only: bool, mode: str, save_freq: str | int) -> None:
        # Keras looks at the ending of the path, which isn't known yet.
        path = "unknown.weights.h5" if save_weights_only else "unknown.keras"
        super().__init__(path, monitor, verbose, True, save_weights_only, mode, save_freq)
        self.filepath: Any = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Refuse to train without a place for the model."""
        if self.filepath is None:
            raise ArgumentError(
                "the best model is kept in a file", received="filepath=None", fix="Set the callback's filepath"
            )
        super().on_train_begin(logs)


class BestModelCheckpoint(BestModel):
    """Keep the best model only, in a ``filepath`` that is set before training begins; see ``BestModel``."""

    def __init__(
        self, monitor: str = "val_loss", verbose: int = 0, mode: str = "auto", save_freq: str | int = "epoch"
    ) -> None:
        super().__init__(monitor, verbose, False, mode, save_freq)
