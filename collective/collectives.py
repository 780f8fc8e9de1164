"""The collective operations on NumPy arrays.

Every operation is called by all ranks: in the same order, or with a name, by which the ranks' calls are matched in
whatever order and thread they come. Results are equal on all ranks to the bit.
Arrays may have any shape, no elements, any memory layout and byte order, and be read-only; dtypes are NumPy's numbers,
bool and bfloat16 (of ``ml_dtypes``).

In the costs below N is the number of ranks and "bytes" the size of one rank's array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from collective import arguments, world
from collective.arguments import Array
from collective.backends.base import Operation
from collective.compression import Compression
from collective.errors import ArgumentError, CollectiveError
from collective.reduce_ops import Average, ReduceOp

Result = TypeVar("Result")


class Handle(Generic[Result]):
    """An operation under way, as the ``..._async`` functions return it."""

    __slots__ = ("_deliver", "_operation")

    def __init__(self, operation: Operation, deliver: Callable[[Any], Result] | None = None) -> None:
        self._operation, self._deliver = operation, deliver

    def wait(self) -> Result:
        """Return the result of the operation once it is there; the arrays given belong to the caller again.

        Raises:
            MismatchError: on every rank, when names, shapes, dtypes or operations differ.
        """
        result = self._operation.wait()
        return self._deliver(result) if self._deliver else result

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""
        return self._operation.done()

    def _started(self) -> Handle[Result]:
        self._operation.start()
        return self


def wait_for_all(handles: Sequence[Handle[Result]]) -> list[Result]:
    """Wait for several operations, also when one fails, so that none is left under way; then return their results.

    Raises:
        CollectiveError: the first one's that failed.
    """
    results: list[Result] = []
    errors: list[CollectiveError] = []
    for handle in handles:
        try:
            results.append(handle.wait())
        except CollectiveError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


def allreduce(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Array | None = None,
    compression: Compression = Compression.none,
) -> Array:
    """Reduce arrays of one shape and dtype element by element over all ranks, for all ranks.

    Args:
        array: This rank's values.
        op: ``Average``, ``Sum``, ``Min``, ``Max`` or ``Product``. Integers wrap; the average of integers has no
            fraction; averages in half precision can't overflow.
        name: What matches the operation with the other ranks' calls; by default calls are matched in order.
        out: Where the result goes, of the array's shape and dtype; ``array`` itself: in place, without a copy.
        compression: How floats travel between hosts.

    Returns:
        The result, ``out`` if given.

    Raises:
        ArgumentError: when ``op`` has no meaning for the dtype, or ``out`` doesn't fit.
        MismatchError: on every rank, when shapes, dtypes, operations or names differ.

    Cost per rank:
        At best 2(N-1) messages and 2(N-1)/N x bytes (ring); see ``collective.algorithms`` for the others.
    """
    (result,) = _allreduce(array, op, name, out, compression).wait()
    return result if out is None or result is out else arguments.deliver(result, out)


def allreduce_async(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Array | None = None,
    compression: Compression = Compression.none,
) -> Handle[Array]:
    """Begin ``allreduce`` and return at once; called by all ranks, in any order if names are given.

    Neither ``array`` nor ``out`` may be touched before the handle's ``wait`` has returned the result.
    """
    operation = _allreduce(array, op, name, out, compression)
    return Handle(operation, lambda results: arguments.deliver(results[0], out))._started()


def grouped_allreduce(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    compression: Compression = Compression.none,
) -> list[Array]:
    """Reduce several arrays as one operation; small ones share messages. See ``allreduce``.

    Args:
        arrays: This rank's arrays, of any mixture of shapes and dtypes, in the same order on all ranks.
        op: As in ``allreduce``.
        name: As in ``allreduce``.
        out: Where each result goes.
        compression: As in ``allreduce``.

    Returns:
        The results, in the order of ``arrays``.
    """
    return _grouped_allreduce(arrays, op, name, out, compression).wait()


def grouped_allreduce_async(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    compression: Compression = Compression.none,
) -> Handle[list[Array]]:
    """Begin ``grouped_allreduce`` and return at once; see ``allreduce_async``."""
    return _grouped_allreduce(arrays, op, name, out, compression)._started()


def _allreduce(
    array: npt.ArrayLike, op: ReduceOp, name: str | None, out: Array | None, compression: Compression
) -> Operation:
    backend, name = world.begin("allreduce", name)
    try:
        source = arguments.native_array(array)
        arguments.check_op(op, source.dtype, backend.topology.size)
        work = arguments.work_array(source, out)
        wire = None if compression is Compression.none else compression.wire(source.dtype)
    except ArgumentError as error:
        arguments.refuse(backend, "allreduce", name, error)
        raise
    return backend.allreduce((work,), op, name, out is not None, wire)


def _grouped_allreduce(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp,
    name: str | None,
    out: Sequence[Array] | None,
    compression: Compression,
) -> Handle[list[Array]]:
    backend, name = world.begin("grouped_allreduce", name)
    try:
        sources = [arguments.native_array(array) for array in arrays]
        targets = arguments.targets(sources, out)
        for dtype in {source.dtype for source in sources}:
            arguments.check_op(op, dtype, backend.topology.size)
        work = [arguments.work_array(source, target) for source, target in zip(sources, targets, strict=True)]
        wires = {compression.wire(source.dtype) for source in sources} - {None}
    except ArgumentError as error:
        arguments.refuse(backend, "grouped_allreduce", name, error)
        raise
    operation = backend.allreduce(work, op, name, out is not None, next(iter(wires), None))
    return Handle(
        operation,
        lambda results: [arguments.deliver(result, target) for result, target in zip(results, targets, strict=True)],
    )


def empty(shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32, *, name: str | None = None) -> Array:
    """Make an array that ``allreduce(array, out=array)`` reduces without copying anything; called by all ranks.

    For arrays that are reduced again and again, such as a flat buffer of gradients. The array lives in memory that the
    ranks of a host share, at the cost of ``/dev/shm`` of its size on each rank, and behaves like any other array; its
    memory is given back with it. Views of it, and jobs on several hosts, are reduced as usual.

    Args:
        shape: Its shape, the same on all ranks.
        dtype: Its dtype, the same on all ranks.
        name: As in ``allreduce``.

    Returns:
        An array of undefined values.

    Raises:
        MismatchError: on every rank, when shapes or dtypes differ.

    Cost:
        A few messages of a few bytes. Where no memory can be shared, a warning, and an ordinary array is returned.
    """
    backend, name = world.begin("empty", name)
    try:
        like = arguments.native_array(np.empty(0, dtype))
        dimensions = (shape,) if isinstance(shape, int) else tuple(int(length) for length in shape)
    except ArgumentError as error:
        arguments.refuse(backend, "empty", name, error)
        raise
    return backend.empty(dimensions, like.dtype, name).wait()


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
    return _allgather(array, name).wait()


def allgather_async(array: npt.ArrayLike, *, name: str | None = None) -> Handle[Array]:
    """Begin ``allgather`` and return at once; see ``allreduce_async``."""
    return _allgather(array, name)._started()


def _allgather(array: npt.ArrayLike, name: str | None) -> Handle[Array]:
    backend, name = world.begin("allgather", name)
    try:
        source = np.ascontiguousarray(arguments.native_array(array, least_dimensions=1))
    except ArgumentError as error:
        arguments.refuse(backend, "allgather", name, error)
        raise
    return Handle(backend.allgather(source, name))


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
    return _broadcast(array, root_rank, name, out).wait()


def broadcast_async(
    array: npt.ArrayLike, root_rank: int, *, name: str | None = None, out: Array | None = None
) -> Handle[Array]:
    """Begin ``broadcast`` and return at once; see ``allreduce_async``."""
    return _broadcast(array, root_rank, name, out)._started()


def _broadcast(array: npt.ArrayLike, root_rank: int, name: str | None, out: Array | None) -> Handle[Array]:
    backend, name = world.begin("broadcast", name)
    try:
        arguments.check_root(root_rank, backend.topology.size)
        work = arguments.writable(arguments.native_array(array), out)
    except ArgumentError as error:
        arguments.refuse(backend, "broadcast", name, error)
        raise
    operation = backend.broadcast((work,), root_rank, name)
    return Handle(operation, lambda results: arguments.deliver(results[0], out))


def grouped_broadcast(
    arrays: Sequence[npt.ArrayLike],
    root_rank: int,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
) -> list[Array]:
    """Give all ranks several arrays of rank ``root_rank`` as one operation. See ``broadcast``."""
    backend, name = world.begin("grouped_broadcast", name)
    try:
        arguments.check_root(root_rank, backend.topology.size)
        sources = [arguments.native_array(array) for array in arrays]
        targets = arguments.targets(sources, out)
        work = [arguments.writable(source, target) for source, target in zip(sources, targets, strict=True)]
    except ArgumentError as error:
        arguments.refuse(backend, "grouped_broadcast", name, error)
        raise
    backend.broadcast(work, root_rank, name).wait()
    return [arguments.deliver(result, target) for result, target in zip(work, targets, strict=True)]


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
    return _reducescatter(array, op, name).wait()


def reducescatter_async(array: npt.ArrayLike, op: ReduceOp = Average, *, name: str | None = None) -> Handle[Array]:
    """Begin ``reducescatter`` and return at once; see ``allreduce_async``."""
    return _reducescatter(array, op, name)._started()


def _reducescatter(array: npt.ArrayLike, op: ReduceOp, name: str | None) -> Handle[Array]:
    backend, name = world.begin("reducescatter", name)
    try:
        source = arguments.native_array(array, least_dimensions=1)
        arguments.check_op(op, source.dtype, backend.topology.size)
        work = np.array(source, order="C", copy=True)
    except ArgumentError as error:
        arguments.refuse(backend, "reducescatter", name, error)
        raise
    return Handle(backend.reducescatter(work, op, name))


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
    return _alltoall(array, splits, name).wait()


def alltoall_async(
    array: npt.ArrayLike, splits: Sequence[int] | Array | None = None, *, name: str | None = None
) -> Handle[Array | tuple[Array, Array]]:
    """Begin ``alltoall`` and return at once; see ``allreduce_async``."""
    return _alltoall(array, splits, name)._started()


def _alltoall(
    array: npt.ArrayLike, splits: Sequence[int] | Array | None, name: str | None
) -> Handle[Array | tuple[Array, Array]]:
    backend, name = world.begin("alltoall", name)
    try:
        source = np.ascontiguousarray(arguments.native_array(array, least_dimensions=1))
        rows = arguments.checked_splits(splits, len(source), backend.topology.size)
    except ArgumentError as error:
        arguments.refuse(backend, "alltoall", name, error)
        raise
    operation = backend.alltoall(source, rows, name)
    return Handle(operation, lambda result: result if splits is not None else result[0])


def barrier(*, name: str | None = None) -> None:
    """Return once every rank has called it. Cost per rank: one all-reduce of 16 bytes."""
    backend, name = world.begin("barrier", name)
    backend.barrier(name).wait()
