"""Reduce the gradients of one step over all ranks: what the tape and all optimizers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from collective import compression as core
from collective import world
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow import finite
from collective.tensorflow.compression import Compression, Compressor
from collective.tensorflow.reductions import grouped_allreduce, grouped_allreduce_dense


def reduce_gradients(
    gradients: Sequence[Any],
    op: ReduceOp = Average,
    compression: type[Compressor] | core.Compression = Compression.none,
    *,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    groups: Sequence[Sequence[int]] | None = None,
    process_set: ProcessSet | None = None,
    names: Sequence[str] | None = None,
    watches: bool = True,
    raises: bool = True,
) -> list[Any]:
    """Reduce gradients over all ranks; called by all ranks with gradients of the same variables in the same order.

    Dense ones are reduced as one operation, or one for each group. Sparse ones (``tf.IndexedSlices``, from embeddings)
    are gathered: every rank gets the slices of all. Gradients that are None stay None.

    Args:
        gradients: Tensors, ``tf.IndexedSlices`` or None.
        op: How they are reduced.
        compression: How dense gradients travel between hosts.
        sparse_as_dense: Make sparse gradients dense first.
        gradient_predivide_factor: An average is divided by this before the sum, and by the rest after it.
        groups: Lists of places in ``gradients`` that are reduced as one operation each; others are one by one. None:
            all together.
        process_set: The ranks that take part; None: all. Others, and a rank on its own, keep their gradients.
        names: What each is the gradient of, for ``COLLECTIVE_CHECK_FINITE``, which tells of those that are not finite;
            None: they have none, and with ``skip`` nobody looks.
        watches: Whether to look with ``skip``.
        raises: Whether what is found then is an error, as for who can't leave out a step.

    Returns:
        The reduced gradients in the order given.

    Raises:
        NonFiniteError: see ``names`` and ``raises``.
        NotImplementedError: for sparse gradients and another ``op`` than ``Average`` and ``Sum``.

    Cost per rank:
        2(N-1)/N x bytes of the dense gradients, (N-1) x bytes of the sparse ones.
    """
    reduced = [
        tf.convert_to_tensor(each) if sparse_as_dense and isinstance(each, tf.IndexedSlices) else each
        for each in gradients
    ]
    members = process_set or global_process_set
    world.backend("reduce_gradients")
    results = _reduced(reduced, op, compression, gradient_predivide_factor, groups, members, names)
    if names is None or not watches or not world.skips_steps():
        return results
    return finite.watched(reduced, results, names, members, raises)


def _reduced(
    gradients: Sequence[Any],
    op: ReduceOp,
    compression: type[Compressor] | core.Compression,
    divisor: float,
    groups: Sequence[Sequence[int]] | None,
    members: ProcessSet,
    names: Sequence[str] | None,
) -> list[Any]:
    reduced = list(gradients)
    if members.included() is False or members.size() == 1:  # of a set that is not registered, grouped_allreduce tells
        return reduced
    dense = {place for place, gradient in enumerate(reduced) if _is_dense(gradient)}
    factors: dict[str, Any] = {} if divisor == 1.0 else {"prescale_factor": 1.0 / divisor, "postscale_factor": divisor}
    options: dict[str, Any] = {"op": op, "compression": compression, "process_set": members}
    for number, group in enumerate(_complete(groups, dense)):
        name = f"gradients.{number}" if number else "gradients"
        of = names and [names[place] for place in group]
        together = grouped_allreduce_dense([reduced[place] for place in group], name=name, of=of, **options, **factors)
        for place, gradient in zip(group, together, strict=True):
            reduced[place] = gradient
    sparse = [place for place, gradient in enumerate(reduced) if isinstance(gradient, tf.IndexedSlices)]
    own = [reduced[place] for place in sparse]
    gathered = grouped_allreduce(own, name="gradients.sparse", **options)
    if sparse and world.refuses_infinite():  # what isn't summed no operation has looked at
        of = [names[place] if names else f"sparse gradient {place + 1}" for place in sparse]
        gathered = finite.watched(own, gathered, of, members, raises=True)
    for place, gradient in zip(sparse, gathered, strict=True):
        reduced[place] = gradient
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
