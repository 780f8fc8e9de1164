"""Optimizers that average gradients over all ranks before they apply them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from collective.errors import ArgumentError
from collective.keras.bridge import Groups, checked_groups
from collective.keras.reduction import Reduction
from collective.keras.wrapping import Optimizer, wrap
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow import Compression


def DistributedOptimizer(
    optimizer: Optimizer,
    name: str | None = None,  # noqa: ARG001  # Horovod names its operations
    device_dense: str = "",  # noqa: ARG001  # arrays are reduced in the host's memory
    device_sparse: str = "",  # noqa: ARG001  # as above
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: ReduceOp = Average,
    num_groups: int = 0,
    groups: Groups = None,
    *,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Optimizer:
    """Wrap a Keras optimizer so that every step averages the gradients over all ranks.

    Called by all ranks, before ``model.compile``; the steps then are collective operations.

    Args:
        optimizer: Any Keras 3 optimizer. It is not changed; its state is copied.
        name: Of no effect, as are the devices; the operations have names already.
        device_dense: Of no effect: arrays are reduced in the host's memory.
        device_sparse: As ``device_dense``.
        compression: How gradients travel between hosts.
        sparse_as_dense: Make the gradients of embeddings dense instead of gathering their rows.
        gradient_predivide_factor: What an average is divided by before the sum; the rest comes after it.
        op: ``Average``, or ``Sum``.
        num_groups: As a number in ``groups``, Horovod's older name for it.
        groups: The number of operations that reduce the gradients, or lists of variables that are reduced as one
            operation each, others one by one; None: all together, which is fastest.
        backward_passes_per_step: Add up the gradients of so many backward passes, then reduce and apply them once.
            Every pass counts as an iteration.
        average_aggregated_gradients: Divide these sums by the number of passes.
        process_set: The ranks whose gradients are reduced; on the others each step is their own.
        scale_local_gradients: Divide the gradients of variables that were given to the optimizer's
            ``register_local_var`` by the number of ranks, as an average over all ranks would.

    Returns:
        An optimizer of a class with the same name, so that a saved model loads where this library is not installed.

    Raises:
        ArgumentError: when it is no Keras optimizer, is wrapped already, or an option is out of its range.

    Cost of a step per rank:
        One all-reduce of the gradients: 2(N-1)/N x bytes.
    """
    reduction = Reduction(
        op,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        checked_groups(groups, num_groups),
        process_set,
        scale_local_gradients,
        backward_passes_per_step,
        average_aggregated_gradients,
    )
    return wrap(optimizer, reduction)


def PartialDistributedOptimizer(
    optimizer: Optimizer,
    name: str | None = None,  # noqa: ARG001  # Horovod names its operations
    device_dense: str = "",  # noqa: ARG001  # arrays are reduced in the host's memory
    device_sparse: str = "",  # noqa: ARG001  # as above
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: ReduceOp = Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    groups: Groups = None,
    process_set: ProcessSet = global_process_set,
    local_layers: keras.layers.Layer | Sequence[keras.layers.Layer] | None = None,
    scale_local_gradients: bool = True,
) -> Optimizer:
    """Wrap a Keras optimizer as ``DistributedOptimizer`` does, but leave the gradients of some layers each rank's own.

    Args, returns, errors, cost: As ``DistributedOptimizer``, and:
        local_layers: A layer or several, built already; None: none.

    Raises:
        ArgumentError: when ``local_layers`` are no layers.
    """
    layers = [local_layers] if isinstance(local_layers, keras.layers.Layer) else list(local_layers or ())
    if not all(isinstance(layer, keras.layers.Layer) for layer in layers):
        raise ArgumentError("local_layers are Keras layers", received=f"local_layers={local_layers!r}")
    wrapped = DistributedOptimizer(
        optimizer,
        compression=compression,
        sparse_as_dense=sparse_as_dense,
        gradient_predivide_factor=gradient_predivide_factor,
        op=op,
        groups=groups,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
    )
    for layer in layers:
        for variable in layer.trainable_weights:
            wrapped.register_local_var(variable)
    return wrapped
