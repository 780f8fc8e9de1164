"""The arguments of operations: checked, so that what is wrong on one rank is an error on all, and made contiguous."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collective import dtypes
from collective.backends.base import Backend
from collective.errors import ArgumentError
from collective.reduce_ops import Adasum, ReduceOp
from collective.reduction import reduction_for
from collective.topology import Topology

Array = np.ndarray[Any, Any]


@contextlib.contextmanager
def checking(backend: Backend, kind: str, name: str) -> Iterator[None]:
    """Say of which operation the arguments are that turn out wrong inside, and make it an error on the other ranks."""
    try:
        yield
    except ArgumentError as error:
        error.operation = kind if name.startswith("#") else f"{kind} {name!r}"
        error.where = backend.topology.where
        backend.refuse(kind, name, str(error))
        raise


def native_array(array: npt.ArrayLike, least_dimensions: int = 0) -> Array:
    """The values as an aligned array in native byte order, the user's own memory where possible."""
    given = np.asarray(array)
    if given.dtype.kind not in dtypes.NUMBERS and not dtypes.is_supported(given.dtype):
        raise ArgumentError(
            "arrays are of numbers or bool",
            received=f"dtype={given.dtype}, shape={given.shape}",
            fix="Convert the array to a number dtype; Python objects go through broadcast_object or allgather_object",
        )
    if given.ndim < least_dimensions:
        raise ArgumentError(
            "the array has rows: at least one dimension",
            received=f"shape={given.shape}",
            fix="Pass array.reshape(1) for a single value",
        )
    return given if given.dtype.isnative and given.flags.aligned else given.astype(given.dtype.newbyteorder("="))


def check_op(op: ReduceOp, dtype: np.dtype[Any], size: int, of_elements: bool = False) -> None:
    """Refuse what is no reduce operation, has no meaning for ``dtype``, or is not one ``of_elements`` if wanted."""
    if not isinstance(op, ReduceOp):
        raise ArgumentError(
            "op is one of Average, Sum, Min, Max, Product, Adasum",
            received=f"op={op!r}",
            fix="Use collective.Sum or another",
        )
    if of_elements and op is Adasum:
        raise ArgumentError("Adasum is defined for all-reduce", received="op=Adasum", fix="Use Sum or Average")
    reduction_for(op, dtype, size)


def check_root(root_rank: int, topology: Topology) -> int:
    """The number that a root has among the ranks that take part; refuses a rank that is none of them."""
    members = range(topology.size) if topology.members is None else topology.members
    if root_rank not in members:
        raise ArgumentError(
            f"the root is a rank from 0 to {topology.size - 1}"
            if topology.members is None
            else f"the root is one of the ranks {', '.join(map(str, members))}",
            received=f"root_rank={root_rank}",
            fix="Pass the rank whose values all ranks shall have",
        )
    return members.index(root_rank)


def targets(sources: Sequence[Array], out: Sequence[Array] | None) -> Sequence[Array | None]:
    """Where each result goes; None: into a new array."""
    if out is None:
        return [None] * len(sources)
    if len(out) != len(sources):
        raise ArgumentError("out has an array for each input", received=f"inputs={len(sources)}, out={len(out)}")
    return out


def work_array(source: Array, target: Array | None) -> Array:
    """A contiguous array with the values of ``source``: one to read without a target, else one to overwrite."""
    return np.asarray(source, order="C") if target is None else writable(source, target)


def writable(source: Array, target: Array | None) -> Array:
    """Like ``work_array``, but for an operation to overwrite: the target, if it can be."""
    if target is None:
        return np.array(source, order="C", copy=True)
    if target is not source or not target.flags.writeable:
        _check_target(source, target)
    # A matrix stays one, whatever its shape is to be.
    if not target.flags.carray or not target.dtype.isnative or isinstance(target, np.matrix):
        return np.array(source, order="C", copy=True)
    if target is not source:
        target[...] = source
    return target


def _check_target(source: Array, target: Array) -> None:
    fits = isinstance(target, np.ndarray) and target.shape == source.shape and target.flags.writeable
    if not fits or target.dtype.newbyteorder("=") != source.dtype:
        raise ArgumentError(
            f"out is a writeable array of the input's shape and dtype: {source.dtype}{list(source.shape)}",
            received=f"out={type(target).__name__} {getattr(target, 'dtype', '')}{list(np.shape(target))}"
            + (" (read-only)" if isinstance(target, np.ndarray) and not target.flags.writeable else ""),
        )


def deliver(result: Array, target: Array | None) -> Array:
    """The result where the caller wants it."""
    if target is None or target is result:
        return result
    target[...] = result
    return target


def checked_splits(splits: Sequence[int] | Array | None, rows: int, size: int) -> list[int]:
    """How many rows go to each rank: what the caller says, or the same number to all."""
    if splits is None:
        if rows % size:
            raise ArgumentError(
                f"without splits the rows divide evenly among {size} ranks",
                received=f"rows={rows}",
                fix="Pass splits, the number of rows for each rank",
            )
        return [rows // size] * size
    counts = np.asarray(splits)
    if counts.shape != (size,) or counts.dtype.kind not in "iu" or (counts < 0).any() or counts.sum() != rows:
        raise ArgumentError(
            f"splits are {size} whole numbers, none negative, that add up to the {rows} rows",
            received=f"splits={np.array2string(counts, separator=', ', threshold=16)}",
        )
    return [int(count) for count in counts]
