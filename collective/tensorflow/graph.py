"""Call Python on the values of tensors: at once, or whenever the graph under construction runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.ops import control_flow_util

from collective import world
from collective.errors import ArgumentError, CollectiveError, NotInitializedError
from collective.process_sets import ProcessSet
from collective.tensorflow import op
from collective.tensorflow.statuses import translated

Function = TypeVar("Function", bound=Callable[..., Any])

NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.\-/]")


def as_written(function: Function) -> Function:
    """Keep AutoGraph from rewriting a function: what it hands to ``call`` is plain Python when the graph runs."""
    return cast(Function, tf.autograph.experimental.do_not_convert(function))


def call(
    run: Callable[..., Sequence[np.ndarray]],
    tensors: Sequence[tf.Tensor],
    operation: str,
    shapes: Sequence[Any],
    dtypes: Sequence[tf.DType] | None = None,
    *,
    name: str | None = None,
    ignore_name_scope: bool = False,
) -> list[tf.Tensor]:
    """Call ``run`` on the tensors' values: now, or whenever the graph under construction runs.

    Args:
        run: Takes a name and arrays, returns arrays. In a graph the name is unique there, and the same on all ranks
            that construct the same graph: operations that may run in any order are matched by it.
        tensors: What it takes.
        operation: What errors call it.
        shapes: The shape of each result, as far as it is known.
        dtypes: The dtype of each result; None: those of the tensors.
        name: What the name is made from; None: from the operation's, and eagerly there is none.
        ignore_name_scope: Leave TensorFlow's name scopes out of the name.

    Raises:
        tf.errors.OpError: for errors of the library, now or when the graph runs.
        ArgumentError: in a graph that XLA compiles.
    """
    dtypes = [tensor.dtype for tensor in tensors] if dtypes is None else dtypes
    if tf.executing_eagerly():
        try:
            results = run(name, *[tensor.numpy() for tensor in tensors])
        except CollectiveError as error:
            raise translated(error) from error
        return [tf.convert_to_tensor(result, dtype) for result, dtype in zip(results, dtypes, strict=True)]
    if control_flow_util.GraphOrParentsInXlaContext(tf_ops.get_default_graph()):
        raise ArgumentError(
            "XLA can't hold a call to other processes",
            received="jit_compile=True",
            fix="Pass jit_compile=False to tf.function, or to model.compile",
            operation=operation,
        )
    node = valid_name(name or operation)
    unique = unique_name(node)
    tag = unique.rsplit("/", 1)[-1] if ignore_name_scope else unique
    symbolic = op.apply(lambda *arrays: run(tag, *arrays), tensors, dtypes, node)
    for result, shape in zip(symbolic, shapes, strict=True):
        result.set_shape(shape)
    return symbolic


def check_registered(process_set: ProcessSet, operation: str) -> None:
    """Refuse a process set that the job doesn't know, where an operation is built.

    Raises:
        ValueError: plainly, for AutoGraph passes on no class that it doesn't know.
    """
    try:
        world.check_registered(process_set, operation)
    except NotInitializedError as error:
        raise ValueError(str(error)) from error


def name_for(kind: str, tensors: Sequence[Any], name: str | None) -> str | None:
    """The name to begin with of an operation on tensors: the user's, or in a graph one made from the tensors' names."""
    if name is not None or tf.executing_eagerly():
        return name
    ends = {0: tensors[0], len(tensors): tensors[-1]} if tensors else {}
    return "_".join(
        [kind, *(valid_name(getattr(tensor, "name", "") or "").replace("/", "_") for tensor in ends.values())]
    )


def unique_name(name: str) -> str:
    """The full name that an operation called ``name`` gets in the graph under construction.

    A function's graph begins its names anew; the scopes around it tell one branch of a condition from another.
    """
    graph = tf.compat.v1.get_default_graph()
    parts = [graph.unique_name(name, mark_as_used=False)]
    while isinstance(graph, FuncGraph) and graph.outer_graph is not graph:
        graph = graph.outer_graph
        parts.insert(0, graph.get_name_scope())
    return "/".join(part for part in parts if part)


def valid_name(name: str) -> str:
    """A name as TensorFlow takes it."""
    return NOT_IN_NAMES.sub("_", name).lstrip("_-/") or "tensor"
