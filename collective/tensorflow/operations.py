"""The collective operations on TensorFlow tensors: eagerly, inside ``tf.function``, and differentiable.

In a graph an operation is a call of Python that TensorFlow counts as stateful, so ``tf.function`` runs them one after
the other in program order, the same on every rank. Arguments, results and costs are those of ``collective``'s
operations on NumPy arrays, with tensors or variables in place of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from collective import collectives, grouped, world
from collective.compression import Compression
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.tensorflow import overlap
from collective.tensorflow.graph import call

Gradient = Callable[..., Any]


def allreduce(
    tensor: Any, op: ReduceOp = Average, *, name: str | None = None, compression: Compression = Compression.none
) -> tf.Tensor:
    """Reduce tensors of one shape and dtype over all ranks. Its gradient is the same reduction (Average and Sum)."""

    def reduce(array: np.ndarray) -> list[np.ndarray]:
        return [collectives.allreduce(array, op, name=name, compression=compression)]

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            _check_differentiable(op)
            return allreduce(upstream, op, name=name and f"{name}.gradient", compression=compression)

        return call(reduce, [value], "allreduce", [value.shape])[0], backward

    return _differentiable(forward, [tensor])


def grouped_allreduce(
    tensors: Sequence[Any],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    compression: Compression = Compression.none,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> list[tf.Tensor]:
    """Reduce several tensors as one operation; small ones share messages. See ``allreduce``.

    In a graph, and between hosts, they are sent as soon as they are there; see ``overlap``. Inside a host, where the
    cores that would send are those that compute, they are reduced together in the fewest passes over the memory.
    """
    options: dict[str, Any] = {
        "prescale_factor": prescale_factor,
        "postscale_factor": postscale_factor,
        "process_set": process_set,
    }

    def reduce(*arrays: np.ndarray) -> list[np.ndarray]:
        return grouped.grouped_allreduce(arrays, op, name=name, compression=compression, **options)

    def forward(*values: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        def backward(*upstream: tf.Tensor) -> list[tf.Tensor]:
            _check_differentiable(op)
            return grouped_allreduce(upstream, op, name=name and f"{name}.gradient", compression=compression, **options)

        shapes = [value.shape for value in values]
        if tf.executing_eagerly() or world.cross_size() == 1:
            return call(reduce, values, "grouped_allreduce", shapes), backward
        return overlap.all_reduce(values, op, name, compression, **options), backward

    return list(_differentiable(forward, tensors))


def _check_differentiable(op: ReduceOp) -> None:
    if op not in (Average, Sum):
        raise ArgumentError("the gradient of an all-reduce is defined for Average and Sum", received=f"op={op}")


def allgather(tensor: Any, *, name: str | None = None, process_set: ProcessSet | None = None) -> tf.Tensor:
    """Concatenate the ranks' tensors along axis 0; ranks may differ in their number of rows."""

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def run(array: np.ndarray) -> list[np.ndarray]:
            return [collectives.allgather(array, name=name, process_set=process_set)]

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            counts = allgather(tf.shape(value, tf.int64)[:1], name=name and f"{name}.rows")
            start = tf.reduce_sum(counts[: world.rank()])
            total = allreduce(upstream, Sum, name=name and f"{name}.gradient")
            return total[start : start + counts[world.rank()]]

        return call(run, [value], "allgather", [[None, *value.shape[1:]]])[0], backward

    return _differentiable(forward, [tensor])


def broadcast(tensor: Any, root_rank: int, *, name: str | None = None) -> tf.Tensor:
    """Give all ranks the tensor of rank ``root_rank``. Its gradient is the sum over all ranks, on the root."""

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def run(array: np.ndarray) -> list[np.ndarray]:
            return [collectives.broadcast(array, root_rank, name=name)]

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            total = allreduce(upstream, Sum, name=name and f"{name}.gradient")
            return total if world.rank() == root_rank else tf.zeros_like(total)

        return call(run, [value], "broadcast", [value.shape])[0], backward

    return _differentiable(forward, [tensor])


def reducescatter(tensor: Any, op: ReduceOp = Average, *, name: str | None = None) -> tf.Tensor:
    """Reduce over all ranks and keep this rank's part of axis 0; the first ranks have one row more."""

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def run(array: np.ndarray) -> list[np.ndarray]:
            return [collectives.reducescatter(array, op, name=name)]

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            gathered = allgather(upstream, name=name and f"{name}.gradient")
            return gathered / tf.cast(world.size(), gathered.dtype) if op is Average else gathered

        return call(run, [value], "reducescatter", [[None, *value.shape[1:]]])[0], backward

    return _differentiable(forward, [tensor])


def alltoall(tensor: Any, splits: Any = None, *, name: str | None = None) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """Send rows of axis 0 to every rank; with ``splits`` also returns how many rows came from each rank, int64[N]."""

    def forward(value: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Gradient]:
        def run(array: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
            return list(collectives.alltoall(array, counts, name=name))

        def backward(upstream: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            returned, _ = alltoall(upstream, received_splits, name=name and f"{name}.gradient")
            return returned

        shapes = [[None, *value.shape[1:]], [world.size()]]
        received, received_splits = call(run, [value, counts], "alltoall", shapes, [value.dtype, tf.int64])
        return (received, received_splits), backward

    tensor = tf.convert_to_tensor(tensor)
    if splits is None:
        counts = tf.fill([world.size()], tf.shape(tensor, tf.int64)[0] // world.size())
    else:
        counts = tf.convert_to_tensor(splits)
    received, received_splits = _differentiable(forward, [tensor])
    return received if splits is None else (received, received_splits)


def broadcast_variables(variables: Sequence[Any], root_rank: int) -> None:
    """Overwrite variables (TensorFlow's or Keras's) with those of rank ``root_rank``; called by all ranks.

    Args:
        variables: The same variables in the same order on all ranks.
        root_rank: The rank whose values all get.

    Cost:
        Each rank but the root receives the bytes once, in few messages.
    """
    variables = list(variables)

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        return grouped.grouped_broadcast(arrays, root_rank, name="variables")

    values = [tf.convert_to_tensor(variable) for variable in variables]
    received = call(run, values, "broadcast_variables", [value.shape for value in values])
    for variable, value in zip(variables, received, strict=True):
        variable.assign(value)


def _differentiable(forward: Callable[..., tuple[Any, Gradient]], tensors: Sequence[Any]) -> Any:
    return tf.custom_gradient(forward)(*[tf.convert_to_tensor(tensor) for tensor in tensors])
