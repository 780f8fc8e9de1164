"""Horovod's reductions: of dense tensors, compressed if wanted, and of ``tf.IndexedSlices``.

See ``operations`` for ``name``, ``ignore_name_scope`` and ``process_set``. Arguments all of them have:

    device_dense, device_sparse: Accepted and not used: tensors travel from main memory.
    compression: ``Compression.none``, ``fp16``, ``bf16``, or a ``Compressor`` of one's own.
    op: ``Average`` (default), ``Sum``, ``Min``, ``Max``, ``Product`` or ``Adasum``.
    prescale_factor, postscale_factor: What the values are multiplied by before they are reduced, and the result.
    average: Horovod's older way to say ``op``: True is Average, False is Sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from collective import compression as core
from collective import reduce_ops
from collective.common.util import get_average_backwards_compatibility_fun
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Adasum, Average, ReduceOp, Sum
from collective.tensorflow.compression import Compression, Compressor, pack
from collective.tensorflow.operations import (
    allreduce_tensor,
    grouped_allgather,
    grouped_allreduce_tensors,
    grouped_reducescatter_tensors,
    reducescatter_tensor,
)

handle_average_backwards_compatibility = get_average_backwards_compatibility_fun(reduce_ops)


def allreduce(
    tensor: Any,
    average: bool | None = None,
    device_dense: str = "",  # noqa: ARG001
    device_sparse: str = "",  # noqa: ARG001
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
) -> tf.Tensor | tf.IndexedSlices:
    """Reduce tensors of one shape and dtype over all ranks, for all ranks; see the module for the arguments.

    Args:
        tensor: A tensor, a variable, or ``tf.IndexedSlices``, of which every rank gets those of all.

    Returns:
        The result; its gradient is the same reduction.

    Raises:
        NotImplementedError: for ``tf.IndexedSlices`` with factors, or another op than Average and Sum.
        tf.errors.FailedPreconditionError: on every rank, when shapes, dtypes, ops, factors or names differ.
        tf.errors.InvalidArgumentError: when ``op`` has no meaning for the dtype, or this rank is not in the set.

    Cost per rank:
        2(N-1)/N x bytes; of slices (N-1) x bytes.
    """
    op = handle_average_backwards_compatibility(op, average)
    if isinstance(tensor, tf.IndexedSlices):
        _check_sparse(op, prescale_factor, postscale_factor)
        return _gather_slices([tensor], op, ignore_name_scope, process_set, name)[0]
    packing = pack(compression, [tensor])
    reduced = allreduce_tensor(
        packing.tensors[0],
        name,
        op,
        prescale_factor,
        postscale_factor,
        ignore_name_scope,
        process_set,
        compression=packing.wire,
    )
    return packing.unpack([reduced])[0]


def grouped_allreduce(
    tensors: Sequence[Any],
    average: bool | None = None,
    device_dense: str = "",  # noqa: ARG001
    device_sparse: str = "",  # noqa: ARG001
    compression: type[Compressor] = Compression.none,
    op: ReduceOp | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    name: str | None = None,
) -> list[Any]:
    """Reduce several tensors or ``tf.IndexedSlices``, the dense ones as one operation. See ``allreduce``."""
    op = handle_average_backwards_compatibility(op, average)
    results = list(tensors)
    sparse = [place for place, tensor in enumerate(tensors) if isinstance(tensor, tf.IndexedSlices)]
    dense = [place for place in range(len(results)) if place not in sparse]
    if sparse:
        _check_sparse(op, prescale_factor, postscale_factor)
        gathered = _gather_slices([results[place] for place in sparse], op, ignore_name_scope, process_set, name)
        for place, slices in zip(sparse, gathered, strict=True):
            results[place] = slices
    if dense:
        reduced = grouped_allreduce_dense(
            [results[place] for place in dense],
            compression,
            name=name,
            op=op,
            prescale_factor=prescale_factor,
            postscale_factor=postscale_factor,
            ignore_name_scope=ignore_name_scope,
            process_set=process_set,
        )
        for place, tensor in zip(dense, reduced, strict=True):
            results[place] = tensor
    return results


def grouped_allreduce_dense(
    tensors: Sequence[Any], compression: type[Compressor] | core.Compression, **options: Any
) -> list[tf.Tensor]:
    """Reduce several dense tensors as one operation, with the options of ``grouped_allreduce_tensors``."""
    packing = pack(compression, tensors)
    return packing.unpack(grouped_allreduce_tensors(packing.tensors, compression=packing.wire, **options))


def reducescatter(
    tensor: Any,
    device_dense: str = "",  # noqa: ARG001
    compression: type[Compressor] = Compression.none,
    op: ReduceOp = Average,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
    ignore_name_scope: bool = False,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> tf.Tensor:
    """Reduce over all ranks and keep this rank's part of axis 0; the first ranks have one row more.

    Arguments and errors are those of ``allreduce``. Cost per rank: (N-1)/N x bytes.
    """
    packing = pack(compression, [tensor])
    options = (op, ignore_name_scope, process_set, prescale_factor, postscale_factor)
    return packing.unpack([reducescatter_tensor(packing.tensors[0], name, *options)])[0]


def grouped_reducescatter(
    tensors: Sequence[Any],
    device_dense: str = "",  # noqa: ARG001
    compression: type[Compressor] = Compression.none,
    op: ReduceOp = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[tf.Tensor]:
    """Reduce each of several tensors and keep this rank's rows. See ``reducescatter``."""
    packing = pack(compression, tensors)
    options = (op, False, process_set, prescale_factor, postscale_factor)
    return packing.unpack(grouped_reducescatter_tensors(packing.tensors, None, *options))


def _check_sparse(op: ReduceOp, prescale_factor: float, postscale_factor: float) -> None:
    if op is Adasum:
        raise NotImplementedError("Adasum of tf.IndexedSlices: make them dense, such as by sparse_as_dense=True")
    if op not in (Average, Sum):
        raise NotImplementedError(f"{op} of tf.IndexedSlices: only Average and Sum are defined")
    if not prescale_factor == 1.0 == postscale_factor:
        raise NotImplementedError("factors before and after the reduction of tf.IndexedSlices: multiply the values")


def _gather_slices(
    slices: Sequence[tf.IndexedSlices],
    op: ReduceOp,
    ignore_name_scope: bool,
    process_set: ProcessSet,
    name: str | None,
) -> list[tf.IndexedSlices]:
    """Give every rank the slices of all; values of one index are added where they are used."""
    scope: dict[str, Any] = {"ignore_name_scope": ignore_name_scope, "process_set": process_set}
    values = grouped_allgather([each.values for each in slices], name and f"{name}.values", **scope)
    indices = grouped_allgather([each.indices for each in slices], name and f"{name}.indices", **scope)
    if op is Average:
        values = [each / tf.cast(process_set.size(), each.dtype) for each in values]
    return [
        tf.IndexedSlices(value, index, each.dense_shape)
        for value, index, each in zip(values, indices, slices, strict=True)
    ]
