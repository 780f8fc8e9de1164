"""Call Python on the values of tensors: at once, or whenever the graph under construction runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import ops as tf_ops
from tensorflow.python.ops import control_flow_util

from collective import world
from collective.errors import ArgumentError


def call(
    run: Callable[..., list[np.ndarray]],
    tensors: Sequence[tf.Tensor],
    operation: str,
    shapes: Sequence[Any],
    dtypes: Sequence[tf.DType] | None = None,
) -> list[tf.Tensor]:
    """Call ``run`` on the tensors' values: now, or whenever the graph under construction runs.

    Args:
        run: Takes and returns arrays.
        tensors: What it takes.
        operation: What errors call it.
        shapes: The shape of each result, as far as it is known.
        dtypes: The dtype of each result; None: those of the tensors.

    Raises:
        ArgumentError: in a graph that XLA compiles.
    """
    world.backend(operation)
    dtypes = dtypes or [tensor.dtype for tensor in tensors]
    if tf.executing_eagerly():
        results = run(*[tensor.numpy() for tensor in tensors])
        return [tf.convert_to_tensor(result, dtype) for result, dtype in zip(results, dtypes, strict=True)]
    if control_flow_util.GraphOrParentsInXlaContext(tf_ops.get_default_graph()):
        raise ArgumentError(
            "XLA can't hold a call to other processes",
            received="jit_compile=True",
            fix="Pass jit_compile=False to tf.function, or to model.compile",
            operation=operation,
            where=world.topology().where,
        )
    results = tf.numpy_function(run, tensors, dtypes, stateful=True)
    for result, shape in zip(results, shapes, strict=True):
        result.set_shape(shape)
    return list(results)
