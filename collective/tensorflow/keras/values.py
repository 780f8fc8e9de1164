"""``allreduce`` of values with the default that ``horovod.tensorflow.keras`` has."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from collective import reduce_ops
from collective.common import util
from collective.compression import Compression
from collective.keras import values
from collective.reduce_ops import ReduceOp

choose_op = util.get_average_backwards_compatibility_fun(reduce_ops)


def allreduce(
    value: Any,
    name: str | None = None,
    average: bool | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    op: ReduceOp | None = None,
    compression: Any = Compression.none,
) -> tf.Tensor:
    """Reduce values over all ranks; as ``collective.keras.allreduce``, but either ``average`` or ``op`` is given.

    Raises:
        ArgumentError: when both are given.
    """
    chosen = choose_op(op, average)
    return values.allreduce(value, name, True, prescale_factor, postscale_factor, op=chosen, compression=compression)
