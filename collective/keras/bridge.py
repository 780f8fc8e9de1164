"""The few places where Keras's backends differ: gradients and variables as each framework holds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from collective.compression import Compression
from collective.errors import ArgumentError
from collective.reduce_ops import ReduceOp

if keras.backend.backend() != "tensorflow":
    raise ArgumentError(
        "collective.keras works on Keras's TensorFlow backend",
        received=f"KERAS_BACKEND={keras.backend.backend()}",
        fix="Set KERAS_BACKEND=tensorflow before keras is imported",
    )

from collective.tensorflow.gradients import reduce_gradients as tensorflow_reduce_gradients
from collective.tensorflow.operations import broadcast_variables as tensorflow_broadcast_variables


def reduce_gradients(gradients: Sequence[Any], op: ReduceOp, compression: Compression) -> list[Any]:
    """Reduce a step's gradients over all ranks; None stays None."""
    return tensorflow_reduce_gradients(gradients, op, compression)


def broadcast_variables(variables: Sequence[Any], root_rank: int) -> None:
    """Overwrite variables with those of rank ``root_rank``."""
    tensorflow_broadcast_variables(variables, root_rank)
