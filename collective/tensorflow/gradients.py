"""Average the gradients of one step over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from collective import world
from collective.compression import Compression
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow.operations import allgather, grouped_allreduce


def reduce_gradients(
    gradients: Sequence[Any], op: ReduceOp = Average, compression: Compression = Compression.none
) -> list[Any]:
    """Reduce gradients over all ranks; called by all ranks with gradients of the same variables in the same order.

    Dense ones are reduced as one operation. Sparse ones (``tf.IndexedSlices``, from embeddings) are gathered: every
    rank gets the slices of all. Gradients that are None stay None.

    Args:
        gradients: Tensors, ``tf.IndexedSlices`` or None.
        op: ``Average`` or ``Sum``.
        compression: How dense gradients travel between hosts.

    Returns:
        The reduced gradients in the order given.

    Cost per rank:
        2(N-1)/N x bytes of the dense gradients, (N-1) x bytes of the sparse ones.
    """
    reduced = list(gradients)
    if world.size() == 1:
        return reduced
    dense = [place for place, gradient in enumerate(reduced) if _is_dense(gradient)]
    if dense:
        together = grouped_allreduce([reduced[place] for place in dense], op, name="gradients", compression=compression)
        for place, gradient in zip(dense, together, strict=True):
            reduced[place] = gradient
    for place, gradient in enumerate(reduced):
        if isinstance(gradient, tf.IndexedSlices):
            reduced[place] = _gather_slices(gradient, op)
    return reduced


def _is_dense(gradient: Any) -> bool:
    return gradient is not None and not isinstance(gradient, tf.IndexedSlices)


def _gather_slices(gradient: tf.IndexedSlices, op: ReduceOp) -> tf.IndexedSlices:
    values = allgather(gradient.values)
    if op is Average:
        values = values / tf.cast(world.size(), values.dtype)
    return tf.IndexedSlices(values, allgather(gradient.indices), gradient.dense_shape)


class DistributedGradientTape:
    """A ``tf.GradientTape`` whose ``gradient`` is averaged over all ranks; every other attribute is the tape's own.

    Args:
        tape: The tape that records; it may have recorded already.
        op: ``Average`` or ``Sum``.
        compression: How dense gradients travel between hosts.

    Example::

        with tf.GradientTape() as tape:
            loss = ...
        gradients = collective.tensorflow.DistributedGradientTape(tape).gradient(loss, model.trainable_variables)
    """

    def __init__(
        self, tape: tf.GradientTape, op: ReduceOp = Average, compression: Compression = Compression.none
    ) -> None:
        self._tape, self._op, self._compression = tape, op, compression

    def __enter__(self) -> DistributedGradientTape:
        self._tape.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._tape.__exit__(*exception)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tape, name)

    def gradient(self, target: Any, sources: Any, output_gradients: Any = None, **options: Any) -> Any:
        """The gradient of ``target`` averaged over all ranks, in the structure of ``sources``; called by all ranks."""
        gradients = self._tape.gradient(target, sources, output_gradients, **options)
        flat = tf.nest.flatten(gradients, expand_composites=False)
        return tf.nest.pack_sequence_as(gradients, reduce_gradients(flat, self._op, self._compression))
