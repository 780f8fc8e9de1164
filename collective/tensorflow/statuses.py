"""The library's errors as TensorFlow's, whose classes programs catch."""

from __future__ import annotations

import tensorflow as tf

from collective.errors import ArgumentError, MismatchError, NotInitializedError

CLASSES: tuple[tuple[type[Exception], type[tf.errors.OpError]], ...] = (
    (MismatchError, tf.errors.FailedPreconditionError),
    (NotInitializedError, tf.errors.FailedPreconditionError),
    (ArgumentError, tf.errors.InvalidArgumentError),
)


def code_of(error: BaseException) -> int:
    """The number of TensorFlow's error class for one of ours; what isn't ours is unknown."""
    code: int = getattr(translated(error), "error_code", tf.errors.UNKNOWN)
    return code


def translated(error: BaseException) -> BaseException:
    """One of our errors as the one that an operation in a graph fails with; any other as it is."""
    return next((theirs(None, None, str(error)) for ours, theirs in CLASSES if isinstance(error, ours)), error)
