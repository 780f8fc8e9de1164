"""All-gather, broadcast, reduce-scatter and all-to-all of tensors, as Horovod's users call them.

All are called by all ranks, in the same order or with a name. ``..._async`` forms return at once: a handle for
``synchronize``; until then the tensors are not to be touched. The other forms are differentiable, ``broadcast_`` apart:
a gradient is that of the sum of all ranks' losses. Arguments, costs and errors are those of ``collective``'s
operations on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from collective import collectives, world
from collective.compression import Compression
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.torch.allreduce import allreduce
from collective.torch.arrays import Array, array_of, scaled, tensor_of, write_back
from collective.torch.autograd import differentiable
from collective.torch.handles import Handle

Splits: TypeAlias = Sequence[int] | torch.Tensor


def allgather(tensor: torch.Tensor, name: str | None = None) -> torch.Tensor:
    """Concatenate the ranks' tensors along axis 0, in rank order; they may differ in their number of rows."""

    def gradient(upstream: torch.Tensor) -> list[torch.Tensor]:
        rows = collectives.allgather(np.array([len(tensor)]), name=name and f"{name}.rows")
        start = int(rows[: world.rank()].sum())
        total = allreduce(upstream, op=Sum, name=name and f"{name}.gradient")
        return [total[start : start + len(tensor)]]

    def run(values: torch.Tensor) -> list[torch.Tensor]:
        return [tensor_of(collectives.allgather(array_of(values), name=name), values.device)]

    return differentiable(run, gradient, [tensor])[0]


def allgather_async(tensor: torch.Tensor, name: str | None = None) -> Handle[torch.Tensor]:
    """Begin ``allgather``."""
    return Handle(collectives.allgather_async(array_of(tensor), name=name), _made(tensor.device))


def grouped_allgather(tensors: Sequence[torch.Tensor], name: str | None = None) -> list[torch.Tensor]:
    """Gather several tensors."""
    return [allgather(tensor, one) for tensor, one in zip(tensors, _names(tensors, name), strict=True)]


def grouped_allgather_async(tensors: Sequence[torch.Tensor], name: str | None = None) -> Handle[list[torch.Tensor]]:
    """Begin ``grouped_allgather``."""
    return Handle([allgather_async(t, one) for t, one in zip(tensors, _names(tensors, name), strict=True)], list)


def broadcast(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> torch.Tensor:
    """Give all ranks the tensor of rank ``root_rank``."""

    def gradient(upstream: torch.Tensor) -> list[torch.Tensor]:
        total = allreduce(upstream, op=Sum, name=name and f"{name}.gradient")
        return [total if world.rank() == root_rank else torch.zeros_like(total)]

    def run(values: torch.Tensor) -> list[torch.Tensor]:
        return [tensor_of(collectives.broadcast(array_of(values), root_rank, name=name), values.device)]

    return differentiable(run, gradient, [tensor])[0]


def broadcast_(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> torch.Tensor:
    """Overwrite a tensor with that of rank ``root_rank``."""
    array = array_of(tensor)
    collectives.broadcast(array, root_rank, name=name, out=array)
    return write_back(array, tensor)


def broadcast_async(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> Handle[torch.Tensor]:
    """Begin ``broadcast``."""
    return Handle(collectives.broadcast_async(array_of(tensor), root_rank, name=name), _made(tensor.device))


def broadcast_async_(tensor: torch.Tensor, root_rank: int, name: str | None = None) -> Handle[torch.Tensor]:
    """Begin ``broadcast_``."""
    array = array_of(tensor)
    begun = collectives.broadcast_async(array, root_rank, name=name, out=array)
    return Handle(begun, lambda _: write_back(array, tensor))


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: Compression = Compression.none,  # noqa: ARG001  # Horovod's signature; nothing is compressed here yet
    op: ReduceOp = Average,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduce over all ranks and keep this rank's part of axis 0; the first ranks have one row more if need be."""
    factor = prescale_factor * postscale_factor

    def gradient(upstream: torch.Tensor) -> list[torch.Tensor]:
        gathered = allgather(upstream, name and f"{name}.gradient")
        return [scaled(gathered, factor / world.size() if op is Average else factor)]

    def run(values: torch.Tensor) -> list[torch.Tensor]:
        rows = collectives.reducescatter(array_of(scaled(values, prescale_factor)), op, name=name)
        return [scaled(tensor_of(rows, values.device), postscale_factor)]

    return differentiable(run, gradient, [tensor])[0]


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: ReduceOp = Average,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[torch.Tensor]:
    """Begin ``reducescatter``."""
    begun = collectives.reducescatter_async(array_of(scaled(tensor, prescale_factor)), op, name=name)
    made = _made(tensor.device)
    return Handle(begun, lambda rows: scaled(made(rows), postscale_factor))


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: Compression = Compression.none,
    op: ReduceOp = Average,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """Reduce and scatter several tensors."""
    return [
        reducescatter(tensor, one, compression, op, prescale_factor, postscale_factor)
        for tensor, one in zip(tensors, _names(tensors, name), strict=True)
    ]


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: ReduceOp = Average,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[list[torch.Tensor]]:
    """Begin ``grouped_reducescatter``."""
    begun = [
        reducescatter_async(tensor, one, op, prescale_factor, postscale_factor)
        for tensor, one in zip(tensors, _names(tensors, name), strict=True)
    ]
    return Handle(begun, list)


def alltoall(
    tensor: torch.Tensor, splits: Splits | None = None, name: str | None = None
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Send rows of axis 0 to every rank; with ``splits`` also returns how many rows came from each rank, int64[N]."""
    counts = _counts(splits)
    received_counts: list[Array] = []

    def gradient(upstream: torch.Tensor) -> list[torch.Tensor]:
        # The rows go back where they came from: as many to each rank as came from it.
        back = alltoall(upstream, received_counts[0].tolist() if received_counts else None, name and f"{name}.gradient")
        return [back[0] if isinstance(back, tuple) else back]

    def run(values: torch.Tensor) -> list[torch.Tensor]:
        received = collectives.alltoall(array_of(values), counts, name=name)
        if isinstance(received, tuple):
            received_counts.append(received[1])
            received = received[0]
        return [tensor_of(received, values.device)]

    rows = differentiable(run, gradient, [tensor])[0]
    return (rows, tensor_of(received_counts[0])) if received_counts else rows


def alltoall_async(tensor: torch.Tensor, splits: Splits | None = None, name: str | None = None) -> Handle[Any]:
    """Begin ``alltoall``."""
    made = _made(tensor.device)

    def deliver(received: Any) -> Any:
        return (made(received[0]), tensor_of(received[1])) if isinstance(received, tuple) else made(received)

    return Handle(collectives.alltoall_async(array_of(tensor), _counts(splits), name=name), deliver)


def _counts(splits: Splits | None) -> Sequence[int] | Array | None:
    return array_of(splits) if isinstance(splits, torch.Tensor) else splits


def _made(device: torch.device) -> Callable[[Array], torch.Tensor]:
    return lambda array: tensor_of(array, device)


def _names(tensors: Sequence[torch.Tensor], name: str | None) -> list[str | None]:
    return [name and f"{name}.{number}" for number in range(len(tensors))]
