"""All-gather, broadcast, reduce-scatter and all-to-all of tensors, as Horovod's users call them.

All are called by all ranks of the process set, in the same order or with a name. ``..._async`` forms return at once: a
handle for ``synchronize``; until then the tensors are not to be touched. The other forms are differentiable,
``broadcast_`` apart; their gradients are those of Horovod, which users' learning rates go by. Arguments, costs and
errors are those of ``collective``'s operations on arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from collective import collectives, grouped, world
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.torch.allreduce import allreduce, grouped_allreduce
from collective.torch.arrays import Array, array_of, tensor_of, write_back
from collective.torch.autograd import differentiable
from collective.torch.compression import Compression, Compressor, pack
from collective.torch.handles import Handle, begin

Splits: TypeAlias = Sequence[int] | torch.Tensor
Tensors: TypeAlias = Sequence[torch.Tensor]


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Concatenate the ranks' tensors along axis 0, in rank order; they may differ in their number of rows.

    The gradient of a rank's rows is the average of what all ranks have for them.
    """

    def run(values: torch.Tensor) -> Tensors:
        return _like([values], [collectives.allgather(array_of(values), name=name, process_set=process_set)])

    return gathered(run, [tensor], name, process_set)[0]


def allgather_async(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Begin ``allgather``."""
    made = _made(tensor.device)
    return begin(collectives.allgather_async, made, array_of(tensor), name=name, process_set=process_set)


def grouped_allgather(
    tensors: Tensors, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[torch.Tensor]:
    """Gather several tensors; all are under way at once."""

    def run(*values: torch.Tensor) -> Tensors:
        return _like(values, grouped.grouped_allgather(_arrays(values), name=name, process_set=process_set))

    return list(gathered(run, tensors, name, process_set))


def grouped_allgather_async(
    tensors: Tensors, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[list[torch.Tensor]]:
    """Begin ``grouped_allgather``."""
    return _all([allgather_async(t, one, process_set) for t, one in _named(tensors, name)])


def gathered(
    run: Callable[..., Tensors], tensors: Tensors, name: str | None, process_set: ProcessSet, op: ReduceOp = Average
) -> Tensors:
    """Make an all-gather differentiable; what the ranks have for the same rows is joined by ``op``."""

    def gradient(*upstream: torch.Tensor) -> Tensors:
        own = [len(tensor) for tensor in tensors]
        # With the ranks, for those that have joined tell nothing.
        ranks_rows = np.array([[world.rank(), *own]])
        everyone = collectives.allgather(ranks_rows, name=name and f"{name}.rows", process_set=process_set)
        starts = everyone[everyone[:, 0] < world.rank(), 1:].sum(0).tolist()
        label = name and f"{name}.gradient"
        joined = grouped_allreduce(upstream, name=label, op=op, process_set=process_set)
        return [every[start : start + count] for every, start, count in zip(joined, starts, own, strict=True)]

    return differentiable(run, gradient, tensors)


def broadcast(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Give all ranks the tensor of rank ``root_rank``, its number in the job; the average of gradients goes back."""

    def gradient(upstream: torch.Tensor) -> Tensors:
        average = allreduce(upstream, name=name and f"{name}.gradient", process_set=process_set)
        return [average if world.rank() == root_rank else torch.zeros_like(average)]

    def run(values: torch.Tensor) -> Tensors:
        result = collectives.broadcast(array_of(values), root_rank, name=name, process_set=process_set)
        return _like([values], [result])

    return differentiable(run, gradient, [tensor])[0]


def broadcast_(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Overwrite a tensor with that of rank ``root_rank``."""
    array = array_of(tensor)
    collectives.broadcast(array, root_rank, name=name, out=array, process_set=process_set)
    return write_back(array, tensor)


def broadcast_async(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Begin ``broadcast``."""
    array, made = array_of(tensor), _made(tensor.device)
    return begin(collectives.broadcast_async, made, array, root_rank, name=name, process_set=process_set)


def broadcast_async_(
    tensor: torch.Tensor, root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Handle[torch.Tensor]:
    """Begin ``broadcast_``."""
    array = array_of(tensor)

    def deliver(_: Array) -> torch.Tensor:
        return write_back(array, tensor)

    return begin(collectives.broadcast_async, deliver, array, root_rank, name=name, out=array, process_set=process_set)


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduce over all ranks and keep this rank's part of axis 0; the first ranks have one row more if need be.

    A rank's gradient goes back to all ranks: as it is for Average, times their number for Sum.
    """

    def run(values: torch.Tensor) -> Tensors:
        rows = collectives.reducescatter(
            array_of(values),
            op,
            name=name,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            process_set=process_set,
        )
        return _like([values], [rows])

    packing = pack(compression, [tensor])
    factor = prescale_factor * postscale_factor
    return packing.unpack(_scattered(run, packing.tensors, name, op, process_set, factor))[0]


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[torch.Tensor]:
    """Begin ``reducescatter``."""
    return begin(
        collectives.reducescatter_async,
        _made(tensor.device),
        array_of(tensor),
        op,
        name=name,
        prescale_factor=prescale_factor,
        postscale_factor=postscale_factor,
        process_set=process_set,
    )


def grouped_reducescatter(
    tensors: Tensors,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """Reduce and scatter several tensors; all are under way at once."""

    def run(*values: torch.Tensor) -> Tensors:
        rows = grouped.grouped_reducescatter(
            _arrays(values),
            op,
            name=name,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            process_set=process_set,
        )
        return _like(values, rows)

    packing = pack(compression, tensors)
    factor = prescale_factor * postscale_factor
    return packing.unpack(_scattered(run, packing.tensors, name, op, process_set, factor))


def grouped_reducescatter_async(
    tensors: Tensors,
    name: str | None = None,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[list[torch.Tensor]]:
    """Begin ``grouped_reducescatter``."""
    rest = (op, process_set, prescale_factor, postscale_factor)
    return _all([reducescatter_async(tensor, one, *rest) for tensor, one in _named(tensors, name)])


def _scattered(
    run: Callable[..., Tensors],
    tensors: Tensors,
    name: str | None,
    op: ReduceOp,
    process_set: ProcessSet,
    factor: float,
) -> Tensors:
    """Make a reduce-scatter differentiable."""

    def gradient(*upstream: torch.Tensor) -> Tensors:
        times = factor * (process_set.size() or 1) if op is Sum else factor
        return grouped_allgather([one * times for one in upstream], name and f"{name}.gradient", process_set)

    return differentiable(run, gradient, tensors)


def alltoall(
    tensor: torch.Tensor,
    splits: Splits | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Send rows of axis 0 to every rank; with ``splits`` also returns how many rows came from each rank, int[N].

    The gradient of a row comes back from where it went.
    """
    counts: list[Array] = []

    def gradient(upstream: torch.Tensor) -> Tensors:
        # The rows go back where they came from: as many to each rank as came from it.
        return [alltoall(upstream, counts[0].tolist(), name and f"{name}.gradient", process_set)[0]]

    def run(values: torch.Tensor) -> Tensors:
        rows = _counts(splits, values, process_set)
        received, received_counts = collectives.alltoall(array_of(values), rows, name=name, process_set=process_set)
        counts.append(received_counts)
        return _like([values], [received])

    (result,) = differentiable(run, gradient, [tensor])
    return result if splits is None else (result, _counts_like(splits, counts[0]))


def alltoall_async(
    tensor: torch.Tensor,
    splits: Splits | None = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
    """Begin ``alltoall``; the result has the numbers of rows with it, also without ``splits``."""
    made, rows = _made(tensor.device), _counts(splits, tensor, process_set)

    def deliver(received: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return made(received[0]), _counts_like(splits, received[1])

    return begin(collectives.alltoall_async, deliver, array_of(tensor), rows, name=name, process_set=process_set)


def _counts(splits: Splits | None, tensor: torch.Tensor, process_set: ProcessSet) -> Sequence[int] | Array | None:
    """How many rows go to each rank; None, which is refused: they don't divide evenly."""
    if splits is not None:
        return array_of(splits) if isinstance(splits, torch.Tensor) else splits
    size = process_set.size()
    if not size or tensor.dim() == 0 or len(tensor) % size:
        return None
    return [len(tensor) // size] * size


def _counts_like(splits: Splits | None, counts: Array) -> torch.Tensor:
    if isinstance(splits, torch.Tensor):
        return tensor_of(counts).to(splits)
    return tensor_of(counts).to(torch.int32)


def _arrays(tensors: Tensors) -> list[Array]:
    return [array_of(tensor) for tensor in tensors]


def _like(tensors: Tensors, arrays: Sequence[Array]) -> Tensors:
    return [tensor_of(array, tensor.device) for array, tensor in zip(arrays, tensors, strict=True)]


def _made(device: torch.device) -> Callable[[Array], torch.Tensor]:
    return lambda array: tensor_of(array, device)


def _named(tensors: Tensors, name: str | None) -> list[tuple[torch.Tensor, str | None]]:
    return [(tensor, name and f"{name}.{number}") for number, tensor in enumerate(tensors)]


def _all(begun: list[Handle[Any]]) -> Handle[list[Any]]:
    return Handle(begun, list)
