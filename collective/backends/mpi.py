"""The MPI backend: our own algorithms over the messages of mpi4py."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import numpy as np

from collective import topology
from collective.algorithms import shared_memory
from collective.backends.base import Backend
from collective.engine import tuning
from collective.engine.engine import Engine
from collective.engine.matching import all_agree
from collective.errors import TransportError
from collective.log import logger
from collective.reduce_ops import ReduceOp
from collective.settings import Settings
from collective.transport import mpi, segment
from collective.transport.group import Group
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
        patience = Patience(settings.stall_seconds)
        self.transport = mpi.connect(patience, environment)
        hosts = self.transport.hosts()
        self.topology = topology.from_hosts(self.transport.rank, hosts)
        self._share_memory(hosts, patience)
        place = f"{platform.node()}, {mpi.library()}, {self.topology.size} ranks, {self.topology.local_size} here"
        small_bytes = settings.small_bytes
        if small_bytes < 0:
            small_bytes = tuning.small_bytes(self.transport, settings.segment_bytes, place)
        self._engine = Engine(self.transport, settings, patience, small_bytes)

    def _share_memory(self, hosts: Sequence[str], patience: Patience) -> None:
        """Let the ranks of each host share memory, where all hosts have the same number of ranks."""
        here = self.topology.local_size
        if here == 1 or {hosts.count(host) for host in hosts} != {here}:
            return
        local = Group(self.transport, [rank for rank, host in enumerate(hosts) if host == hosts[self.topology.rank]])
        size = shared_memory.segment_size(here)
        try:
            local.shared = segment.create(local, size, patience)
        except TransportError as error:
            logger.warning("%s Messages are used instead: slower, and right.", error)
        # One host without shared memory is enough for all to go by messages.
        if not all_agree(self.transport, local.shared is not None):
            return
        if here == self.topology.size:
            self.transport.shared = local.shared
        else:
            local_ranks = [hosts[:rank].count(host) for rank, host in enumerate(hosts)]
            peers = [rank for rank, local_rank in enumerate(local_ranks) if local_rank == self.topology.local_rank]
            self.transport.hierarchy = (local, Group(self.transport, peers))

    def allreduce(self, arrays: Sequence[np.ndarray], op: ReduceOp, name: str) -> None:
        """See ``Backend``."""
        self._engine.allreduce(arrays, op, name)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:
        """See ``Backend``."""
        return self._engine.empty(shape, dtype, name)

    def allgather(self, array: np.ndarray, name: str) -> np.ndarray:
        """See ``Backend``."""
        return self._engine.allgather(array, name)

    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> None:
        """See ``Backend``."""
        self._engine.broadcast(arrays, root, name)

    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str) -> np.ndarray:
        """See ``Backend``."""
        return self._engine.reducescatter(array, op, name)

    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
        """See ``Backend``."""
        return self._engine.alltoall(array, splits, name)

    def barrier(self, name: str) -> None:
        """See ``Backend``."""
        self._engine.barrier(name)

    def refuse(self, operation: str, reason: str) -> None:
        """See ``Backend``."""
        self._engine.refuse(operation, reason)

    def shutdown(self) -> None:
        """See ``Backend``. MPI itself stays up until the process ends, so that ``init`` works again."""
        self._engine.shutdown()
        self.transport.close()

    def abort(self, status: int) -> None:
        """See ``Backend``."""
        self.transport.abort(status)
