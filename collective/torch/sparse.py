"""All-reduce of sparse tensors, as embeddings with ``sparse=True`` have them for gradients."""

from __future__ import annotations

from typing import Any

import torch

from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.torch.handles import Handle
from collective.torch.operations import allgather_async


def sparse_allreduce_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Begin to add or average sparse tensors; called by all ranks.

    Args:
        tensor: This rank's values, sparse (COO), of one shape and number of sparse dimensions on all ranks.
        name: As in ``allreduce``.
        op: ``Average`` or ``Sum``.
        process_set: The ranks that take part.

    Returns:
        A handle of the sparse result, not coalesced: every rank gets the entries of all.

    Raises:
        ArgumentError: for another operation.

    Cost per rank:
        Two all-gathers: (N-1) x bytes of the entries.
    """
    if op not in (Average, Sum):
        raise ArgumentError("sparse tensors are averaged or added", received=f"op={op!r}")
    # Rows are entries: the ranks' numbers of entries differ.
    indices = allgather_async(tensor._indices().t(), name and f"{name}.indices", process_set)
    values = allgather_async(tensor._values(), name and f"{name}.values", process_set)

    def deliver(gathered: list[Any]) -> torch.Tensor:
        places, entries = gathered
        if op is Average:
            entries = entries / process_set.size()
        return torch.sparse_coo_tensor(places.t(), entries, tensor.shape, check_invariants=False)

    return Handle([indices, values], deliver)
