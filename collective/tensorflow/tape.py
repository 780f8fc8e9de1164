"""A gradient tape whose gradients are reduced over all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow.compression import Compression, Compressor
from collective.tensorflow.finite import name_of
from collective.tensorflow.gradients import reduce_gradients
from collective.tensorflow.groups import checked_groups, places
from collective.tensorflow.local_sources import LocalSources


class Reducing:
    """What ``DistributedGradientTape`` puts in front of a tape's class."""

    _collective_sources: LocalSources
    _collective_groups: Any
    _collective_options: dict[str, Any]

    def register_local_source(self, source: Any) -> None:
        """Let every rank keep its own gradient of this variable."""
        self._collective_sources.register(source)

    def gradient(
        self,
        target: Any,
        sources: Any,
        output_gradients: Any = None,
        use_generic_names: bool = False,  # noqa: ARG002
        **options: Any,
    ) -> Any:
        """The gradient of ``target``, reduced over all ranks, in the structure of ``sources``; called by all ranks.

        Args:
            target: As the tape takes it.
            sources: As the tape takes them.
            output_gradients: As the tape takes them.
            use_generic_names: Accepted and not used: the names of gradients are generic.
            options: What else the tape takes.

        Raises:
            NonFiniteError: with ``COLLECTIVE_CHECK_FINITE=skip``, too: a tape can't leave out a step.
        """
        gradients = super().gradient(target, sources, output_gradients, **options)  # type: ignore[misc]

        def reduce(some: list[Any], of: list[Any]) -> list[Any]:
            grouped = places(self._collective_groups, some, of)
            return reduce_gradients(some, groups=grouped, names=[*map(name_of, of)], **self._collective_options)

        flat = tf.nest.flatten(gradients)
        results = self._collective_sources.reduce_others(flat, tf.nest.flatten(sources), reduce)
        return tf.nest.pack_sequence_as(gradients, results)

    def get_local_and_global_gradients(
        self, target: Any, sources: Sequence[Any], output_gradients: Any = None, use_generic_names: bool = False
    ) -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
        """Pairs of source and gradient: those of registered local sources, and the others."""
        gradients = self.gradient(target, sources, output_gradients, use_generic_names)
        pairs = list(zip(sources, gradients, strict=True))
        local = self._collective_sources
        return [pair for pair in pairs if pair[0] in local], [pair for pair in pairs if pair[0] not in local]


def DistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",  # noqa: ARG001
    device_sparse: str = "",  # noqa: ARG001
    compression: type[Compressor] = Compression.none,
    sparse_as_dense: bool = False,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """Make a tape that goes on where ``gradtape`` is, and whose ``gradient`` is reduced over all ranks.

    Args:
        gradtape: The tape that records; it may have recorded already.
        device_dense: Accepted and not used.
        device_sparse: Accepted and not used.
        compression: How dense gradients travel between hosts.
        sparse_as_dense: Make sparse gradients dense first.
        op: How they are reduced.
        gradient_predivide_factor: An average is divided by this before the sum, and by the rest after it.
        num_groups: Older spelling of ``groups``.
        groups: How many operations reduce the dense gradients, or lists of variables for one each; None: one.
        process_set: The ranks that take part.
        scale_local_gradients: Divide gradients of local sources by the number of ranks.

    Returns:
        An instance of a subclass of the tape's class, with its state.

    Example::

        with tf.GradientTape() as tape:
            loss = ...
        gradients = collective.tensorflow.DistributedGradientTape(tape).gradient(loss, model.trainable_variables)
    """
    check_predivide(gradient_predivide_factor, op)
    base = type(gradtape)
    tape: Any = object.__new__(type(base.__name__, (Reducing, base), {}))
    # One state for both: whether it records, and that it has been used.
    tape.__dict__ = gradtape.__dict__
    tape._collective_sources = LocalSources(process_set, scale_local_gradients)
    tape._collective_groups = checked_groups(groups, num_groups)
    tape._collective_options = {
        "op": op,
        "compression": compression,
        "sparse_as_dense": sparse_as_dense,
        "gradient_predivide_factor": gradient_predivide_factor,
        "process_set": process_set,
    }
    return tape


def PartialDistributedGradientTape(
    gradtape: tf.GradientTape,
    device_dense: str = "",
    device_sparse: str = "",
    compression: type[Compressor] = Compression.none,
    sparse_as_dense: bool = False,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
) -> Any:
    """Make a distributed tape that leaves each rank its own gradients of some layers; see ``DistributedGradientTape``.

    Args:
        local_layers: A Keras layer or a list of them; None: no layer.

    Raises:
        ArgumentError: when one is no layer; a ValueError.
    """
    layers = [local_layers] if isinstance(local_layers, tf.keras.layers.Layer) else list(local_layers or ())
    for layer in layers:
        if not isinstance(layer, tf.keras.layers.Layer):
            raise ArgumentError("local_layers are Keras layers", received=f"local_layers={local_layers!r}")
    tape = DistributedGradientTape(
        gradtape,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        op,
        gradient_predivide_factor,
        num_groups,
        groups,
        process_set,
        scale_local_gradients,
    )
    for layer in layers:
        for variable in layer.trainable_weights:
            tape.register_local_source(variable)
    return tape


def check_predivide(factor: float, op: ReduceOp) -> None:
    """Refuse a division before the sum for what is no average; a ValueError."""
    if factor != 1.0 and op is not Average:
        raise ArgumentError(
            "gradient_predivide_factor splits an average", received=f"gradient_predivide_factor={factor}, op={op}"
        )
