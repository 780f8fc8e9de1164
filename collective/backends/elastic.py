"""The backend of an elastic job: the MPI backend, and how the ranks that are left make a new one when one has died."""

from __future__ import annotations

import atexit
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from collective.backends.mpi import MpiBackend, patience_for
from collective.errors import RanksLostError
from collective.log import logger
from collective.settings import Settings
from collective.transport import mpi, recovery
from collective.transport.patience import Patience


class ElasticBackend(MpiBackend):
    """The ranks of an elastic job, or of a process set in it; see ``MpiBackend``.

    When a rank has died, the operation that others are in, or call next, raises ``RanksLostError`` on all of them.
    """

    is_elastic = True

    def __init__(
        self,
        transport: mpi.MpiTransport,
        settings: Settings,
        patience: Patience,
        members: Sequence[int] | None = None,
        is_newcomer: bool = False,
    ) -> None:
        super().__init__(transport, settings, patience, members)
        self.is_newcomer = is_newcomer
        self._hosts = transport.hosts()
        self._late = ""  # the ranks that an operation has failed for

    @classmethod
    def connect(cls, settings: Settings, environment: Mapping[str, str], comm: Any = None) -> MpiBackend:
        """Start MPI if need be; called by all ranks. A process that was started later joins the job here.

        Args:
            settings: What the user set.
            environment: The process's environment.
            comm: See ``collective.init``.

        Returns:
            A backend that isn't elastic where this MPI isn't; a warning says so.
        """
        patience = patience_for(settings)
        possible = recovery.is_possible(environment)
        transport = mpi.connect(patience, environment, comm, ends=not possible)
        if not possible:
            if transport.rank == 0:
                logger.warning(
                    "Ranks go on without one that has died under Open MPI 5, started by collective run --elastic. "
                    "This is %s, started otherwise: a death ends the job.",
                    mpi.library(),
                )
            return MpiBackend(transport, settings, patience)
        atexit.unregister(recovery.leave)
        atexit.register(recovery.leave)
        if not recovery.is_awaited():
            return cls(transport, settings, patience)
        with recovery.stage("to join the job", settings.recovery_seconds, f"process {os.getpid()}"):
            return cls(mpi.go_on_with(recovery.joined(), patience), settings, patience, is_newcomer=True)

    @property
    def is_lost(self) -> bool:
        """See ``Backend``."""
        return self._engine.is_lost

    def _explain(self, error: BaseException) -> BaseException:
        """See ``MpiBackend``."""
        self._late = getattr(error, "whom", "")
        return recovery.explain(self.transport, error, str(self._patience.operation), self.topology.where)

    def give_up(self) -> None:
        """See ``Backend``."""
        with recovery.stage("to end what was under way", self._settings.recovery_seconds, self.topology.where):
            recovery.revoke(self.transport.communicator)
            rule = "an operation ends before its job goes on with other ranks"
            self._engine.give_up(RanksLostError(rule, received="it was under way", where=self.topology.where))

    def recover(self, ranks: int | None) -> ElasticBackend:
        """See ``Backend``."""
        settings, where = self._settings, self.topology.where
        with recovery.stage("to meet the ranks that are left", settings.recovery_seconds, where, self._late):
            left = recovery.survivors(self.transport.communicator)
        wanted = ranks or self.topology.size
        if left.size < wanted and (ranks or left.size < (settings.min_ranks or wanted)):
            with recovery.stage("to start other ranks", settings.recovery_seconds, where):
                left = self._replenished(left, wanted)
        with recovery.stage("to begin anew", settings.recovery_seconds, where):
            patience = patience_for(settings)
            backend = ElasticBackend(mpi.go_on_with(left, patience), settings, patience)
        if left.rank == 0:
            logger.warning("%d ranks go on, this one as rank 0; they were %d.", left.size, self.topology.size)
        return backend

    def _replenished(self, left: mpi.MPI.Intracomm, wanted: int) -> mpi.MPI.Intracomm:
        """As many ranks as are wanted, or as can be had: where ranks were lost, then where there are the fewest.

        Not on a host that has none left: with one whose daemon has no rank, Open MPI's launcher can't connect them.
        """
        there = Counter(mpi.hosts(left))
        lost = Counter(self._hosts) - there
        places = [host for host in lost.elements() if host in there][: wanted - left.size]
        for _ in range(wanted - self.topology.size):
            places.append(min(there, key=lambda host: there[host] + places.count(host)))
        if left.rank == 0 and len(places) < wanted - left.size:
            logger.warning("Ranks are replaced on hosts that have others left: %d of %d go on.", left.size, wanted)
        return recovery.replenished(left, places) or left if places else left

    def abort(self, status: int) -> None:  # noqa: ARG002
        """End this process only, so that the others see it; they go on."""
        recovery.end_process("", self.topology.where)
