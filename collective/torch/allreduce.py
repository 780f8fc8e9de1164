"""All-reduce of tensors in Horovod's eight forms: one or several, new or in place, waited for or not.

All are called by all ranks, in the same order or with a name. They differ in nothing but these three:

- ``grouped_...`` takes and returns a list of tensors, reduced as one operation; small ones share messages.
- ``..._`` overwrites the tensors; the others return new ones, which autograd knows unless they are asynchronous.
- ``..._async`` returns at once: a handle for ``synchronize``. Until then the tensors are not to be touched.

Args, in all of them:
    tensor, tensors: This rank's values, of any strided layout; shape and dtype are the same on all ranks.
    average: Horovod's older way to say ``op``: True is Average, False is Sum.
    name: What matches the operation with the other ranks' calls; by default calls are matched in order.
    compression: How floats travel, one of ``Compression`` or a ``Compressor`` of the user's own.
    op: ``Average`` (the default), ``Sum``, ``Min``, ``Max``, ``Product`` or ``Adasum``.
    prescale_factor: What the tensors are multiplied by before they are reduced; integers are as float64.
    postscale_factor: What the results are multiplied by.
    process_set: The ranks that take part.

Costs and errors are those of ``collective.allreduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from collective import collectives, grouped, handles, reduce_ops
from collective import compression as core
from collective.common.util import get_average_backwards_compatibility_fun
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.torch.arrays import Array, array_of, tensor_of, write_back
from collective.torch.autograd import differentiable
from collective.torch.compression import Compression, Compressor, pack
from collective.torch.handles import Handle, begin

Tensors = Sequence[torch.Tensor]

_op = handle_average_backwards_compatibility = get_average_backwards_compatibility_fun(reduce_ops)


class Manner(NamedTuple):
    """All that an all-reduce is told beside its tensors; see the arguments above."""

    op: ReduceOp
    name: str | None
    prescale: float
    postscale: float
    process_set: ProcessSet
    wire: core.Compression = core.Compression.none

    def of_gradient(self) -> Manner:
        """How the gradients are reduced: as the values were, for averages and sums are linear."""
        if self.op not in (Average, Sum):
            raise ArgumentError(
                "the gradient of an all-reduce is defined for Average and Sum", received=f"op={self.op!r}"
            )
        return self._replace(name=self.name and f"{self.name}.gradient")

    def options(self) -> dict[str, Any]:
        """The same as arguments of an operation on arrays, but for ``op``."""
        return {
            "name": self.name,
            "prescale_factor": self.prescale,
            "postscale_factor": self.postscale,
            "process_set": self.process_set,
            "compression": self.wire,
        }


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Reduce over all ranks into a new tensor; its gradient is reduced likewise (Average and Sum)."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _compressed(_single, [tensor], manner, compression)[0]


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Reduce over all ranks in place."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _reduced(_single, [tensor], manner, in_place=True)[0]


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Begin to reduce over all ranks into a new tensor."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _begun(_single, [tensor], manner, in_place=False)


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[torch.Tensor]:
    """Begin to reduce over all ranks in place."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _begun(_single, [tensor], manner, in_place=True)


def grouped_allreduce(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """Reduce several tensors over all ranks into new ones; their gradients are reduced likewise."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _compressed(_group, tensors, manner, compression)


def grouped_allreduce_(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """Reduce several tensors over all ranks in place."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _reduced(_group, tensors, manner, in_place=True)


def grouped_allreduce_async(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[torch.Tensor]]:
    """Begin to reduce several tensors over all ranks into new ones."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _begun(_group, tensors, manner, in_place=False)


def grouped_allreduce_async_(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> Handle[list[torch.Tensor]]:
    """Begin to reduce several tensors over all ranks in place."""
    manner = Manner(_op(op, average), name, prescale_factor, postscale_factor, process_set)
    return _begun(_group, tensors, manner, in_place=True)


class _Form(NamedTuple):
    """The operation on arrays that stands behind a form; a single array is taken and handed back as a list of one."""

    now: Callable[..., Any]
    begin: Callable[..., handles.Handle[Any]]
    single: bool


_single = _Form(collectives.allreduce, collectives.allreduce_async, single=True)
_group = _Form(grouped.grouped_allreduce, grouped.grouped_allreduce_async, single=False)


def _compressed(form: _Form, tensors: Tensors, manner: Manner, compression: type[Compressor]) -> list[torch.Tensor]:
    packing = pack(compression, tensors)
    return packing.unpack(_differentiable(form, packing.tensors, manner._replace(wire=packing.wire)))


def _differentiable(form: _Form, tensors: Tensors, manner: Manner) -> Tensors:
    return differentiable(
        lambda *values: _reduced(form, values, manner, in_place=False),
        lambda *upstream: _differentiable(form, upstream, manner.of_gradient()),
        tensors,
    )


def _reduced(form: _Form, tensors: Tensors, manner: Manner, in_place: bool) -> list[torch.Tensor]:
    arrays = [array_of(tensor) for tensor in tensors]
    values: Any = arrays[0] if form.single else arrays
    op = _carried_by(manner, tensors)
    results = form.now(values, op, **manner.options(), out=values if in_place else None)
    return _delivered(form, results, arrays, tensors, in_place, manner if op is not manner.op else None)


def _begun(form: _Form, tensors: Tensors, manner: Manner, in_place: bool) -> Handle[Any]:
    arrays = [array_of(tensor) for tensor in tensors]
    values: Any = arrays[0] if form.single else arrays

    op = _carried_by(manner, tensors)

    def deliver(results: Any) -> Any:
        reduced = _delivered(form, results, arrays, tensors, in_place, manner if op is not manner.op else None)
        return reduced[0] if form.single else reduced

    return begin(form.begin, deliver, values, op, **manner.options(), out=values if in_place else None)


def _carried_by(manner: Manner, tensors: Tensors) -> ReduceOp:
    """The operation on arrays: integers are averaged here, rounded down as PyTorch divides them."""
    whole = not any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors)
    return (
        Sum if manner.op is Average and whole and all(tensor.dtype != torch.bool for tensor in tensors) else manner.op
    )


def _delivered(
    form: _Form, results: Any, arrays: Sequence[Array], tensors: Tensors, in_place: bool, divided: Manner | None
) -> list[torch.Tensor]:
    """The results as tensors; in place they are in the arrays, which are those of the tensors.

    ``divided``: they are sums, to be divided by the number of ranks.
    """
    if in_place:
        reduced = [write_back(array, tensor) for array, tensor in zip(arrays, tensors, strict=True)]
    else:
        sums = [results] if form.single else results
        reduced = [tensor_of(array, tensor.device) for array, tensor in zip(sums, tensors, strict=True)]
    if divided:
        for tensor in reduced:
            tensor.floor_divide_(divided.process_set.size() or 1)
    return reduced
