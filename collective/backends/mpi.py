"""The MPI backend: our own algorithms over the messages of mpi4py."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence

import numpy as np

from collective import topology
from collective.algorithms import direct, shared_memory
from collective.backends.base import Backend, Operation
from collective.engine import operations, tuning
from collective.engine.calls import SHUTDOWN, Call
from collective.engine.engine import Engine
from collective.engine.planner import Planner
from collective.engine.ways import Resources
from collective.errors import MismatchError
from collective.reduce_ops import ReduceOp
from collective.settings import Settings
from collective.transport import mpi
from collective.transport.hosts import share_memory
from collective.transport.patience import Patience


class MpiBackend(Backend):
    """All ranks of ``MPI.COMM_WORLD``.

    Args:
        settings: What the user set.
        environment: The process's environment, to compare the launcher with the MPI library.

    Raises:
        LaunchError: when they don't fit.
    """

    name = "mpi"

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        patience = Patience(settings.stall_seconds, settings.timeout_seconds)
        self.transport = mpi.connect(patience, environment)
        hosts = self.transport.hosts()
        self.topology = topology.from_hosts(self.transport.rank, hosts)
        share_memory(self.transport, hosts, shared_memory.segment_size, patience)
        if self.transport.shared:
            self.transport.shared.peers = direct.connect(self.transport.shared)
        self._resources = Resources.for_transport(self.transport, settings, patience)
        self._place = f"{platform.node()}, {mpi.library()}, {self.topology.size} ranks, {self.topology.local_size} here"
        self._planner = Planner(self._resources, tuning.crossovers(self._resources, self._place))
        self._engine = Engine(self.transport, patience)

    def tune(self) -> tuning.Crossovers:
        """Measure thoroughly which all-reduce is the fastest at which size, and keep that for the jobs to come.

        Called by all ranks, while no operation is under way. Returns the table that was found.
        """
        table = tuning.crossovers(self._resources, self._place, thorough=True)
        self._planner = Planner(self._resources, table)
        return table

    def allreduce(
        self, arrays: Sequence[np.ndarray], op: ReduceOp, name: str, in_place: bool, wire: np.dtype | None = None
    ) -> Operation:
        """See ``Backend``."""
        return operations.AllReduce(self._engine, self._planner, arrays, op, name, in_place, wire)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Operation:
        """See ``Backend``."""
        return operations.Empty(self._engine, self._resources, shape, dtype, name)

    def allgather(self, array: np.ndarray, name: str) -> Operation:
        """See ``Backend``."""
        return operations.AllGather(self._engine, self._resources, array, name)

    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> Operation:
        """See ``Backend``."""
        return operations.Broadcast(self._engine, self._resources, arrays, root, name)

    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str) -> Operation:
        """See ``Backend``."""
        return operations.ReduceScatter(self._engine, self._resources, array, op, name)

    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> Operation:
        """See ``Backend``."""
        return operations.AllToAll(self._engine, self._resources, array, splits, name)

    def barrier(self, name: str) -> Operation:
        """See ``Backend``."""
        return operations.Meeting(self._engine, Call("barrier"), name)

    def refuse(self, operation: str, name: str, reason: str) -> None:
        """See ``Backend``."""
        with contextlib.suppress(MismatchError):
            operations.Meeting(self._engine, Call(operation, detail=f"refused: {reason}"), name).wait()

    def shutdown(self) -> None:
        """See ``Backend``. MPI itself stays up until the process ends, so that ``init`` works again."""
        operations.Meeting(self._engine, Call(SHUTDOWN), SHUTDOWN).wait()
        self._engine.close()
        self.transport.close()

    def abort(self, status: int) -> None:
        """See ``Backend``."""
        self.transport.abort(status)
