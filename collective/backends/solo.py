"""The solo backend: one process and no MPI, so that a training script runs unchanged under plain ``python``."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from collective import topology
from collective.backends.base import Backend, blocking
from collective.reduce_ops import ReduceOp
from collective.reduction import reduction_for


class SoloBackend(Backend):
    """A job of one rank: everything is reduced, gathered and sent already."""

    name = "solo"

    def __init__(self) -> None:
        self.topology = topology.from_hosts(0, [socket.gethostname()])

    @blocking
    def allreduce(
        self,
        arrays: Sequence[np.ndarray],
        op: ReduceOp,
        name: str,  # noqa: ARG002
        in_place: bool,
        wire: np.dtype | None = None,  # noqa: ARG002
        note: str = "",  # noqa: ARG002
    ) -> list[np.ndarray]:
        """See ``Backend``; an operation without a meaning for a dtype is refused here as on many ranks."""
        for array in arrays:
            reduction_for(op, array.dtype, 1)
        return list(arrays) if in_place else [array.copy() for array in arrays]

    @blocking
    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:  # noqa: ARG002
        """See ``Backend``."""
        return np.empty(shape, dtype)

    @blocking
    def allgather(self, array: np.ndarray, name: str) -> np.ndarray:  # noqa: ARG002
        """See ``Backend``."""
        return array.copy()

    @blocking
    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> list[np.ndarray]:  # noqa: ARG002
        """See ``Backend``."""
        return list(arrays)

    @blocking
    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str, note: str = "") -> np.ndarray:  # noqa: ARG002
        """See ``Backend``."""
        reduction_for(op, array.dtype, 1)
        return array.copy()

    @blocking
    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG002
        """See ``Backend``."""
        return array.copy(), np.asarray(splits, np.int64)

    @blocking
    def barrier(self, name: str) -> None:
        """See ``Backend``."""

    @blocking
    def join(self, name: str) -> int:  # noqa: ARG002
        """See ``Backend``."""
        return 0

    @blocking
    def subset(self, ranks: Sequence[int], name: str) -> SoloBackend | None:  # noqa: ARG002
        """See ``Backend``."""
        return SoloBackend() if ranks else None

    def ranks_of(self, communicator: Any) -> list[int]:  # noqa: ARG002
        """See ``Backend``."""
        return [0]

    def shutdown(self) -> None:
        """See ``Backend``."""

    def abort(self, status: int) -> None:
        """See ``Backend``."""
        os._exit(status)
