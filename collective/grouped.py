"""Several NumPy arrays in one call: as one operation where they can travel together, else started at once.

See ``collectives`` for what the operations do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from collective import arguments, world
from collective.arguments import Array
from collective.collectives import allgather_async, reducescatter_async
from collective.compression import Compression
from collective.handles import Handle, wait_for_all
from collective.process_sets import ProcessSet
from collective.reduce_ops import Average, ReduceOp
from collective.scaling import factors_note, scale


def grouped_allreduce(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    compression: Compression = Compression.none,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> list[Array]:
    """Reduce several arrays as one operation; small ones share messages. See ``allreduce``.

    Args:
        arrays: This rank's arrays, of any mixture of shapes and dtypes, in the same order on all ranks.
        op: As in ``allreduce``.
        name: As in ``allreduce``.
        out: Where each result goes.
        compression: As in ``allreduce``.
        prescale_factor: As in ``allreduce``.
        postscale_factor: As in ``allreduce``.
        process_set: As in ``allreduce``.

    Returns:
        The results, in the order of ``arrays``.
    """
    return _grouped_allreduce(arrays, op, name, out, compression, prescale_factor, postscale_factor, process_set).wait()


def grouped_allreduce_async(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    compression: Compression = Compression.none,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> Handle[list[Array]]:
    """Begin ``grouped_allreduce`` and return at once; see ``allreduce_async``."""
    return _grouped_allreduce(
        arrays, op, name, out, compression, prescale_factor, postscale_factor, process_set
    ).started()


def _grouped_allreduce(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp,
    name: str | None,
    out: Sequence[Array] | None,
    compression: Compression,
    before: float,
    after: float,
    process_set: ProcessSet | None,
) -> Handle[list[Array]]:
    backend, name = world.begin("grouped_allreduce", name, process_set)
    is_plain = before == 1.0 == after and compression is Compression.none and type(op) is ReduceOp
    if is_plain and out is None:
        ready = [array for array in arrays if _is_ready(array)]
        if len(ready) == len(arrays) and (again := backend.allreduce_again(ready, op, name, False)):
            return Handle(again, list)
    with arguments.checking(backend, "grouped_allreduce", name):
        sources = [arguments.native_array(array) for array in arrays]
        targets = arguments.targets(sources, out)
        for dtype in {source.dtype for source in sources}:
            arguments.check_op(op, dtype, backend.topology.size)
        work = [arguments.work_array(source, target) for source, target in zip(sources, targets, strict=True)]
        wires = {compression.wire(source.dtype) for source in sources} - {None}
    in_place = out is not None
    if before != 1.0:
        if not in_place:
            work, in_place = [array.copy() for array in work], True
        for array in work:
            scale(array, before)
    note = factors_note(before, after)
    operation = backend.allreduce(work, op, name, in_place, next(iter(wires), None), note)

    def deliver(results: Sequence[Array]) -> list[Array]:
        for result in results:
            scale(result, after)
        return [arguments.deliver(result, target) for result, target in zip(results, targets, strict=True)]

    return Handle(operation, deliver)


def _is_ready(array: npt.ArrayLike) -> TypeGuard[Array]:
    """Whether an operation can read it as it is, if it could read one of its dtype and shape before."""
    return type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned


def grouped_broadcast(
    arrays: Sequence[npt.ArrayLike],
    root_rank: int,
    *,
    name: str | None = None,
    out: Sequence[Array] | None = None,
    process_set: ProcessSet | None = None,
) -> list[Array]:
    """Give all ranks several arrays of rank ``root_rank`` as one operation. See ``broadcast``."""
    backend, name = world.begin("grouped_broadcast", name, process_set)
    with arguments.checking(backend, "grouped_broadcast", name):
        root = arguments.check_root(root_rank, backend.topology)
        sources = [arguments.native_array(array) for array in arrays]
        targets = arguments.targets(sources, out)
        work = [arguments.writable(source, target) for source, target in zip(sources, targets, strict=True)]
    backend.broadcast(work, root, name).wait()
    return [arguments.deliver(result, target) for result, target in zip(work, targets, strict=True)]


def grouped_allgather(
    arrays: Sequence[npt.ArrayLike], *, name: str | None = None, process_set: ProcessSet | None = None
) -> list[Array]:
    """Concatenate each of several arrays over all ranks; all are under way at once. See ``allgather``."""
    sources, names = _members("grouped_allgather", arrays, name, process_set)
    return wait_for_all(
        [
            allgather_async(source, name=each, process_set=process_set)
            for source, each in zip(sources, names, strict=True)
        ]
    )


def grouped_reducescatter(
    arrays: Sequence[npt.ArrayLike],
    op: ReduceOp = Average,
    *,
    name: str | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet | None = None,
) -> list[Array]:
    """Reduce each of several arrays and keep this rank's rows; all are under way at once. See ``reducescatter``."""
    sources, names = _members("grouped_reducescatter", arrays, name, process_set, op)
    return wait_for_all(
        [
            reducescatter_async(
                source,
                op,
                name=each,
                prescale_factor=prescale_factor,
                postscale_factor=postscale_factor,
                process_set=process_set,
            )
            for source, each in zip(sources, names, strict=True)
        ]
    )


def _members(
    kind: str,
    arrays: Sequence[npt.ArrayLike],
    name: str | None,
    process_set: ProcessSet | None,
    op: ReduceOp | None = None,
) -> tuple[list[Array], list[str]]:
    """The arrays, checked before the first is under way: all or none; and a name for each."""
    backend, name = world.begin(kind, name, process_set)
    with arguments.checking(backend, kind, name):
        sources = [np.ascontiguousarray(arguments.native_array(array, least_dimensions=1)) for array in arrays]
        if op is not None:
            for source in sources:
                arguments.check_op(op, source.dtype, backend.topology.size, of_elements=True)
    return sources, [f"{name}.{number}" for number in range(len(sources))]
