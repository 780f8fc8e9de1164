"""The few places where Keras's backends differ: gradients and variables as each framework holds them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras

from collective.errors import ArgumentError

if keras.backend.backend() != "tensorflow":
    raise ArgumentError(
        "collective.keras works on Keras's TensorFlow backend",
        received=f"KERAS_BACKEND={keras.backend.backend()}",
        fix="Set KERAS_BACKEND=tensorflow before keras is imported",
    )

import tensorflow as tf

from collective.tensorflow import Compression as Compression
from collective.tensorflow import broadcast_variables as broadcast_variables
from collective.tensorflow.finite import all_finite as all_finite
from collective.tensorflow.finite import name_of as name_of
from collective.tensorflow.gradients import reduce_gradients as reduce_gradients
from collective.tensorflow.groups import Groups as Groups
from collective.tensorflow.groups import checked_groups as checked_groups
from collective.tensorflow.groups import places as places
from collective.tensorflow.local_sources import LocalSources as LocalSources
from collective.tensorflow.local_sources import divided as divided
from collective.tensorflow.local_sources import key as key


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


def is_variable(something: Any) -> bool:
    """Whether it is a variable, of Keras's or of TensorFlow's."""
    return isinstance(something, (keras.Variable, tf.Variable))


def is_sparse(gradient: Any) -> bool:
    """Whether a gradient holds the rows of an embedding only that were used."""
    return isinstance(gradient, tf.IndexedSlices)


def dense(gradient: Any) -> Any:
    """A gradient with all rows."""
    return tf.convert_to_tensor(gradient)


def value_of(variable: keras.Variable) -> Any:
    """What a variable holds now, whatever becomes of it."""
    return tf.identity(variable.value)


def outside_graphs() -> AbstractContextManager[Any]:
    """Where variables can be made also while a graph is under construction."""
    scope: AbstractContextManager[Any] = tf.init_scope()
    return scope
