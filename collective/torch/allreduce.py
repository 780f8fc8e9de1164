"""All-reduce of tensors in Horovod's eight forms: one or several, new or in place, waited for or not.

All are called by all ranks, in the same order or with a name. They differ in nothing but these three:

- ``grouped_...`` takes and returns a list of tensors, reduced as one operation; small ones share messages.
- ``..._`` overwrites the tensors; the others return new ones, which autograd knows unless they are asynchronous.
- ``..._async`` returns at once: a handle for ``synchronize``. Until then the tensors are not to be touched.

Args, in all of them:
    tensor, tensors: This rank's values, of any strided layout; shape and dtype are the same on all ranks.
    average: Horovod's older way to say ``op``: True is Average, False is Sum.
    name: What matches the operation with the other ranks' calls; by default calls are matched in order.
    compression: How floats travel between hosts.
    op: ``Average`` (the default), ``Sum``, ``Min``, ``Max`` or ``Product``.
    prescale_factor: What the tensors are multiplied with before they are reduced.
    postscale_factor: What the results are multiplied with.

Costs and errors are those of ``collective.allreduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from collective import collectives, grouped, handles
from collective.compression import Compression
from collective.errors import ArgumentError
from collective.reduce_ops import Average, ReduceOp, Sum
from collective.torch.arrays import array_of, scaled, tensor_of, write_back
from collective.torch.autograd import differentiable
from collective.torch.handles import Handle

Tensors = Sequence[torch.Tensor]


class Manner(NamedTuple):
    """All that an all-reduce is told beside its tensors; see the arguments above."""

    op: ReduceOp
    name: str | None
    prescale: float
    postscale: float
    compression: Compression = Compression.none

    def of_gradient(self) -> Manner:
        """How the gradients are reduced: as the values were, for averages and sums are linear."""
        if self.op not in (Average, Sum):
            raise ArgumentError(
                "the gradient of an all-reduce is defined for Average and Sum", received=f"op={self.op!r}"
            )
        return self._replace(name=self.name and f"{self.name}.gradient")


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: Compression = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduce over all ranks into a new tensor; its gradient is reduced likewise (Average and Sum)."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor, compression)
    return _differentiable(_single, [tensor], manner)[0]


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduce over all ranks in place."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _reduced(_single, [tensor], manner, in_place=True)[0]


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[torch.Tensor]:
    """Begin to reduce over all ranks into a new tensor."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _begun(_single, [tensor], manner, in_place=False, result=_first)


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[torch.Tensor]:
    """Begin to reduce over all ranks in place."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _begun(_single, [tensor], manner, in_place=True, result=_first)


def grouped_allreduce(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    compression: Compression = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """Reduce several tensors over all ranks into new ones; their gradients are reduced likewise."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor, compression)
    return list(_differentiable(_group, tensors, manner))


def grouped_allreduce_(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """Reduce several tensors over all ranks in place."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _reduced(_group, tensors, manner, in_place=True)


def grouped_allreduce_async(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[list[torch.Tensor]]:
    """Begin to reduce several tensors over all ranks into new ones."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _begun(_group, tensors, manner, in_place=False, result=list)


def grouped_allreduce_async_(
    tensors: Tensors,
    average: bool | None = None,
    name: str | None = None,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> Handle[list[torch.Tensor]]:
    """Begin to reduce several tensors over all ranks in place."""
    manner = Manner(chosen_op(average, op), name, prescale_factor, postscale_factor)
    return _begun(_group, tensors, manner, in_place=True, result=list)


def chosen_op(average: bool | None, op: ReduceOp | None) -> ReduceOp:
    """The operation that a user names in one of Horovod's two ways."""
    if average is not None and op is not None:
        raise ArgumentError(
            "an operation is named once", received=f"average={average}, op={op!r}", fix="Pass op and leave average out"
        )
    return op if op is not None else Sum if average is False else Average


class _Form(NamedTuple):
    """The operation on arrays that stands behind a form; a single array is taken and handed back as a list of one."""

    now: Callable[..., Any]
    begin: Callable[..., handles.Handle[Any]]
    single: bool


_single = _Form(collectives.allreduce, collectives.allreduce_async, single=True)
_group = _Form(grouped.grouped_allreduce, grouped.grouped_allreduce_async, single=False)


def _differentiable(form: _Form, tensors: Tensors, manner: Manner) -> Tensors:
    return differentiable(
        lambda *values: _reduced(form, values, manner, in_place=False),
        lambda *upstream: _differentiable(form, upstream, manner.of_gradient()),
        tensors,
    )


def _reduced(form: _Form, tensors: Tensors, manner: Manner, in_place: bool) -> list[torch.Tensor]:
    results, deliver = _called(form, form.now, tensors, manner, in_place)
    return deliver(results)


def _begun(
    form: _Form, tensors: Tensors, manner: Manner, in_place: bool, result: Callable[[list[torch.Tensor]], Any]
) -> Handle[Any]:
    handle, deliver = _called(form, form.begin, tensors, manner, in_place)
    return Handle(handle, lambda results: result(deliver(results)))


def _called(
    form: _Form, function: Callable[..., Any], tensors: Tensors, manner: Manner, in_place: bool
) -> tuple[Any, Callable[[Any], list[torch.Tensor]]]:
    """Call an operation on the tensors' arrays: what it returns, and what makes tensors of its results."""
    targets = [array_of(tensor) for tensor in tensors] if in_place else None
    if targets is None or manner.prescale != 1.0:
        arrays = [array_of(scaled(tensor, manner.prescale)) for tensor in tensors]
    else:
        arrays = targets

    def deliver(results: Any) -> list[torch.Tensor]:
        reduced = [results] if form.single else results
        if targets is None:
            made = zip(reduced, tensors, strict=True)
            return [scaled(tensor_of(array, tensor.device), manner.postscale) for array, tensor in made]
        for array, tensor in zip(targets, tensors, strict=True):
            if manner.postscale != 1.0:
                tensor_of(array).copy_(scaled(tensor_of(array), manner.postscale))
            write_back(array, tensor)
        return list(tensors)

    given = arrays[0] if form.single else arrays
    out = targets[0] if form.single and targets else targets
    returned = function(given, manner.op, name=manner.name, out=out, compression=manner.compression)
    return returned, deliver


def _first(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0]
