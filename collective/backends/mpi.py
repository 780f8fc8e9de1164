"""The MPI backend: our own algorithms over the messages of mpi4py."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from collective import topology
from collective.algorithms import direct, shared_memory
from collective.backends.base import Backend, Operation
from collective.engine import operations, tuning
from collective.engine.calls import JOIN, SHUTDOWN, Call, kinds
from collective.engine.engine import Engine
from collective.engine.operation import Operation as EngineOperation
from collective.engine.planner import Planner
from collective.engine.stand_in import stand_in
from collective.engine.ways import Resources
from collective.errors import MismatchError
from collective.monitor import activity
from collective.reduce_ops import ReduceOp
from collective.settings import Settings
from collective.transport import mpi
from collective.transport.hosts import share_memory
from collective.transport.patience import NOTHING_YET, Patience

# Made once, for to make it takes longer than to compare it with the other ranks'.
BARRIER = Call("barrier")


class MpiBackend(Backend):
    """The ranks of an MPI communicator: those of the job, or of a process set.

    Args:
        transport: The messages between them.
        settings: What the user set.
        patience: How the transport waits.
        members: For a process set: the number that each of its ranks has in the job.
    """

    name = "mpi"

    def __init__(
        self,
        transport: mpi.MpiTransport,
        settings: Settings,
        patience: Patience,
        members: Sequence[int] | None = None,
    ) -> None:
        self.transport, self._settings, self._patience = transport, settings, patience
        hosts = self.transport.hosts()
        self.topology = topology.from_hosts(self.transport.rank, hosts, members)
        share_memory(self.transport, hosts, shared_memory.segment_size, patience)
        if self.transport.shared:
            self.transport.shared.peers = direct.connect(self.transport.shared)
        self._resources = Resources.for_transport(self.transport, settings, patience)
        self._place = f"{platform.node()}, {mpi.library()}, {self.topology.size} ranks, {self.topology.local_size} here"
        self._planner = Planner(self._resources, tuning.crossovers(self._resources, self._place))
        self._engine = Engine(self.transport, patience, self._stand_in, self.topology.where, explain=self._explain)

    @classmethod
    def connect(cls, settings: Settings, environment: Mapping[str, str], comm: Any = None) -> MpiBackend:
        """Start MPI if need be; called by all ranks.

        Args:
            settings: What the user set.
            environment: The process's environment, to compare the launcher with the MPI library.
            comm: See ``collective.init``.

        Raises:
            LaunchError: when launcher and library don't fit.
        """
        patience = patience_for(settings)
        return cls(mpi.connect(patience, environment, comm), settings, patience)

    def tune(self) -> tuning.Crossovers:
        """Measure thoroughly which all-reduce is the fastest at which size, and keep that for the jobs to come.

        Called by all ranks, while no operation is under way. Returns the table that was found.
        """
        table = tuning.crossovers(self._resources, self._place, thorough=True)
        self._planner = Planner(self._resources, table)
        return table

    def allreduce(
        self,
        arrays: Sequence[np.ndarray],
        op: ReduceOp,
        name: str,
        in_place: bool,
        wire: np.dtype | None = None,
        note: str = "",
    ) -> Operation:
        """See ``Backend``."""
        plan = self._planner[kinds(arrays), op, in_place, wire, note]
        return operations.AllReduce(self._engine, plan, arrays, name)

    def allreduce_again(
        self, arrays: Sequence[np.ndarray], op: ReduceOp, name: str, in_place: bool
    ) -> Operation | None:
        """See ``Backend``."""
        plan = self._planner.get((kinds(arrays), op, in_place, None, ""))
        return operations.AllReduce(self._engine, plan, arrays, name) if plan else None

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Operation:
        """See ``Backend``."""
        make = functools.partial(self._resources.residents.empty, shape, dtype)
        return operations.Together(self._engine, Call("empty", ((dtype, shape),)), name, make)

    def allgather(self, array: np.ndarray, name: str) -> Operation:
        """See ``Backend``."""
        return operations.AllGather(self._engine, self._resources, array, name)

    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> Operation:
        """See ``Backend``."""
        return operations.Broadcast(self._engine, self._resources, arrays, root, name)

    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str, note: str = "") -> Operation:
        """See ``Backend``."""
        return operations.ReduceScatter(self._engine, self._resources, array, op, name, note)

    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> Operation:
        """See ``Backend``."""
        return operations.AllToAll(self._engine, self._resources, array, splits, name)

    def barrier(self, name: str) -> Operation:
        """See ``Backend``."""
        return operations.Together(self._engine, BARRIER, name)

    def join(self, name: str) -> Operation:  # noqa: ARG002  # ranks join one another, whatever they call it
        """See ``Backend``."""
        return operations.Together(self._engine, Call(JOIN), JOIN, self._engine.last_to_join)

    def subset(self, ranks: Sequence[int], name: str) -> Operation:
        """See ``Backend``."""
        call = Call("add_process_set", note=f"ranks {', '.join(map(str, ranks))}")
        return operations.Together(self._engine, call, name, functools.partial(self._subset, ranks))

    def _subset(self, ranks: Sequence[int]) -> MpiBackend | None:
        patience = Patience(self._settings.stall_seconds, self._settings.timeout_seconds)
        transport = self.transport.subset(ranks, patience)
        return type(self)(transport, self._settings, patience, transport.members) if transport else None

    def ranks_of(self, communicator: Any) -> list[int]:
        """See ``Backend``."""
        return self.transport.ranks_of(communicator)

    def _stand_in(self, call: Call, name: str) -> EngineOperation:
        """What a rank that has joined takes part with."""
        return stand_in(call, name, self._engine, self._planner)

    def _explain(self, error: BaseException) -> BaseException:
        """What is raised when an operation has ended in the middle, by ``error``."""
        return error

    def refuse(self, operation: str, name: str, reason: str) -> None:
        """See ``Backend``."""
        with contextlib.suppress(MismatchError):
            operations.Together(self._engine, Call(operation, note=f"refused: {reason}"), name).wait()

    def shutdown(self) -> None:
        """See ``Backend``. MPI itself stays up until the process ends, so that ``init`` works again."""
        operations.Together(self._engine, Call(SHUTDOWN), SHUTDOWN).wait()
        self._engine.close()
        self.transport.close()

    def abort(self, status: int) -> None:
        """See ``Backend``."""
        self.transport.abort(status)


def patience_for(settings: Settings) -> Patience:
    """How the ranks of a job wait."""
    patience = Patience(settings.stall_seconds, settings.timeout_seconds)
    activity.last_operation = lambda: "" if patience.operation is NOTHING_YET else patience.operation
    return patience
