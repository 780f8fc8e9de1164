"""The collective operations on NumPy arrays.

Every operation is called by all ranks, in the same order. Results are equal on all ranks to the bit.
Arrays may have any shape, no elements, any memory layout and byte order, and be read-only; dtypes are NumPy's numbers,
bool and bfloat16 (of ``ml_dtypes``).

In the costs below N is the number of ranks and "bytes" the size of one rank's array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collective import dtypes, world
from collective.backends.base import Backend
from collective.errors import ArgumentError
from collective.reduce_ops import Average, ReduceOp
from collective.reduction import reduction_for

Array = np.ndarray[Any, Any]


def allreduce(
    array: npt.ArrayLike, op: ReduceOp = Average, *, name: str | None = None, out: Array | None = None
) -> Array:
    """Reduce arrays of one shape and dtype element by element over all ranks, for all ranks.

    Args:
        array: This rank's values.
        op: ``Average``, ``Sum``, ``Min``, ``Max`` or ``Product``. Integers wrap; the average of integers has no
            fraction; averages in half precision can't overflow.
        name: What errors call the operation; the same on all ranks.
        out: Where the result goes, of the array's shape and dtype; ``array`` itself: in place, without a copy.

    Returns:
        The result, ``out`` if given.

    Raises:
        ArgumentError: when ``op`` has no meaning for the dtype, or ``out`` doesn't fit.
        MismatchError: on every rank, when shapes, dtypes, operations or names differ.

    Cost per rank:
        At best 2(N-1) messages and 2(N-1)/N x bytes (ring); see ``collective.algorithms`` for the others.
    """
    return grouped_allreduce([array], op, name=name, out=None if out is None else [out], _kind="allreduce")[0]


def grouped_allreduce(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    _kind: str = "grouped_allreduce",
) -> list[Array]:
    """Reduce several arrays as one operation; small ones share messages. See ``allreduce``.

    Args:
        arrays: This rank's arrays, of any mixture of shapes and dtypes, in the same order on all ranks.
        op: As in ``allreduce``.
        name: As in ``allreduce``.
        out: Where each result goes.

    Returns:
        The results, in the order of ``arrays``.
    """
    with _operation(_kind, name) as (backend, label):
        sources = [_native_array(array) for array in arrays]
        targets = _targets(sources, out)
        for source in sources:
            _check_op(op, source.dtype, backend.topology.size)
        work = [_work_array(source, target) for source, target in zip(sources, targets, strict=True)]
    backend.allreduce(work, op, label)
    return [_deliver(result, target) for result, target in zip(work, targets, strict=True)]


def allgather(array: npt.ArrayLike, *, name: str | None = None) -> Array:
    """Concatenate the ranks' arrays along axis 0, in rank order, for all ranks.

    Args:
        array: This rank's rows, at least one-dimensional; ranks may differ in their number.
        name: As in ``allreduce``.

    Returns:
        A new array with the rows of all ranks.

    Raises:
        ArgumentError: when the array has no axis 0.
        MismatchError: on every rank, when dtypes or row shapes differ.

    Cost per rank:
        N-1 messages (ring), (N-1) x bytes, beside 8 bytes a rank for the numbers of rows.
    """
    with _operation("allgather", name) as (backend, label):
        source = np.ascontiguousarray(_native_array(array, least_dimensions=1))
    return backend.allgather(source, label)


def broadcast(array: npt.ArrayLike, root_rank: int, *, name: str | None = None, out: Array | None = None) -> Array:
    """Give all ranks the array of rank ``root_rank``.

    Args:
        array: The values; on other ranks than the root only its shape and dtype matter.
        root_rank: The rank whose values all get.
        name: As in ``allreduce``.
        out: Where the result goes; ``array`` itself: in place.

    Returns:
        The root's values, in ``out`` if given.

    Raises:
        ArgumentError: when ``root_rank`` is no rank of the job.
        MismatchError: on every rank, when shapes, dtypes or roots differ.

    Cost:
        Each rank but the root receives the bytes once; the root sends log2 N x bytes (binomial tree).
    """
    return grouped_broadcast([array], root_rank, name=name, out=None if out is None else [out], _kind="broadcast")[0]


def grouped_broadcast(
    arrays: Sequence[npt.ArrayLike],
    root_rank: int,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    _kind: str = "grouped_broadcast",
) -> list[Array]:
    """Give all ranks several arrays of rank ``root_rank`` as one operation. See ``broadcast``."""
    with _operation(_kind, name) as (backend, label):
        if not 0 <= root_rank < backend.topology.size:
            raise ArgumentError(
                f"the root is a rank from 0 to {backend.topology.size - 1}",
                received=f"root_rank={root_rank}",
                fix="Pass the rank whose values all ranks shall have",
            )
        sources = [_native_array(array) for array in arrays]
        targets = _targets(sources, out)
        work = [_work_array(source, target) for source, target in zip(sources, targets, strict=True)]
    backend.broadcast(work, root_rank, label)
    return [_deliver(result, target) for result, target in zip(work, targets, strict=True)]


def reducescatter(array: npt.ArrayLike, op: ReduceOp = Average, *, name: str | None = None) -> Array:
    """Reduce over all ranks and keep this rank's part of axis 0.

    Args:
        array: This rank's values, at least one-dimensional, of one shape on all ranks.
        op: As in ``allreduce``.
        name: As in ``allreduce``.

    Returns:
        This rank's rows of the result: ``len(array) // N`` of them, one more on the first ``len(array) % N`` ranks.

    Raises:
        ArgumentError: when the array has no axis 0 or ``op`` has no meaning for the dtype.
        MismatchError: on every rank, when shapes, dtypes or operations differ.

    Cost per rank:
        N-1 messages, (N-1)/N x bytes (ring).
    """
    with _operation("reducescatter", name) as (backend, label):
        source = _native_array(array, least_dimensions=1)
        _check_op(op, source.dtype, backend.topology.size)
        work = np.array(source, order="C", copy=True)
    return backend.reducescatter(work, op, label)


def alltoall(
    array: npt.ArrayLike, splits: Sequence[int] | Array | None = None, *, name: str | None = None
) -> Array | tuple[Array, Array]:
    """Send rows of axis 0 to every rank and receive rows from every rank.

    Args:
        array: This rank's rows, those for rank 0 first.
        splits: How many rows go to each rank, int[N]; None: the same number to all.
        name: As in ``allreduce``.

    Returns:
        The rows received, those of rank 0 first; with ``splits`` also how many came from each rank, int64[N].

    Raises:
        ArgumentError: when ``splits`` aren't N numbers that add up to the rows, or, without, N doesn't divide them.
        MismatchError: on every rank, when dtypes or row shapes differ.

    Cost per rank:
        2(N-1) messages, (N-1)/N x bytes (pairwise exchange).
    """
    with _operation("alltoall", name) as (backend, label):
        source = np.ascontiguousarray(_native_array(array, least_dimensions=1))
        rows = _checked_splits(splits, len(source), backend.topology.size)
    received, counts = backend.alltoall(source, rows, label)
    return received if splits is None else (received, counts)


def barrier(*, name: str | None = None) -> None:
    """Return once every rank has called it. Cost per rank: one all-reduce of 16 bytes."""
    with _operation("barrier", name) as (backend, label):
        pass
    backend.barrier(label)


@contextlib.contextmanager
def _operation(kind: str, name: str | None) -> Iterator[tuple[Backend, str]]:
    """Check the arguments of an operation; what is wrong on one rank is an error on the others as well."""
    backend = world.backend(kind)
    automatic = world.next_name(kind)
    try:
        yield backend, name or automatic
    except ArgumentError as error:
        error.operation = f"{kind} {name!r}" if name else kind
        error.where = backend.topology.where
        backend.refuse(kind, str(error))
        raise


def _native_array(array: npt.ArrayLike, least_dimensions: int = 0) -> Array:
    """The values as an array in native byte order, the user's own memory where possible."""
    given = np.asarray(array)
    if not dtypes.is_supported(given.dtype):
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
    return given if given.dtype.isnative else given.astype(given.dtype.newbyteorder("="))


