"""Keras optimizers that average gradients, each in its own way: the contenders of the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from collective import barrier, world
from collective.keras import DistributedOptimizer


def alone(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """No averaging: what the step costs without communication."""
    return optimizer


def ours(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Our ``DistributedOptimizer``."""
    return DistributedOptimizer(optimizer)


def meeting(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A barrier and no averaging: what it costs by itself that ranks wait for each other in every step."""
    import tensorflow as tf

    from collective.tensorflow.graph import call

    def meet(*_: Any) -> list[np.ndarray]:
        barrier()
        return [np.int64(0)]

    def after_all(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        with tf.control_dependencies(call(meet, gradients, "barrier", [()], [tf.int64])):
            return [tf.identity(gradient) for gradient in gradients]

    return _applying(optimizer, after_all)


def copying(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """A barrier, and copies of the gradients as results: what it costs by itself that results are new."""
    from collective.tensorflow.graph import call

    def copy(_: str, *gradients: np.ndarray) -> list[np.ndarray]:
        barrier()
        return [gradient.copy() for gradient in gradients]

    def copies(gradients: list[Any]) -> list[Any]:
        return call(copy, gradients, "copy", [gradient.shape for gradient in gradients])

    return _applying(optimizer, copies)


def horovod(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Horovod's operation on all gradients as one group. Its own optimizer doesn't average under Keras 3."""
    from horovod.tensorflow import mpi_ops

    mpi_ops.init()
    return _applying(
        optimizer,
        lambda gradients: mpi_ops._grouped_allreduce(gradients, op=mpi_ops.Sum, postscale_factor=1 / world.size()),
    )


def horovod_each(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Horovod's operation on each gradient, which its core joins as they come."""
    from horovod.tensorflow import mpi_ops

    mpi_ops.init()
    return _applying(
        optimizer,
        lambda gradients: [
            mpi_ops._allreduce(gradient, op=mpi_ops.Sum, postscale_factor=1 / world.size()) for gradient in gradients
        ],
    )


def _applying(
    optimizer: keras.optimizers.Optimizer, average: Callable[[list[Any]], list[Any]]
) -> keras.optimizers.Optimizer:
    """The optimizer with ``average`` put before it, at the place where ``DistributedOptimizer`` has its own."""
    base = type(optimizer)

    class Averaging(base):  # type: ignore[valid-type, misc]
        def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
            return super().apply(average(grads), trainable_variables)

    return Averaging.from_config(optimizer.get_config())


AVERAGING: dict[str, Callable[[keras.optimizers.Optimizer], keras.optimizers.Optimizer]] = {
    "collective": ours,
    "barrier": meeting,
    "copies": copying,
    "horovod": horovod,
    "horovod-each": horovod_each,
}
