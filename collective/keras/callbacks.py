"""Keras callbacks: start from one rank's variables, average metrics, warm up and schedule the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from collective import collectives, world
from collective.errors import ArgumentError
from collective.keras.bridge import broadcast_variables
from collective.reduce_ops import Sum

Logs = dict[str, Any]


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """Start all ranks from the weights and the optimizer state of one.

    Before the first step if the model is built by then (as ``fit`` sees to), else after it. Random seeds (dropout) and
    metrics stay each rank's own.

    Args:
        root_rank: The rank whose variables all get.
    """

    def __init__(self, root_rank: int = 0) -> None:
        super().__init__()
        self.root_rank = root_rank
        self._done = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Broadcast if there is something to broadcast yet."""
        if self.model.built and not self._done:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._broadcast()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Broadcast after the first step a model that was not built before."""
        if not self._done:
            self._broadcast()

    def _broadcast(self) -> None:
        broadcast_variables([*self.model.weights, *self.model.optimizer.variables], self.root_rank)
        self._done = True


class MetricAverageCallback(keras.callbacks.Callback):
    """Average the logs of each epoch over all ranks, weighted by the samples each rank has seen.

    Put it before callbacks that read the logs (checkpoints, early stopping), which then decide alike on all ranks.
    Rank r's training metrics weigh as much as the samples it trained on, its ``val_`` metrics as much as those it
    validated on.

    Cost an epoch: one all-reduce of a few numbers.
    """

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Forget the last epoch's samples."""
        self._training_samples: float | None = None

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Note the samples of the training before validation resets the count."""
        if getattr(self, "_training_samples", 0.0) is None:
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
        for metric in self.model.metrics:
            if metric.name == "loss" and hasattr(metric, "count"):
                return float(keras.ops.convert_to_numpy(metric.count))
        return 1.0


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """Set the learning rate to ``initial_lr * multiplier(epoch)`` between two epochs.

    Args:
        initial_lr: The learning rate that is multiplied.
        multiplier: A number, or a function from the epoch (from 0; with a fraction where not ``staircase``) to one.
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
        self.initial_lr = initial_lr
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        self.momentum_correction, self.steps_per_epoch = momentum_correction, steps_per_epoch
        self.staircase = staircase or not callable(multiplier)
        self.multiplier: Callable[[float], float] = multiplier if callable(multiplier) else lambda _: multiplier
        self._epoch = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Find out the number of batches."""
        self.steps_per_epoch = self.steps_per_epoch or self.params.get("steps")
        if not self.staircase and not self.steps_per_epoch:
            raise ArgumentError(
                "a learning rate that changes by batch needs to know the batches of an epoch",
                received="steps_per_epoch=None, and Keras can't tell",
                fix=f"Pass steps_per_epoch to {type(self).__name__}",
            )

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Note the epoch; set the rate if it changes by epoch."""
        self._epoch = epoch
        if self.staircase and self._acts():
            self._set(self.multiplier(epoch))

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Set the rate if it changes by batch."""
        if not self.staircase and self._acts():
            assert self.steps_per_epoch  # noqa: S101  # on_train_begin saw to it
            self._set(self.multiplier(self._epoch + batch / self.steps_per_epoch))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Log the rate as ``lr``."""
        if logs is not None:
            logs["lr"] = self._rate()

    def _acts(self) -> bool:
        return self.start_epoch <= self._epoch and (self.end_epoch is None or self._epoch < self.end_epoch)

    def _rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _set(self, multiplier: float) -> None:
        old, new = self._rate(), self.initial_lr * multiplier
        optimizer = self.model.optimizer
        optimizer.learning_rate = new
        if self.momentum_correction and old and new != old:
            # Keras compiles the momentum coefficient into its graph as a constant. Its product with the accumulated
            # gradient is what counts, and that is a variable.
            for momentum in getattr(optimizer, "momentums", None) or []:
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