def _check_op(op: ReduceOp, dtype: np.dtype[Any], size: int) -> None:
    if not isinstance(op, ReduceOp):
        raise ArgumentError(
            "op is one of Average, Sum, Min, Max, Product", received=f"op={op!r}", fix="Use collective.Sum or another"
        )
    reduction_for(op, dtype, size)


def _targets(sources: Sequence[Array], out: Sequence[Array] | None) -> list[Array | None]:
    if out is None:
        return [None] * len(sources)
    if len(out) != len(sources):
        raise ArgumentError("out has an array for each input", received=f"inputs={len(sources)}, out={len(out)}")
    for source, target in zip(sources, out, strict=True):
        fits = isinstance(target, np.ndarray) and target.shape == source.shape and target.flags.writeable
        if not fits or target.dtype.newbyteorder("=") != source.dtype:
            raise ArgumentError(
                f"out is a writeable array of the input's shape and dtype: {source.dtype}{list(source.shape)}",
                received=f"out={type(target).__name__} {getattr(target, 'dtype', '')}{list(np.shape(target))}"
                + (" (read-only)" if isinstance(target, np.ndarray) and not target.flags.writeable else ""),
            )
    return list(out)


def _work_array(source: Array, target: Array | None) -> Array:
    """A contiguous array with the values of ``source`` that an operation may overwrite: the target, if it can be."""
    if target is None or not target.flags.c_contiguous or not target.dtype.isnative:
        return np.array(source, order="C", copy=True)
    if target is not source:
        target[...] = source
    return target


def _deliver(result: Array, target: Array | None) -> Array:
    if target is None or target is result:
        return result
    target[...] = result
    return target


def _checked_splits(splits: Sequence[int] | Array | None, rows: int, size: int) -> list[int]:
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
