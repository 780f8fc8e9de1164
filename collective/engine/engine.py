"""Run collective operations: agree that all ranks mean the same one, join small arrays, call the algorithm."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

import numpy as np

from collective.algorithms import choice, pairwise, resident
from collective.algorithms.segments import even_bounds
from collective.engine.fusion import buckets, pack, unpack
from collective.engine.matching import Call, agree, gather_counts
from collective.engine.residents import Residents
from collective.errors import MismatchError
from collective.reduce_ops import ReduceOp
from collective.reduction import Reduction, reduction_for
from collective.settings import Settings
from collective.transport.base import Transport
from collective.transport.patience import Patience


class Engine:
    """The collective operations of one group of ranks, one at a time, in the same order on all ranks.

    Arrays are C-contiguous and of a supported dtype; the front ends have seen to that.

    Args:
        transport: The messages between the ranks of the group.
        settings: Algorithm, segment and bucket sizes.
        patience: How the transport waits; it is told the name of the operation.
        small_bytes: Size up to which arrays are reduced by the algorithm for small ones.
    """

    def __init__(self, transport: Transport, settings: Settings, patience: Patience, small_bytes: int = 0) -> None:
        self._transport, self._settings, self._patience = transport, settings, patience
        self._residents = Residents(transport, patience)
        if settings.algorithm:
            self._all_reduce = choice.by_name(settings.algorithm, transport)
        else:
            self._all_reduce = choice.by_size(small_bytes)
        # Two threads of one process take turns; that every rank sees the same order, `agree` checks.
        self._turn = threading.Lock()

    def allreduce(self, arrays: Sequence[np.ndarray], op: ReduceOp, name: str) -> None:
        """Reduce each array in place."""
        with self._turn_of(Call("allreduce", name, _shapes(arrays), op)):
            for bucket in buckets(arrays, self._settings.fusion_bytes):
                reduction = reduction_for(op, bucket[0].dtype, self._transport.size)
                if len(bucket) == 1:
                    self._reduce_alone(bucket[0], reduction)
                else:
                    self._reduce_together(bucket, reduction)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        """A new array, in memory that the ranks share if they can."""
        with self._turn_of(Call("empty", name, ((dtype, shape),))):
            return self._residents.empty(shape, dtype)

    def _reduce_alone(self, array: np.ndarray, reduction: Reduction) -> None:
        memory = self._residents.memory_of(array)
        if memory is not None:
            resident.all_reduce(memory, array.size, reduction)
        else:
            flat = array.reshape(-1)
            reduction.prepare(flat)
            self._all_reduce(self._transport, flat, reduction, self._settings.segment_bytes)

    def _reduce_together(self, bucket: Sequence[np.ndarray], reduction: Reduction) -> None:
        memory = None if self._settings.algorithm else self._residents.bucket(self._settings.fusion_bytes)
        elements = sum(array.size for array in bucket)
        if memory is not None:
            flat = resident.area(memory, memory.rank, reduction.dtype)[:elements]
            pack(bucket, flat)
            resident.all_reduce(memory, elements, reduction)
        else:
            flat = np.empty(elements, reduction.dtype)
            pack(bucket, flat)
            self._reduce_alone(flat, reduction)
        unpack(flat, bucket)

    def allgather(self, array: np.ndarray, name: str) -> np.ndarray:
        """Concatenate along axis 0; the first dimensions may differ."""
        row = array.shape[1:]
        with self._turn_of(Call("allgather", name, ((array.dtype, row),))):
            counts = gather_counts(self._transport, len(array))
            gathered = np.empty((int(counts.sum()), *row), array.dtype)
            rows = np.concatenate([[0], np.cumsum(counts)])
            rank = self._transport.rank
            gathered[rows[rank] : rows[rank + 1]] = array
            bounds = (rows * int(np.prod(row, dtype=np.int64))).tolist()
            choice.all_gather(self._transport, gathered.reshape(-1), bounds, self._settings.segment_bytes)
        return gathered

    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> None:
        """Overwrite each array with the root's."""
        with self._turn_of(Call("broadcast", name, _shapes(arrays), root)):
            for bucket in buckets(arrays, self._settings.fusion_bytes):
                alone = len(bucket) == 1
                flat = bucket[0].reshape(-1) if alone else np.empty(sum(a.size for a in bucket), bucket[0].dtype)
                if not alone:
                    pack(bucket, flat)
                choice.broadcast(self._transport, flat, root, self._settings.segment_bytes)
                if not alone:
                    unpack(flat, bucket)

    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str) -> np.ndarray:
        """Reduce and return this rank's rows; the array given is left with partial results."""
        transport = self._transport
        with self._turn_of(Call("reducescatter", name, _shapes([array]), op)):
            reduction = reduction_for(op, array.dtype, transport.size)
            reduction.prepare(array.reshape(-1))
            rows = even_bounds(len(array), transport.size)
            row_size = int(np.prod(array.shape[1:], dtype=np.int64))
            bounds = [row * row_size for row in rows]
            choice.reduce_scatter(transport, array.reshape(-1), bounds, reduction, self._settings.segment_bytes)
        return array[rows[transport.rank] : rows[transport.rank + 1]].copy()

    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Send ``splits[r]`` rows to each rank r."""
        row = array.shape[1:]
        size = self._transport.size
        with self._turn_of(Call("alltoall", name, ((array.dtype, row),))):
            sent = np.asarray(splits, np.int64)
            counts = np.empty(size, np.int64)
            pairwise.all_to_all(self._transport, _pieces(sent, [1] * size, 1), _pieces(counts, [1] * size, 1))
            received = np.empty((int(counts.sum()), *row), array.dtype)
            width = int(np.prod(row, dtype=np.int64))
            outgoing, incoming = _pieces(array, sent.tolist(), width), _pieces(received, counts.tolist(), width)
            pairwise.all_to_all(self._transport, outgoing, incoming)
        return received, counts

    def barrier(self, name: str) -> None:
        """Return once every rank has called it: to agree is to wait for all."""
        with self._turn_of(Call("barrier", name)):
            pass

    def shutdown(self) -> None:
        """Return once every rank has called it; what the others still wait for ends in an error instead."""
        with self._turn_of(Call("shutdown")):
            pass

    def refuse(self, operation: str, reason: str) -> None:
        """Tell the other ranks that this one can't take part in ``operation``, so that they raise as well."""
        with contextlib.suppress(MismatchError), self._turn_of(Call(operation, detail=f"refused: {reason}")):
            pass

    def _turn_of(self, call: Call) -> _Turn:
        return _Turn(self._turn, self._patience, self._transport, call)


class _Turn:
    """The time of one operation: alone in this process, and begun by all ranks.

    A class, because a generator as context manager costs two microseconds, a third of a small all-reduce.
    """

    __slots__ = ("_call", "_lock", "_patience", "_transport")

    def __init__(self, lock: threading.Lock, patience: Patience, transport: Transport, call: Call) -> None:
        self._lock, self._patience, self._transport, self._call = lock, patience, transport, call

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._patience.operation = self._call
            agree(self._transport, self._call)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _shapes(arrays: Sequence[np.ndarray]) -> tuple[tuple[np.dtype, tuple[int, ...]], ...]:
    return tuple((array.dtype, array.shape) for array in arrays)


def _pieces(array: np.ndarray, rows: Sequence[int], width: int) -> list[np.ndarray]:
    """Flat views of ``rows[r]`` rows of ``width`` elements each, one after the other."""
    flat = array.reshape(-1)
    ends = (np.cumsum(rows) * width).tolist()
    return [flat[end - count * width : end] for end, count in zip(ends, rows, strict=True)]
