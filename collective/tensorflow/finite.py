"""Gradients that are not finite: whether they are, as a tensor, and who is told where they are reduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from collective import skipping
from collective.process_sets import ProcessSet
from collective.tensorflow.graph import as_written, call


def all_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether no gradient has an infinite value or one that is no number, as a tensor; a pass over them."""
    checks = [
        tf.reduce_all(tf.math.is_finite(values)) for values in map(values_of, gradients) if _can_be_infinite(values)
    ]
    return tf.reduce_all(tf.stack(checks)) if checks else tf.constant(True)


@as_written
def watched(
    own: Sequence[Any], reduced: Sequence[Any], names: Sequence[str], process_set: ProcessSet, raises: bool
) -> list[Any]:
    """The reduced gradients, which are had only after ``skipping.tell`` has been called if they are not finite.

    Args:
        own: This rank's gradients.
        reduced: Those of all ranks; None, too.
        names: What each is the gradient of.
        process_set: The ranks that have reduced them.
        raises: Make it an error.
    """
    places = [place for place, gradient in enumerate(reduced) if _can_be_infinite(values_of(gradient))]
    chosen = [names[place] for place in places]

    def run(_: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
        given, got = arrays[: len(places)], arrays[len(places) :]
        skipping.tell(given, got, chosen, process_set, raises)
        return [np.array(False)]

    def tell() -> tf.Tensor:
        values = [tf.convert_to_tensor(values_of(each[place])) for each in (own, reduced) for place in places]
        return call(run, values, "gradients.finite", [()], [tf.bool])[0]

    told = tf.cond(all_finite([reduced[place] for place in places]), lambda: tf.constant(True), tell)
    with tf.control_dependencies([told]):
        return [_after(gradient) if place in set(places) else gradient for place, gradient in enumerate(reduced)]


def if_finite(gradients: Sequence[Any], apply: Callable[[], Any]) -> Any:
    """Call what applies gradients, or leave the step out."""
    finite = all_finite(gradients)
    if tf.executing_eagerly():
        return apply() if bool(finite) else None
    return tf.cond(finite, lambda: tf.group(apply()), tf.no_op)


def values_of(gradient: Any) -> Any:
    """The values of a gradient, dense or sparse; None where there is none."""
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def name_of(variable: Any) -> str:
    """What a variable is called: a Keras variable by its path."""
    return str(getattr(variable, "path", None) or getattr(variable, "name", variable))


def _can_be_infinite(values: Any) -> bool:
    return values is not None and (values.dtype.is_floating or values.dtype.is_complex)


def _after(gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(tf.identity(gradient.values), gradient.indices, gradient.dense_shape)
    return tf.identity(gradient)
