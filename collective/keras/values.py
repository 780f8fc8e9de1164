"""Operations on values: numbers, lists, arrays or tensors, as metrics and settings come."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from collective import tensorflow
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.tensorflow import Compression


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool = True,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: ReduceOp | None = None,
    compression: Any = Compression.none,
) -> tf.Tensor:
    """Reduce values of one shape element by element over all ranks, for all ranks.

    Args:
        value: Anything that can be a tensor.
        name: What matches the operation with the other ranks' calls; by default calls are matched in order.
        average: Without ``op``: whether it is ``Average`` or ``Sum``.
        prescale_factor: What the value is multiplied by before it is reduced.
        postscale_factor: What the result is multiplied by.
        op: ``Average``, ``Sum`` or another; None: what ``average`` says.
        compression: How floats travel between hosts.

    Returns:
        A tensor.

    Errors, cost: As ``collective.allreduce``.
    """
    return tensorflow.allreduce(
        tf.convert_to_tensor(value),
        op=op or (Average if average else Sum),
        name=name,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        compression=compression,
    )


def allgather(value: Any, name: str | None = None) -> tf.Tensor:
    """Concatenate the ranks' values along axis 0; as ``collective.allgather``, with and for what can be a tensor."""
    return tensorflow.allgather(tf.convert_to_tensor(value), name=name)


def broadcast(value: Any, root_rank: int, name: str | None = None) -> tf.Tensor:
    """Give all ranks the value of one; as ``collective.broadcast``, with and for what can be a tensor."""
    return tensorflow.broadcast(tf.convert_to_tensor(value), root_rank, name=name)


def reducescatter(value: Any, name: str | None = None, op: ReduceOp = Average) -> tf.Tensor:
    """Reduce and keep a part; as ``collective.reducescatter``, with and for what can be a tensor."""
    return tensorflow.reducescatter(tf.convert_to_tensor(value), op=op, name=name)
