"""The collective operations on NumPy arrays.

Every operation is called by all ranks: in the same order, or with a name, by which the ranks' calls are matched in
whatever order and thread they come. Results are equal on all ranks to the bit.
Arrays may have any shape, no elements, any memory layout and byte order, and be read-only; dtypes are NumPy's numbers,
bool and bfloat16 (of ``ml_dtypes``).

In the costs below N is the number of ranks that take part and "bytes" the size of one rank's array.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from collective import arguments, world
from collective.arguments import Array
from collective.backends.base import Operation
from collective.compression import Compression
from collective.handles import Handle
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, Max, ReduceOp
from collective.scaling import factors_note, scale


def allreduce(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Array | None = None,
    compression: Compression = Compression.none,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> Array:
    """Reduce arrays of one shape and dtype element by element over all ranks, for all ranks.

    Args:
        array: This rank's values.
        op: ``Average``, ``Sum``, ``Min``, ``Max``, ``Product`` or ``Adasum``. Integers wrap; the average of integers
            has no fraction; averages in half precision can't overflow. Adasum takes the array as one vector.
        name: What matches the operation with the other ranks' calls; by default calls are matched in order.
        out: Where the result goes, of the array's shape and dtype; ``array`` itself: in place, without a copy. All
            ranks give one, or none does.
        compression: How floats travel between hosts.
        prescale_factor: What the values are multiplied by before they are reduced, the same on all ranks.
        postscale_factor: What the result is multiplied by.
        process_set: The ranks that take part; None: all.

    Returns:
        The result, ``out`` if given.

    Raises:
        ArgumentError: when ``op`` has no meaning for the dtype, or ``out`` doesn't fit.
        MismatchError: on every rank, when shapes, dtypes, operations, factors or names differ.

    Cost per rank:
        At best 2(N-1) messages and 2(N-1)/N x bytes (ring); see ``collective.algorithms`` for the others. Adasum:
        log2 N messages of all bytes.
    """
    (result,) = _allreduce(array, op, name, out, compression, prescale_factor, postscale_factor, process_set).wait()
    if postscale_factor != 1.0:
        scale(result, postscale_factor)
    return result if out is None or result is out else arguments.deliver(result, out)


def allreduce_async(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Array | None = None,
    compression: Compression = Compression.none,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> Handle[Array]:
    """Begin ``allreduce`` and return at once; called by all ranks, in any order if names are given.

    Neither ``array`` nor ``out`` may be touched before the handle's ``wait`` has returned the result.
    """
    operation = _allreduce(array, op, name, out, compression, prescale_factor, postscale_factor, process_set)

    def deliver(results: Sequence[Array]) -> Array:
        scale(results[0], postscale_factor)
        return arguments.deliver(results[0], out)

    return Handle(operation, deliver).started()


def _allreduce(
    array: npt.ArrayLike,
    op: ReduceOp,
    name: str | None,
    out: Array | None,
    compression: Compression,
    before: float,
    after: float,
    process_set: ProcessSet | None,
) -> Operation:
    backend, name = world.begin("allreduce", name, process_set)
    is_plain = before == 1.0 == after and compression is Compression.none and type(op) is ReduceOp
    if is_plain and type(array) is np.ndarray and array.flags.carray and (out is None or out is array):
        again = backend.allreduce_again((array,), op, name, out is array)
        if again is not None:
            return again
    with arguments.checking(backend, "allreduce", name):
        source = arguments.native_array(array)
        arguments.check_op(op, source.dtype, backend.topology.size)
        work = arguments.work_array(source, out)
        wire = compression.wire(source.dtype)
    if before == 1.0 == after:
        return backend.allreduce((work,), op, name, out is not None, wire)
    if out is None:
        work = work.copy()
    scale(work, before)
    return backend.allreduce((work,), op, name, True, wire, factors_note(before, after))


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
    with arguments.checking(backend, "empty", name):
        like = arguments.native_array(np.empty(0, dtype))
        dimensions = (shape,) if isinstance(shape, int) else tuple(int(length) for length in shape)
    return backend.empty(dimensions, like.dtype, name).wait()


def allgather(array: npt.ArrayLike, *, name: str | None = None, process_set: ProcessSet | None = None) -> Array:
    """Concatenate the ranks' arrays along axis 0, in rank order, for all ranks.

    Args:
        array: This rank's rows, at least one-dimensional; ranks may differ in their number.
        name: As in ``allreduce``.
        process_set: As in ``allreduce``.

    Returns:
        A new array with the rows of all ranks.

    Raises:
        ArgumentError: when the array has no axis 0.
        MismatchError: on every rank, when dtypes or row shapes differ.

    Cost per rank:
        N-1 messages (ring), (N-1) x bytes, beside 8 bytes a rank for the numbers of rows.
    """
    return _allgather(array, name, process_set).wait()


def allgather_async(
    array: npt.ArrayLike, *, name: str | None = None, process_set: ProcessSet | None = None
) -> Handle[Array]:
    """Begin ``allgather`` and return at once; see ``allreduce_async``."""
    return _allgather(array, name, process_set).started()


def _allgather(array: npt.ArrayLike, name: str | None, process_set: ProcessSet | None) -> Handle[Array]:
    backend, name = world.begin("allgather", name, process_set)
    with arguments.checking(backend, "allgather", name):
        source = np.ascontiguousarray(arguments.native_array(array, least_dimensions=1))
    return Handle(backend.allgather(source, name))


def broadcast(
    array: npt.ArrayLike,
    root_rank: int,
    *,
    name: str | None = None,
    out: Array | None = None,
    process_set: ProcessSet | None = None,
) -> Array:
    """Give all ranks the array of rank ``root_rank``.

    Args:
        array: The values; on other ranks than the root only its shape and dtype matter.
        root_rank: The rank whose values all get: its number in the job, also in a process set.
        name: As in ``allreduce``.
        out: Where the result goes; ``array`` itself: in place.
        process_set: As in ``allreduce``.

    Returns:
        The root's values, in ``out`` if given.

    Raises:
        ArgumentError: when ``root_rank`` is no rank of the job.
        MismatchError: on every rank, when shapes, dtypes or roots differ.

    Cost:
        Each rank but the root receives the bytes once; the root sends log2 N x bytes (binomial tree).
    """
    return _broadcast(array, root_rank, name, out, process_set).wait()


def broadcast_async(
    array: npt.ArrayLike,
    root_rank: int,
    *,
    name: str | None = None,
    out: Array | None = None,
    process_set: ProcessSet | None = None,
) -> Handle[Array]:
    """Begin ``broadcast`` and return at once; see ``allreduce_async``."""
    return _broadcast(array, root_rank, name, out, process_set).started()


def _broadcast(
    array: npt.ArrayLike, root_rank: int, name: str | None, out: Array | None, process_set: ProcessSet | None
) -> Handle[Array]:
    backend, name = world.begin("broadcast", name, process_set)
    with arguments.checking(backend, "broadcast", name):
        root = arguments.check_root(root_rank, backend.topology)
        work = arguments.writable(arguments.native_array(array), out)
    operation = backend.broadcast((work,), root, name)
    return Handle(operation, lambda results: arguments.deliver(results[0], out))


def reducescatter(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> Array:
    """Reduce over all ranks and keep this rank's part of axis 0.

    Args:
        array: This rank's values, at least one-dimensional, of one shape on all ranks.
        op: As in ``allreduce``, but for Adasum.
        name: As in ``allreduce``.
        prescale_factor: As in ``allreduce``.
        postscale_factor: As in ``allreduce``.
        process_set: As in ``allreduce``.

    Returns:
        This rank's rows of the result: ``len(array) // N`` of them, one more on the first ``len(array) % N`` ranks.

    Raises:
        ArgumentError: when the array has no axis 0 or ``op`` has no meaning for the dtype.
        MismatchError: on every rank, when shapes, dtypes, operations or factors differ.

    Cost per rank:
        N-1 messages, (N-1)/N x bytes (ring).
    """
    return _reducescatter(array, op, name, prescale_factor, postscale_factor, process_set).wait()


def reducescatter_async(
    array: npt.ArrayLike,
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> Handle[Array]:
    """Begin ``reducescatter`` and return at once; see ``allreduce_async``."""
    return _reducescatter(array, op, name, prescale_factor, postscale_factor, process_set).started()


def _reducescatter(
    array: npt.ArrayLike,
    op: ReduceOp,
    name: str | None,
    before: float,
    after: float,
    process_set: ProcessSet | None,
) -> Handle[Array]:
    backend, name = world.begin("reducescatter", name, process_set)
    with arguments.checking(backend, "reducescatter", name):
        source = arguments.native_array(array, least_dimensions=1)
        arguments.check_op(op, source.dtype, backend.topology.size, of_elements=True)
        work = np.array(source, order="C", copy=True)
    scale(work, before)
    operation = backend.reducescatter(work, op, name, factors_note(before, after))

    def deliver(result: Array) -> Array:
        scale(result, after)
        return result

    return Handle(operation, deliver)


def alltoall(
    array: npt.ArrayLike,
    splits: Sequence[int] | Array | None = None,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> Array | tuple[Array, Array]:
    """Send rows of axis 0 to every rank and receive rows from every rank.

    Args:
        array: This rank's rows, those for rank 0 first.
        splits: How many rows go to each rank, int[N]; None: the same number to all.
        name: As in ``allreduce``.
        process_set: As in ``allreduce``.

    Returns:
        The rows received, those of rank 0 first; with ``splits`` also how many came from each rank, int64[N].

    Raises:
        ArgumentError: when ``splits`` aren't N numbers that add up to the rows, or, without, N doesn't divide them.
        MismatchError: on every rank, when dtypes or row shapes differ.

    Cost per rank:
        2(N-1) messages, (N-1)/N x bytes (pairwise exchange).
    """
    return _alltoall(array, splits, name, process_set).wait()


def alltoall_async(
    array: npt.ArrayLike,
    splits: Sequence[int] | Array | None = None,
    *,
    name: str | None = None,
    process_set: ProcessSet | None = None,
) -> Handle[Array | tuple[Array, Array]]:
    """Begin ``alltoall`` and return at once; see ``allreduce_async``."""
    return _alltoall(array, splits, name, process_set).started()


def _alltoall(
    array: npt.ArrayLike, splits: Sequence[int] | Array | None, name: str | None, process_set: ProcessSet | None
) -> Handle[Array | tuple[Array, Array]]:
    backend, name = world.begin("alltoall", name, process_set)
    with arguments.checking(backend, "alltoall", name):
        source = np.ascontiguousarray(arguments.native_array(array, least_dimensions=1))
        rows = arguments.checked_splits(splits, len(source), backend.topology.size)
    operation = backend.alltoall(source, rows, name)
    return Handle(operation, lambda result: result if splits is not None else result[0])


def barrier(*, name: str | None = None, process_set: ProcessSet | None = None) -> None:
    """Return once every rank has called it. Cost per rank: one all-reduce of 16 bytes."""
    backend, name = world.begin("barrier", name, process_set)
    backend.barrier(name).wait()


def join() -> int:
    """Let the other ranks go on without this one, which is out of data; return once all ranks have called it.

    Meanwhile this rank takes part in what the others call, with values that change nothing: zeros in a sum or an
    average (which still divides by all ranks), no rows in an all-gather. Reduce-scatters and all-to-alls, and
    broadcasts from a rank that has joined, are errors on the ranks that call them.

    Returns:
        The rank that joined last; of several at once, the highest.

    Cost:
        Each operation of the others costs an all-gather of its description more.
    """
    backend, name = world.begin("join")
    last = backend.join(name).wait()
    # Operations without a name are matched by number, and ranks have come to different ones.
    highest = allreduce(np.int64(next(global_process_set.numbers)), Max, name="join.number")
    global_process_set.numbers = itertools.count(int(highest) + 2)
    return last
