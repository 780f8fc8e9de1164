"""The kinds of operations: what each tells the other ranks, and how it is carried out once they agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collective.algorithms import choice, pairwise
from collective.algorithms.segments import even_bounds
from collective.engine.calls import Call, kinds
from collective.engine.engine import Engine
from collective.engine.fusion import Layout, buckets
from collective.engine.matching import gather_counts
from collective.engine.operation import Operation
from collective.engine.planner import Plan
from collective.engine.ways import Resources
from collective.reduce_ops import ReduceOp
from collective.reduction import reduction_for


class AllReduce(Operation):
    """Reduce each array over all ranks; its result is the list of results.

    Args:
        engine: Carries it out.
        plan: How.
        arrays: C-contiguous; those that were planned for.
        name: The name that matches it with the other ranks' calls.
    """

    __slots__ = ("_arrays", "_plan", "shows")

    def __init__(self, engine: Engine, plan: Plan, arrays: Sequence[np.ndarray], name: str) -> None:
        # What Operation's does, for a call less.
        self._engine, self.call, self.name, self._ended = engine, plan.call, name, None
        self._plan, self._arrays, self.shows = plan, arrays, plan.way.shows

    def publish(self) -> bool:
        """See ``Operation``."""
        return self._plan.way.publish(self._arrays)

    def run(self, busy: bool) -> Sequence[np.ndarray]:
        """See ``Operation``."""
        results = self._plan.way.run(self._arrays, busy)
        if self._plan.check:
            given = None if self.call.in_place else self._arrays
            self._plan.check(self.label, given, results, self._engine.where)
        return results


class AllGather(Operation):
    """Concatenate along axis 0; the first dimensions may differ."""

    __slots__ = ("_array", "_resources")

    def __init__(self, engine: Engine, resources: Resources, array: np.ndarray, name: str) -> None:
        super().__init__(engine, Call("allgather", ((array.dtype, array.shape[1:]),)), name)
        self._resources, self._array = resources, array

    def run(self, busy: bool) -> np.ndarray:  # noqa: ARG002
        """See ``Operation``."""
        transport, array = self._resources.transport, self._array
        row = array.shape[1:]
        counts = gather_counts(transport, len(array))
        gathered = np.empty((int(counts.sum()), *row), array.dtype)
        rows = np.concatenate([[0], np.cumsum(counts)])
        gathered[rows[transport.rank] : rows[transport.rank + 1]] = array
        bounds = (rows * math.prod(row)).tolist()
        choice.all_gather(transport, gathered.reshape(-1), bounds, self._resources.settings.segment_bytes)
        return gathered


class Broadcast(Operation):
    """Overwrite each array with the root's; its result is the arrays."""

    __slots__ = ("_arrays", "_resources", "_root")

    def __init__(
        self, engine: Engine, resources: Resources, arrays: Sequence[np.ndarray], root: int, name: str
    ) -> None:
        super().__init__(engine, Call("broadcast", kinds(arrays), root=root), name)
        self._resources, self._arrays, self._root = resources, arrays, root

    def run(self, busy: bool) -> list[np.ndarray]:  # noqa: ARG002
        """See ``Operation``."""
        places: dict[np.dtype, list[np.ndarray]] = {}
        for array in self._arrays:
            places.setdefault(array.dtype, []).append(array)
        for alike in places.values():
            sizes = [array.nbytes for array in alike]
            for bucket in buckets(sizes, self._resources.settings.fusion_bytes):
                self._send([alike[place] for place in bucket])
        return list(self._arrays)

    def _send(self, arrays: list[np.ndarray]) -> None:
        transport, segment_bytes = self._resources.transport, self._resources.settings.segment_bytes
        if len(arrays) == 1:
            choice.broadcast(transport, arrays[0].reshape(-1), self._root, segment_bytes)
            return
        layout = Layout([array.shape for array in arrays], arrays[0].dtype)
        flat = np.empty(layout.elements, arrays[0].dtype)
        layout.pack(arrays, flat)
        choice.broadcast(transport, flat, self._root, segment_bytes)
        layout.unpack(flat, arrays)


class ReduceScatter(Operation):
    """Reduce and return this rank's rows; the array given is left with partial results."""

    __slots__ = ("_array", "_op", "_resources")

    def __init__(
        self, engine: Engine, resources: Resources, array: np.ndarray, op: ReduceOp, name: str, note: str = ""
    ) -> None:
        super().__init__(engine, Call("reducescatter", kinds([array]), op, note=note), name)
        self._resources, self._array, self._op = resources, array, op

    def run(self, busy: bool) -> np.ndarray:  # noqa: ARG002
        """See ``Operation``."""
        transport, array = self._resources.transport, self._array
        reduction = reduction_for(self._op, array.dtype, transport.size)
        rows = even_bounds(len(array), transport.size)
        row_size = math.prod(array.shape[1:])
        bounds = [row * row_size for row in rows]
        segment_bytes = self._resources.settings.segment_bytes
        choice.reduce_scatter(transport, array.reshape(-1), bounds, reduction, segment_bytes)
        return array[rows[transport.rank] : rows[transport.rank + 1]].copy()


class AllToAll(Operation):
    """Send ``splits[r]`` rows to each rank r; its result is the rows received and the count from each."""

    __slots__ = ("_array", "_resources", "_splits")

    def __init__(
        self, engine: Engine, resources: Resources, array: np.ndarray, splits: Sequence[int], name: str
    ) -> None:
        super().__init__(engine, Call("alltoall", ((array.dtype, array.shape[1:]),)), name)
        self._resources, self._array, self._splits = resources, array, splits

    def run(self, busy: bool) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """See ``Operation``."""
        transport, array = self._resources.transport, self._array
        ones = [1] * transport.size
        sent = np.asarray(self._splits, np.int64)
        counts = np.empty(transport.size, np.int64)
        pairwise.all_to_all(transport, _pieces(sent, ones, 1), _pieces(counts, ones, 1))
        received = np.empty((int(counts.sum()), *array.shape[1:]), array.dtype)
        width = math.prod(array.shape[1:])
        outgoing, incoming = _pieces(array, sent.tolist(), width), _pieces(received, counts.tolist(), width)
        pairwise.all_to_all(transport, outgoing, incoming)
        return received, counts


class Together(Operation):
    """What all ranks do at the same time, once all have come; nothing but that, for a barrier."""

    __slots__ = ("_action",)

    def __init__(self, engine: Engine, call: Call, name: str, action: Callable[[], Any] = lambda: None) -> None:
        super().__init__(engine, call, name)
        self._action = action

    def run(self, busy: bool) -> Any:  # noqa: ARG002
        """See ``Operation``."""
        return self._action()


def _pieces(array: np.ndarray, rows: Sequence[int], width: int) -> list[np.ndarray]:
    """Flat views of ``rows[r]`` rows of ``width`` elements each, one after the other."""
    flat = array.reshape(-1)
    ends = (np.cumsum(rows) * width).tolist()
    return [flat[end - count * width : end] for end, count in zip(ends, rows, strict=True)]
