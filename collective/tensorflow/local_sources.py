"""Variables of which every rank has its own: their gradients aren't reduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from collective.process_sets import ProcessSet

Reduce = Callable[[list[Any], list[Any]], list[Any]]


def key(source: Any) -> int:
    """What tells variables apart: the one that a Keras variable is made of is the same."""
    return id(getattr(source, "handle", source))


class LocalSources:
    """The variables registered as this rank's own.

    Args:
        process_set: The ranks that would take part in reducing their gradients.
        scale: Divide their gradients by the number of ranks. A loss that is averaged over ranks has them so small.
    """

    def __init__(self, process_set: ProcessSet, scale: bool) -> None:
        self._process_set, self._scale = process_set, scale
        self._known: dict[int, Any] = {}

    def register(self, source: Any) -> None:
        """Count a variable among them."""
        self._known[key(source)] = source  # kept, or another could get its key

    def __contains__(self, source: Any) -> bool:
        return key(source) in self._known

    def reduce_others(self, gradients: Sequence[Any], sources: Sequence[Any], reduce: Reduce) -> list[Any]:
        """The gradients, in order: those of local sources scaled, the others reduced by ``reduce``."""
        results = list(gradients)
        shared = [place for place, source in enumerate(sources) if source not in self]
        reduced = reduce([results[place] for place in shared], [sources[place] for place in shared])
        for place, gradient in zip(shared, reduced, strict=True):
            results[place] = gradient
        size = self._process_set.size() or 1
        if self._scale and size > 1:
            for place in set(range(len(results))) - set(shared):
                results[place] = divided(results[place], size)
        return results


def divided(gradient: Any, divisor: int) -> Any:
    """A gradient divided by a number; None stays None, and slices stay sparse."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(divided(gradient.values, divisor), gradient.indices, gradient.dense_shape)
    return gradient / tf.cast(divisor, gradient.dtype)
