"""Horovod's core as backend: NumPy arrays travel through its TensorFlow operations, whatever their dtype.

Three facts of Horovod 0.28.1 under eager TensorFlow, measured, shape this file:

- Its core knows every eager operation of one kind by one name, whatever name is given: ranks that ask for different
  kinds would wait for each other for ever. So every method begins with an all-reduce that compares what the ranks are
  about to do (1 to 2 ms).
- Named operations exist in graphs only, and running a graph inside ``tf.numpy_function`` needs a second one of
  TensorFlow's inter-op threads: with one such thread that is a deadlock. Eager operations run in the caller's thread.
- Its all-reduce knows 7 dtypes, adds small integers wrongly, and its minimum of NaN or of zeros of either sign can
  differ between ranks. What it can't do is moved as bytes and reduced here, in rank order.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from collective.backends.base import Backend, blocking
from collective.dtypes import BFLOAT16, FLOAT16, byte_view, is_half
from collective.engine.calls import mismatch
from collective.errors import LaunchError, MismatchError, TransportError
from collective.reduce_ops import Adasum, Max, Min, Product, ReduceOp
from collective.reduction import reduction_for
from collective.topology import Topology

FLOATS = frozenset((FLOAT16, np.dtype(np.float32), np.dtype(np.float64)))
INTEGERS = frozenset(map(np.dtype, (np.int32, np.int64)))
# Not to be added: Open MPI's AVX code for these stops at the largest value where NumPy wraps.
SMALL_INTEGERS = frozenset(map(np.dtype, (np.int8, np.uint8)))
# dtype -> a dtype of Horovod's in which sums and products come out the same once they are cast back.
CARRIERS: dict[np.dtype, np.dtype] = {
    BFLOAT16: np.dtype(np.float32),
    np.dtype(np.uint32): np.dtype(np.int32),
    np.dtype(np.uint64): np.dtype(np.int64),
}
# Horovod counts in C ints; a broadcast is cut so that neither they overflow nor the copies fill the memory.
BROADCAST_BYTES = 64 * 1024 * 1024
TEXT_BYTES = 240


class HorovodBackend(Backend):
    """A job whose data Horovod's core carries, over MPI or Gloo; starting it loads TensorFlow.

    Each of Horovod's operations costs 1.1 to 2.2 ms besides its bytes: its background thread wakes every millisecond.
    A method is at least two of them.

    Raises:
        LaunchError: if Horovod is not installed, does not fit the installed TensorFlow, or can't start.
    """

    name = "horovod"

    def __init__(self) -> None:
        # Only where the user has said nothing: one line for each rank about CPU instructions.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
        fix = "Run: python -m collective install-horovod"
        try:
            import tensorflow
            from horovod.tensorflow import mpi_ops
        except ImportError as error:
            raise LaunchError(
                "the horovod backend needs Horovod and TensorFlow", received=str(error), fix=fix
            ) from error
        except tensorflow.errors.NotFoundError as error:
            fix = f"{fix} --force"
            raise LaunchError("Horovod fits the installed TensorFlow", received=str(error), fix=fix) from error
        self._tf, self._hvd = tensorflow, mpi_ops
        try:
            mpi_ops.init()
        except ValueError as error:
            raise LaunchError("Horovod starts", received=str(error), fix="See its own lines above") from error
        self.topology = Topology(
            rank=mpi_ops.rank(),
            size=mpi_ops.size(),
            local_rank=mpi_ops.local_rank(),
            local_size=mpi_ops.local_size(),
            cross_rank=mpi_ops.cross_rank(),
            cross_size=mpi_ops.cross_size(),
            homogeneous=bool(mpi_ops.is_homogeneous()),
        )
        self._turn = threading.Lock()

    @blocking
    def allreduce(
        self,
        arrays: Sequence[np.ndarray],
        op: ReduceOp,
        name: str,
        in_place: bool,
        wire: np.dtype | None = None,  # noqa: ARG002  # Horovod's core adds what it sends
        note: str = "",
    ) -> list[np.ndarray]:
        """Reduce each array over all ranks; arrays that share a dtype travel as one.

        Costs of each dtype that Horovod can add: one all-reduce and two copies. Of the others: an all-to-all and an
        all-gather, together the bytes of a ring all-reduce.
        """
        if op is Adasum:
            raise self._lacks("Adasum")
        results = list(arrays) if in_place else [array.copy() for array in arrays]
        groups: dict[np.dtype, list[np.ndarray]] = {}
        for array in results:
            reduction_for(op, array.dtype, self.topology.size)  # refuses what has no meaning before anything travels
            if array.size:
                groups.setdefault(array.dtype, []).append(array.reshape(-1))
        by_horovod = [dtype for dtype in groups if carrier_of(op, dtype)]
        by_bytes = [dtype for dtype in groups if not carrier_of(op, dtype)]
        with self._calling(f"allreduce {name!r}: {op!r} of {_kinds(arrays)} {note}") as line:
            self._compare(line)
            for dtype in by_horovod:
                self._allreduce_alike(groups[dtype], op)
            for dtype in by_bytes:
                packed = np.concatenate(groups[dtype])
                mine = self._reduce_share(packed, _shares(packed.size, self.topology.size), op)
                _unpack(_from_rows(self._gather(_to_rows(mine)), packed), groups[dtype])
        return results

    @blocking
    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:  # noqa: ARG002
        """See ``Backend``."""
        return np.empty(shape, dtype)

    @blocking
    def allgather(self, array: np.ndarray, name: str) -> np.ndarray:
        """Concatenate the ranks' arrays along axis 0; moves every rank's bytes to every rank."""
        array = np.atleast_1d(array)
        with self._calling(f"allgather {name!r}: {array.dtype} in rows of {list(array.shape[1:])}") as line:
            self._compare(line)
            return _from_rows(self._gather(_to_rows(array)), array)

    @blocking
    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> list[np.ndarray]:
        """Overwrite each array with the root's, packed into messages of up to ``BROADCAST_BYTES``."""
        with self._calling(f"broadcast {name!r}: root {root}, {_kinds(arrays)}") as line:
            self._compare(line)
            for parts in _pack([byte_view(array) for array in arrays], BROADCAST_BYTES):
                with self._eager():
                    tensor = self._tf.convert_to_tensor(np.concatenate(parts))
                    received = _view(self._hvd.broadcast(tensor, root))
                _unpack(received, parts)
        return list(arrays)

    @blocking
    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str, note: str = "") -> np.ndarray:
        """Reduce and return this rank's rows of axis 0; an all-to-all of (N-1)/N of the bytes, added in rank order."""
        reduction_for(op, array.dtype, self.topology.size)
        with self._calling(f"reducescatter {name!r}: {op!r} of {_kinds([array])} {note}") as line:
            self._compare(line)
            counts = _shares(array.shape[0], self.topology.size)
            row = math.prod(array.shape[1:])
            mine = self._reduce_share(array.reshape(-1), [count * row for count in counts], op)
            return mine.reshape(counts[self.topology.rank], *array.shape[1:])

    @blocking
    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Send ``splits[r]`` rows to each rank r; returns the rows received and the count from each, as int64."""
        with self._calling(f"alltoall {name!r}: {array.dtype} in rows of {list(array.shape[1:])}") as line:
            self._compare(line)
            received, counts = self._exchange(_to_rows(array), splits)
            return _from_rows(received, array), counts

    @blocking
    def barrier(self, name: str) -> None:
        """Return once every rank has called it; one all-reduce of 16 bytes."""
        with self._calling(f"barrier {name!r}") as line:
            self._compare(line)

    def refuse(self, operation: str, name: str, reason: str) -> None:  # noqa: ARG002
        """Tell the other ranks that this one can't take part in ``operation``, so that they raise as well."""
        with contextlib.suppress(MismatchError), self._calling(f"{operation}: refused: {reason}") as line:
            self._compare(line)

    def shutdown(self) -> None:
        """Return once every rank has called it; what the others still wait for ends in an error instead.

        Horovod itself stays up until the process ends, where it leaves by a hook of its own: it finalises MPI when it
        leaves, after which ``init`` could not work again.
        """
        with self._calling("shutdown") as line:
            self._compare(line)

    def abort(self, status: int) -> None:
        """End this process at once with ``status`` (1 for 0), on which mpirun and horovodrun end the others.

        Measured: the others are gone within a second; mpirun ends with ``status``, ``horovodrun --gloo`` with 1.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 1)

    def _allreduce_alike(self, flats: list[np.ndarray], op: ReduceOp) -> None:
        """Reduce flat arrays of one dtype by Horovod's all-reduce."""
        dtype = flats[0].dtype
        reduction = reduction_for(op, dtype, self.topology.size)
        # TensorFlow copies what it is given; only what is changed before needs a copy of its own.
        packed = flats[0] if len(flats) == 1 and not is_half(dtype) else np.concatenate(flats)
        reduction.prepare(packed)
        number = {Min: self._hvd.Min, Max: self._hvd.Max, Product: self._hvd.Product}.get(op, self._hvd.Sum)
        _unpack(self._reduce(packed.astype(carrier_of(op, dtype), copy=False), number), flats)
        for flat in flats:
            if dtype in FLOATS or dtype == BFLOAT16:
                _same_nan(flat)
            reduction.finish(flat)

    def _reduce(self, flat: np.ndarray, op: int) -> np.ndarray:
        """Run Horovod's all-reduce on ``flat``; returns a view of the result."""
        with self._eager():
            return _view(self._hvd._allreduce(self._tf.convert_to_tensor(flat), op=op))

    def _reduce_share(self, flat: np.ndarray, counts: Sequence[int], op: ReduceOp) -> np.ndarray:
        """Reduce ``flat`` over all ranks and return the part of this rank: ``counts[rank]`` elements."""
        size = self.topology.size
        reduction = reduction_for(op, flat.dtype, size)
        prepared = flat.copy()
        reduction.prepare(prepared)
        received, _ = self._exchange(_to_rows(prepared), counts)
        parts = _from_rows(received, flat).reshape(size, -1)
        total = parts[0].copy()
        for part in parts[1:]:
            reduction.combine(total, part, total)
        reduction.finish(total)
        return total

    def _compare(self, line: str) -> None:
        """Raise on every rank alike unless all ranks have the same ``line``, which says what they are about to do."""
        digest = int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little") >> 2
        extremes = self._reduce(np.array([digest, -digest], np.int64), self._hvd.Max)
        if extremes[0] != -extremes[1]:
            own = np.frombuffer(line.encode()[:TEXT_BYTES].ljust(TEXT_BYTES), np.uint8)
            texts = [row.tobytes().decode(errors="replace").rstrip() for row in self._gather(own.reshape(1, -1))]
            raise mismatch(texts, line.partition(":")[0], self.topology.where)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        with self._eager():
            return _view(self._hvd.allgather(self._tf.convert_to_tensor(rows)))

    def _exchange(self, rows: np.ndarray, splits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        with self._eager():
            counts = self._tf.constant(list(splits), self._tf.int32)
            received, received_counts = self._hvd.alltoall(self._tf.convert_to_tensor(rows), counts)
            return _view(received), received_counts.numpy().astype(np.int64)

    @contextlib.contextmanager
    def _eager(self) -> Iterator[None]:
        """Run operations at once and on the CPU, also where a graph is being traced or TensorFlow prefers a GPU."""
        with self._tf.init_scope(), self._tf.device("/cpu:0"):
            yield

    @contextlib.contextmanager
    def _calling(self, line: str) -> Iterator[str]:
        """Turn the errors of Horovod's core into ours; ``line`` is what this rank calls, with all its arguments."""
        errors = self._tf.errors
        # Overflow and NaN are the user's numbers, not a warning of one rank.
        ignored = np.errstate(all="ignore")
        try:
            with self._turn, ignored:
                yield line
        except errors.OpError as error:
            raise TransportError(
                "all ranks take part until the operation is done",
                received=re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", str(error), flags=re.DOTALL),
                fix="Look for the first error of another rank",
                operation=line.partition(":")[0],
                where=self.topology.where,
            ) from None


def carrier_of(op: ReduceOp, dtype: np.dtype) -> np.dtype | None:
    """Tell the dtype in which Horovod's all-reduce gives the right result; None: in none."""
    if op in (Min, Max):
        return dtype if dtype in INTEGERS | SMALL_INTEGERS else None
    return dtype if dtype in INTEGERS | FLOATS else CARRIERS.get(dtype)


def _kinds(arrays: Sequence[np.ndarray]) -> str:
    return ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays)


