"""Average the gradients of one step over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from collective import world
from collective.compression import Compression
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow.operations import allgather, grouped_allreduce


def reduce_gradients(
    gradients: Sequence[Any],
    op: ReduceOp = Average,
    compression: Compression = Compression.none,
    *,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    groups: Sequence[Sequence[int]] | None = None,
    process_set: ProcessSet | None = None,
) -> list[Any]:
    """Reduce gradients over all ranks; called by all ranks with gradients of the same variables in the same order.

    Dense ones are reduced as one operation, or one for each group. Sparse ones (``tf.IndexedSlices``, from embeddings)
    are gathered: every rank gets the slices of all. Gradients that are None stay None.

    Args:
        gradients: Tensors, ``tf.IndexedSlices`` or None.
        op: ``Average`` or ``Sum``.
        compression: How dense gradients travel between hosts.
        sparse_as_dense: Make sparse gradients dense first.
        gradient_predivide_factor: An average is divided by this before the sum, and by the rest after it.
        groups: Lists of places in ``gradients`` that are reduced as one operation each; others are one by one. None:
            all together.
        process_set: The ranks that take part; None: all.

    Returns:
        The reduced gradients in the order given.

    Cost per rank:
        2(N-1)/N x bytes of the dense gradients, (N-1) x bytes of the sparse ones.
    """
    reduced = [
        tf.convert_to_tensor(each) if sparse_as_dense and isinstance(each, tf.IndexedSlices) else each
        for each in gradients
    ]
    members = process_set or global_process_set
    world.backend("reduce_gradients")
    if members.size() == 1:
        return reduced
    dense = {place for place, gradient in enumerate(reduced) if _is_dense(gradient)}
    divisor = gradient_predivide_factor
    factors = {} if divisor == 1.0 else {"prescale_factor": 1.0 / divisor, "postscale_factor": divisor}
    for number, group in enumerate(_complete(groups, dense)):
        together = grouped_allreduce(
            [reduced[place] for place in group],
            op,
            name=f"gradients.{number}" if number else "gradients",
            compression=compression,
            process_set=process_set,
            **factors,
        )
        for place, gradient in zip(group, together, strict=True):
            reduced[place] = gradient
    for place, gradient in enumerate(reduced):
        if isinstance(gradient, tf.IndexedSlices):
            reduced[place] = _gather_slices(gradient, op, process_set)
    return reduced


def _is_dense(gradient: Any) -> bool:
    return gradient is not None and not isinstance(gradient, tf.IndexedSlices)


def _complete(groups: Sequence[Sequence[int]] | None, dense: set[int]) -> list[list[int]]:
    """The groups without what is not dense, and a group of its own for each gradient that is in none."""
    if groups is None:
        return [sorted(dense)] if dense else []
    grouped = {place for group in groups for place in group}
    every = [*groups, *([place] for place in sorted(dense - grouped))]
    return [kept for kept in ([place for place in group if place in dense] for group in every) if kept]


def _gather_slices(gradient: tf.IndexedSlices, op: ReduceOp, process_set: ProcessSet | None) -> tf.IndexedSlices:
    values = allgather(gradient.values, process_set=process_set)
    if op is Average:
        values = values / tf.cast((process_set or global_process_set).size(), values.dtype)
    return tf.IndexedSlices(values, allgather(gradient.indices, process_set=process_set), gradient.dense_shape)


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
