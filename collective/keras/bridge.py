"""The few places where Keras's backends differ: gradients and variables as each framework holds them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from collective.errors import ArgumentError
from collective.reduce_ops import ReduceOp

if keras.backend.backend() != "tensorflow":
    raise ArgumentError(
        "collective.keras works on Keras's TensorFlow backend",
        received=f"KERAS_BACKEND={keras.backend.backend()}",
        fix="Set KERAS_BACKEND=tensorflow before keras is imported",
    )

import tensorflow as tf

from collective import tensorflow
from collective.tensorflow.gradients import reduce_gradients as tensorflow_reduce_gradients


def reduce_gradients(gradients: Sequence[Any], op: ReduceOp, compression: Any, **options: Any) -> list[Any]:
    """Reduce a step's gradients over all ranks; None stays None."""
    return tensorflow_reduce_gradients(gradients, op, compression, **options)


def broadcast_variables(variables: Sequence[Any], root_rank: int) -> None:
    """Overwrite variables with those of rank ``root_rank``."""
    tensorflow.broadcast_variables(variables, root_rank)


def gradients_of(loss: Any, variables: Sequence[Any], upstream: Any, tape: Any) -> list[Any]:
    """Derive a loss on this rank: a function of nothing, or a tensor that ``tape`` has recorded."""
    if not callable(loss) and tape is None:
        raise ArgumentError("a loss that is a tensor comes with its tape", received=f"loss={loss!r}, tape=None")
    tape = tape or tf.GradientTape()
    if callable(loss):
        with tape:
            loss = loss()
    return list(tape.gradient(loss, list(variables), upstream))


def flat(variables: Any) -> list[Any]:
    """The variables in lists of lists of them."""
    return list(tf.nest.flatten(variables))


def key_of(variable: Any) -> Hashable:
    """What tells a variable, of Keras's or of TensorFlow's, from others."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).ref()


def is_variable(something: Any) -> bool:
    """Whether it is a variable, of Keras's or of TensorFlow's."""
    return isinstance(something, (keras.Variable, tf.Variable))


def is_sparse(gradient: Any) -> bool:
    """Whether a gradient holds the rows of an embedding only that were used."""
    return isinstance(gradient, tf.IndexedSlices)


def dense(gradient: Any) -> Any:
    """A gradient with all rows."""
    return tf.convert_to_tensor(gradient)


def divided(gradient: Any, divisor: int) -> Any:
    """A gradient divided by a number; None stays None."""
    if is_sparse(gradient):
        return tf.IndexedSlices(gradient.values / divisor, gradient.indices, gradient.dense_shape)
    return None if gradient is None else gradient / divisor


def outside_graphs() -> AbstractContextManager[Any]:
    """Where variables can be made also while a graph is under construction."""
    scope: AbstractContextManager[Any] = tf.init_scope()
    return scope
