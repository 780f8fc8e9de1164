"""The job this process belongs to: joining it, leaving it, and where this process stands in it."""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping

from collective import crash, launched, log, settings
from collective.backends.base import Backend
from collective.backends.solo import SoloBackend
from collective.errors import LaunchError, MismatchError, NotInitializedError
from collective.topology import Topology


@dataclasses.dataclass
class World:
    """What ``init`` sets up and ``shutdown`` takes down."""

    backend: Backend
    numbers: Iterator[int]
    undo_crash_hook: Callable[[], None]


_world: World | None = None


def init() -> None:
    """Join the job; called by all ranks, before anything else of the library. A second call does nothing.

    The backend is the one ``COLLECTIVE_BACKEND`` names; without it, Horovod's under ``horovodrun --gloo``, MPI's under
    any other launcher, and solo when the process was started by hand.

    Raises:
        LaunchError: when the launcher is not that of the MPI library, or no MPI library is found.
        SettingError: when a ``COLLECTIVE_...`` variable is unknown or has a value that is not allowed.
    """
    global _world
    if _world:
        return
    chosen = settings.from_environment(os.environ)
    launch = launched.detect(os.environ)
    # The backend has things to say while it starts, before it knows its rank for sure.
    log.configure(chosen.log_level, f"process {launch.rank} of {launch.size}" if launch else "this process")
    backend = _start_backend(chosen, launch, os.environ)
    where = backend.topology.where
    log.configure(chosen.log_level, where)
    undo = crash.end_job_on_exception(where, backend.abort) if backend.topology.size > 1 else lambda: None
    _world = World(backend, itertools.count(1), undo)
    atexit.register(_shutdown_at_exit)


def shutdown() -> None:
    """Leave the job; called by all ranks, or by none: the end of the process does it as well. ``init`` works again.

    Raises:
        MismatchError: when another rank is in the middle of an operation.
    """
    global _world
    if not _world:
        return
    world, _world = _world, None
    atexit.unregister(_shutdown_at_exit)
    world.undo_crash_hook()
    world.backend.shutdown()


def is_initialized() -> bool:
    """Tell whether this process is in a job: ``init`` was called and ``shutdown`` was not."""
    return _world is not None


def backend(operation: str = "") -> Backend:
    """What carries the data of the job.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``; it names ``operation``.
    """
    return _joined(operation).backend


def begin(operation: str, name: str | None = None) -> tuple[Backend, str]:
    """Begin an operation: the backend that carries it out, and its name; a number if the user gave none.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``.
    """
    world = _world or _joined(operation)
    # One counter for all operations, named or not: after a mismatch, in which ranks called different ones, it agrees.
    number = next(world.numbers)
    return world.backend, name or f"#{number}"


def topology() -> Topology:
    """All six numbers of this process; see ``rank`` and its neighbours."""
    return _joined("").backend.topology


def rank() -> int:
    """Number of this process in the job, from 0 to ``size() - 1``."""
    return topology().rank


def size() -> int:
    """Number of processes in the job."""
    return topology().size


def local_rank() -> int:
    """Number of this process among those on its host."""
    return topology().local_rank


def local_size() -> int:
    """Number of processes on this host."""
    return topology().local_size


def cross_rank() -> int:
    """Number of this process's host among the hosts that have a process with the same local rank."""
    return topology().cross_rank


def cross_size() -> int:
    """Number of hosts that have a process with the same local rank."""
    return topology().cross_size


def _joined(operation: str) -> World:
    if not _world:
        raise NotInitializedError(
            "a process joins the job before it asks for ranks or operations",
            fix="Call collective.init() first, on all ranks",
            operation=operation,
        )
    return _world


def _start_backend(
    chosen: settings.Settings, launch: launched.Launched | None, environment: Mapping[str, str]
) -> Backend:
    name = chosen.backend
    if not name:
        name = "horovod" if launch and launch.launcher is launched.GLOO else "mpi" if launch or _mpi_is_up() else "solo"
    if name == "solo":
        if launch and launch.size > 1:
            raise LaunchError(
                "the solo backend is one process",
                received=f"COLLECTIVE_BACKEND=solo, {launch.launcher.size}={launch.size}",
                fix=f"Unset COLLECTIVE_BACKEND, or start one process without {launch.launcher.name}",
                where=f"process {launch.rank} of {launch.size}",
            )
        return SoloBackend()
    # Imported here because either needs a library that the other user may not have.
    if name == "horovod":
        from collective.backends.horovod import HorovodBackend

        return HorovodBackend()
    from collective.backends.mpi import MpiBackend

    return MpiBackend(chosen, environment)


def _mpi_is_up() -> bool:
    """Tell whether the user's own code has started MPI, under a launcher that we don't know."""
    module = sys.modules.get("mpi4py.MPI")
    return module is not None and module.Is_initialized() and not module.Is_finalized()


def _shutdown_at_exit() -> None:
    """Leave with the others, or end the job: a rank that exits early must not let them wait."""
    ending = backend()
    try:
        shutdown()
    except MismatchError as error:
        crash.report(ending.topology.where, f"this rank came to its end before the others: {error.received}")
        ending.abort(1)
