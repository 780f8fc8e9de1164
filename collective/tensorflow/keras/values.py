"""``allreduce`` of values with the default that ``horovod.tensorflow.keras`` has."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from collective import tensorflow
from collective.reduce_ops import ReduceOp
from collective.tensorflow import Compression


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
    return tensorflow.allreduce(
        tf.convert_to_tensor(value),
        average=average,
        op=op,
        name=name,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        compression=compression,
    )
