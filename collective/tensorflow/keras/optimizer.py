"""``DistributedOptimizer`` with the arguments in the order that ``horovod.tensorflow.keras`` has."""

from __future__ import annotations

from typing import Any

from collective.keras import optimizer as implementation
from collective.keras.bridge import Groups
from collective.keras.wrapping import Optimizer
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.tensorflow import Compression


def DistributedOptimizer(
    optimizer: Optimizer,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: Any = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: ReduceOp = Average,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Groups = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Optimizer:
    """Wrap a Keras optimizer so that every step averages the gradients over all ranks.

    Args, returns, errors, cost: As ``collective.keras.DistributedOptimizer``.
    """
    return implementation.DistributedOptimizer(
        optimizer,
        name,
        device_dense,
        device_sparse,
        compression,
        sparse_as_dense,
        gradient_predivide_factor,
        op,
        num_groups,
        groups,
        backward_passes_per_step=backward_passes_per_step,
        average_aggregated_gradients=average_aggregated_gradients,
        process_set=process_set,
        scale_local_gradients=scale_local_gradients,
    )