def _view(tensor: object) -> np.ndarray:
    """View an eager tensor's memory, read-only, without a copy."""
    return np.asarray(memoryview(tensor))  # type: ignore[arg-type]  # a buffer, which TensorFlow's hints don't tell


def _shares(rows: int, size: int) -> list[int]:
    return [rows // size + (rank < rows % size) for rank in range(size)]


def _to_rows(array: np.ndarray) -> np.ndarray:
    """View an array as a matrix of integers, one row for each of its rows: int64 where those fit, else bytes."""
    row_bytes = math.prod(array.shape[1:]) * array.itemsize
    if row_bytes == 0:  # one integer stands for a row without elements, so that their number travels
        return np.zeros((array.shape[0], 1), np.int64)
    rows = byte_view(array).reshape(array.shape[0], row_bytes)
    return rows if row_bytes % 8 else rows.view(np.int64)


def _from_rows(rows: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Copy rows made by ``_to_rows`` into a new array with the dtype and row shape of ``like``."""
    result = np.empty((rows.shape[0], *like.shape[1:]), like.dtype)
    if result.size:
        byte_view(result)[:] = byte_view(rows)
    return result


def _pack(views: Sequence[np.ndarray], limit: int) -> Iterator[list[np.ndarray]]:
    """Cut flat arrays into lists of parts that have at most ``limit`` elements together."""
    parts: list[np.ndarray] = []
    room = limit
    for whole in views:
        rest = whole
        while rest.size:
            parts.append(rest[:room])
            rest, room = rest[room:], room - parts[-1].size
            if room == 0:
                yield parts
                parts, room = [], limit
    if parts:
        yield parts


def _unpack(packed: np.ndarray, parts: Sequence[np.ndarray]) -> None:
    """Copy a flat array piece by piece into flat parts."""
    start = 0
    for part in parts:
        part[...] = packed[start : start + part.size]
        start += part.size


def _same_nan(values: np.ndarray) -> None:
    """Give all NaN the same bits: which operand's bits a sum keeps depends on the rank that computes it."""
    nans = np.isnan(values)
    if nans.any():
        values[nans] = np.nan
