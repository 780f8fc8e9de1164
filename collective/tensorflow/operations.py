"""The collective operations on TensorFlow tensors: eagerly, in ``tf.function``, in TF1 graphs, and differentiable.

Results, errors and costs are those of ``collective``'s operations on NumPy arrays, with tensors or variables in place
of arrays. In a graph an operation counts as stateful, so ``tf.function`` runs one after the other in program order;
those of a TF1 session run in any order, and are matched by name. Arguments all of them have:

    name: What matches the operation with the other ranks' calls; by default calls are matched in order, in a graph by
        the name of the tensor.
    ignore_name_scope: Leave TensorFlow's name scopes out of the name.
    process_set: The ranks that take part.

Gradients are Horovod's: those of an operation whose result all ranks have are averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from collective import collectives, finite, grouped, world
from collective.compression import Compression
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Adasum, Average, ReduceOp, Sum
from collective.tensorflow import overlap
from collective.tensorflow.graph import as_written, call, check_registered, name_for

Gradient = Callable[..., Any]


@as_written
def allreduce_tensor(
    tensor: Any,
    name: str | None = None,
    op: ReduceOp = Sum,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
    *,
    compression: Compression = Compression.none,
) -> tf.Tensor:
    """Reduce a tensor over all ranks. Its gradient is the same reduction (not for Min, Max and Product)."""
    check_registered(process_set, "allreduce")
    name = name_for("allreduce", [tensor], name)
    factors: dict[str, Any] = {
        "prescale_factor": prescale_factor,
        "postscale_factor": postscale_factor,
        "process_set": process_set,
    }
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope}

    def reduce(tag: str | None, array: np.ndarray) -> list[np.ndarray]:
        return [collectives.allreduce(array, op, name=tag, compression=compression, **factors)]

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            _check_differentiable(op)
            return allreduce_tensor(upstream, _of_gradient(name), op, compression=compression, **factors, **scope)

        return call(reduce, [value], "allreduce", [value.shape], name=name, **scope)[0], backward

    return _differentiable(forward, [tensor])


@as_written
def grouped_allreduce_tensors(
    tensors: Sequence[Any],
    name: str | None = None,
    op: ReduceOp = Sum,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
    *,
    compression: Compression = Compression.none,
    of: Sequence[str] | None = None,
) -> list[tf.Tensor]:
    """Reduce several tensors as one operation; small ones share messages. See ``allreduce_tensor``.

    In a graph, and between hosts, they are sent as soon as they are there; see ``overlap``. Inside a host, where the
    cores that would send are those that compute, they are reduced together in the fewest passes over the memory.
    ``of`` tells what each is the gradient of, for errors.
    """
    if not tensors:
        return []
    check_registered(process_set, "grouped_allreduce")
    name = name_for("grouped_allreduce", tensors, name)
    factors: dict[str, Any] = {
        "prescale_factor": prescale_factor,
        "postscale_factor": postscale_factor,
        "process_set": process_set,
    }
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope}

    def reduce(tag: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
        with finite.named(of):
            return grouped.grouped_allreduce(arrays, op, name=tag, compression=compression, **factors)

    def forward(*values: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        def backward(*upstream: tf.Tensor) -> list[tf.Tensor]:
            _check_differentiable(op)
            return grouped_allreduce_tensors(
                upstream, _of_gradient(name), op, compression=compression, **factors, **scope
            )

        if tf.executing_eagerly() or not world.is_initialized() or world.cross_size() == 1:
            shapes = [value.shape for value in values]
            return call(reduce, values, "grouped_allreduce", shapes, name=name, **scope), backward
        return overlap.all_reduce(values, op, name, compression, of, **factors), backward

    return list(_differentiable(forward, tensors))


def allgather(
    tensor: Any,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Concatenate the ranks' tensors along axis 0; ranks may differ in their number of rows.

    Its gradient is this rank's rows of the average of the gradients.
    """
    check_registered(process_set, "allgather")
    return grouped_allgather([tensor], name_for("allgather", [tensor], name), ignore_name_scope, process_set)[0]


@as_written
def grouped_allgather(
    tensors: Sequence[Any],
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> list[tf.Tensor]:
    """Concatenate each of several tensors along axis 0. See ``allgather``."""
    if not tensors:
        return []
    check_registered(process_set, "grouped_allgather")
    name = name_for("grouped_allgather", tensors, name)
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope, "process_set": process_set}

    def gather(tag: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
        if len(arrays) == 1:
            return [collectives.allgather(arrays[0], name=tag, process_set=process_set)]
        return grouped.grouped_allgather(arrays, name=tag, process_set=process_set)

    def forward(*values: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        def backward(*upstream: tf.Tensor) -> list[tf.Tensor]:
            counts = allgather(tf.stack([_rows(value) for value in values])[None], _of_gradient(name, "rows"), **scope)
            averages = [
                allreduce_tensor(each, _of_gradient(name, str(number)), Average, **scope)
                for number, each in enumerate(upstream)
            ]
            mine = process_set.rank() or 0
            starts, stops = tf.reduce_sum(counts[:mine], 0), tf.reduce_sum(counts[: mine + 1], 0)
            return [average[starts[number] : stops[number]] for number, average in enumerate(averages)]

        shapes = [None if value.shape.rank is None else [None, *value.shape[1:]] for value in values]
        results = call(gather, values, "allgather", shapes, name=name, ignore_name_scope=ignore_name_scope)
        return results, backward

    return _listed(_differentiable(forward, tensors))


@as_written
def broadcast(
    tensor: Any,
    root_rank: int,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor:
    """Give all ranks the tensor of rank ``root_rank``, its number in the job.

    Its gradient is the average over all ranks on the root, and zeros elsewhere.
    """
    check_registered(process_set, "broadcast")
    name = name_for("broadcast", [tensor], name)
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope}

    def send(tag: str | None, array: np.ndarray) -> list[np.ndarray]:
        return [collectives.broadcast(array, root_rank, name=tag, process_set=process_set)]

    def forward(value: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            average = allreduce_tensor(upstream, _of_gradient(name), Average, process_set=process_set, **scope)
            if world.rank() == root_rank:
                return average
            # A session leaves out what nothing depends on, and then the root would wait for this rank.
            with tf.control_dependencies([average]):
                return tf.zeros_like(upstream)

        return call(send, [value], "broadcast", [value.shape], name=name, **scope)[0], backward

    return _differentiable(forward, [tensor])


def reducescatter_tensor(
    tensor: Any,
    name: str | None = None,
    op: ReduceOp = Sum,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> tf.Tensor:
    """Reduce over all ranks and keep this rank's part of axis 0; the first ranks have one row more.

    Its gradient is gathered from all ranks; that of a sum is multiplied by their number.
    """
    check_registered(process_set, "reducescatter")
    name = name_for("reducescatter", [tensor], name)
    options = (op, ignore_name_scope, process_set, prescale_factor, postscale_factor)
    return grouped_reducescatter_tensors([tensor], name, *options)[0]


@as_written
def grouped_reducescatter_tensors(
    tensors: Sequence[Any],
    name: str | None = None,
    op: ReduceOp = Sum,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[tf.Tensor]:
    """Reduce each of several tensors and keep this rank's rows. See ``reducescatter_tensor``."""
    if not tensors:
        return []
    check_registered(process_set, "grouped_reducescatter")
    name = name_for("grouped_reducescatter", tensors, name)
    factors: dict[str, Any] = {
        "prescale_factor": prescale_factor,
        "postscale_factor": postscale_factor,
        "process_set": process_set,
    }
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope}

    def reduce(tag: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
        if len(arrays) == 1:
            return [collectives.reducescatter(arrays[0], op, name=tag, **factors)]
        return grouped.grouped_reducescatter(arrays, op, name=tag, **factors)

    def forward(*values: tf.Tensor) -> tuple[list[tf.Tensor], Gradient]:
        def backward(*upstream: tf.Tensor) -> list[tf.Tensor]:
            _check_differentiable(op)
            factor = prescale_factor * postscale_factor * (process_set.size() or 1 if op is Sum else 1)
            scaled = [tf.convert_to_tensor(each) * tf.cast(factor, each.dtype) for each in upstream]
            return [
                allgather(each, _of_gradient(name, str(number)), process_set=process_set, **scope)
                for number, each in enumerate(scaled)
            ]

        shapes = [None if value.shape.rank is None else [None, *value.shape[1:]] for value in values]
        return call(reduce, values, "reducescatter", shapes, name=name, **scope), backward

    return _listed(_differentiable(forward, tensors))


@as_written
def alltoall(
    tensor: Any,
    splits: Any = None,
    name: str | None = None,
    ignore_name_scope: bool = False,
    process_set: ProcessSet = global_process_set,
) -> tf.Tensor | tuple[tf.Tensor, tf.Tensor]:
    """Send rows of axis 0 to every rank, and receive rows from every rank.

    Args:
        tensor: This rank's rows, those for rank 0 first.
        splits: How many rows go to each rank, int[N]; None: the same number to all.
        name: See above.
        ignore_name_scope: See above.
        process_set: See above.

    Returns:
        The rows received; with ``splits`` also how many came from each rank, int32[N]. The gradient goes the way back.
    """
    check_registered(process_set, "alltoall")
    name = name_for("alltoall", [tensor], name)
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope}

    def exchange(tag: str | None, array: np.ndarray, *counts: np.ndarray) -> list[np.ndarray]:
        given = counts[0] if counts else _even_splits(array, process_set.size() or 1)
        received, received_splits = collectives.alltoall(array, given, name=tag, process_set=process_set)
        return [received, received_splits.astype(np.int32)]

    def forward(value: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Gradient]:
        def backward(upstream: tf.Tensor, _: tf.Tensor) -> tf.Tensor:
            return alltoall(upstream, received_splits, _of_gradient(name), process_set=process_set, **scope)[0]

        inputs = [value] if splits is None else [value, tf.convert_to_tensor(splits)]
        shapes = [None if value.shape.rank is None else [None, *value.shape[1:]], [None]]
        received, received_splits = call(
            exchange, inputs, "alltoall", shapes, [value.dtype, tf.int32], name=name, **scope
        )
        return (received, received_splits), backward

    received, received_splits = _differentiable(forward, [tensor])
    return received if splits is None else (received, received_splits)


@as_written
def join() -> tf.Tensor:
    """Let the other ranks go on without this one, which is out of data; see ``collective.join``.

    Returns:
        The rank that joined last, int32.
    """
    return call(lambda _: [np.int32(collectives.join())], [], "join", [()], [tf.int32])[0]


def _differentiable(forward: Callable[..., tuple[Any, Gradient]], tensors: Sequence[Any]) -> Any:
    return tf.custom_gradient(forward)(*[tf.convert_to_tensor(tensor) for tensor in tensors])


def _listed(results: Any) -> list[tf.Tensor]:
    """``tf.custom_gradient`` unpacks lists of one."""
    return list(results) if isinstance(results, list | tuple) else [results]


def _check_differentiable(op: ReduceOp) -> None:
    if op not in (Average, Sum, Adasum):
        raise ArgumentError("the gradient of a reduction is defined for Average and Sum", received=f"op={op}")


def _even_splits(array: np.ndarray, size: int) -> np.ndarray | None:
    """The same number of rows for all; None where there is none such, of which the core tells in its own words."""
    return np.full(size, len(array) // size) if array.ndim and len(array) % size == 0 else None


def _rows(value: tf.Tensor) -> tf.Tensor:
    return tf.shape(value, tf.int64)[0]


def _of_gradient(name: str | None, part: str = "") -> str | None:
    return name and f"{name}.gradient{'.' * bool(part)}{part}"
