"""The job this process belongs to: joining it, leaving it, and where this process stands in it."""

from __future__ import annotations

import atexit
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from collective import crash, launched, log, settings, timeline
from collective.backends import start
from collective.backends.base import Backend
from collective.errors import ArgumentError, MismatchError, NotInitializedError, TransportError
from collective.monitor import link
from collective.process_sets import ProcessSet, global_process_set
from collective.registry import Registry
from collective.topology import Topology


@dataclasses.dataclass
class World:
    """What ``init`` sets up and ``shutdown`` takes down."""

    backend: Backend
    chosen: settings.Settings
    undo_crash_hook: Callable[[], None]
    sets: Registry


_world: World | None = None
# Whether this process was forked from a rank: it knows its parent's numbers, but it is no rank.
_is_child = False


def init(
    comm: Sequence[int] | Any = None, process_sets: Sequence[ProcessSet | Sequence[int]] | str | None = None
) -> None:
    """Join the job; called by all ranks, before anything else of the library. A second call does nothing.

    The backend is the one ``COLLECTIVE_BACKEND`` names; without it, Horovod's under ``horovodrun --gloo``, MPI's under
    any other launcher, and solo when the process was started by hand.

    Args:
        comm: The job's ranks: None for all that were started, an mpi4py communicator, or a list of ranks. Ranks
            outside don't call ``init``.
        process_sets: Sets to register at once, the same on all ranks; ``"dynamic"``, as Horovod wants it before
            ``add_process_set``, is none.

    Raises:
        ArgumentError: when process sets are equal, or hold what is no rank.
        LaunchError: when the launcher is not that of the MPI library, or no MPI library is found.
        SettingError: when a ``COLLECTIVE_...`` variable is unknown or has a value that is not allowed.
    """
    global _world
    if _world:
        return
    chosen = settings.from_environment(os.environ)
    launch = launched.detect(os.environ)
    # The backend has things to say while it starts, before it knows its rank for sure.
    launched_as = f"process {launch.rank} of {launch.size}" if launch else "this process"
    log.configure(chosen.log_level, launched_as)
    link.connect(chosen.monitor, launched_as, launch.rank if launch else None)
    # What goes wrong on one rank in the midst of it would leave the others waiting there.
    undo = crash.end_job_on_exception(launched_as, start.abort_mpi)
    backend = start.start(chosen, launch, os.environ, comm)
    undo()
    global_process_set.mpi_comm = comm if hasattr(comm, "Get_group") else None
    _world = World(backend, chosen, _begin(backend, chosen), Registry(backend))
    if backend.is_newcomer:
        _world.sets.keep((), before=-1)
    atexit.register(_shutdown_at_exit)
    # Horovod's core reads its own variable.
    theirs = backend.name == "horovod" and chosen.timeline == os.environ.get("HOROVOD_TIMELINE")
    timeline.begin(backend.topology.rank, "" if theirs else chosen.timeline, chosen.timeline_mark_cycles > 0)
    if process_sets is None or isinstance(process_sets, str):
        return
    try:
        for process_set in process_sets:
            (_world.sets.adopt if backend.is_newcomer else _world.sets.add)(process_set)
    except ArgumentError:  # the same on all ranks, as the sets are
        shutdown()
        raise


def shutdown() -> None:
    """Leave the job; called by all ranks, or by none: the end of the process does it as well. ``init`` works again.

    Raises:
        MismatchError: when another rank is in the middle of an operation.
        TransportError: when this rank has given up waiting for others; the end of its process ends the job.
    """
    global _world
    if not _world or _is_child:
        return
    world, _world = _world, None
    atexit.unregister(_shutdown_at_exit)
    world.undo_crash_hook()
    timeline.end()
    try:
        # Process sets first; the set of all ranks is the first that was made.
        for process_set in reversed([*world.sets]):
            ending = process_set.backend
            process_set.forget()
            if ending:
                ending.shutdown()
    except TransportError:
        # Ranks that come later would wait for ever, in the middle of an operation that this one has given up.
        atexit.register(world.backend.abort, 1)
        raise
    link.tell("left")
    if world.chosen.completion_file and world.backend.topology.rank == 0:
        Path(world.chosen.completion_file).touch()


def recover(ranks: int | None = None) -> None:
    """Go on with the ranks that are left of an elastic job; called by all of them, after ``RanksLostError`` or at will.

    They keep their order, and ranks that are started in the place of those lost come last: rank 0 is one that was
    there. Process sets of which all ranks are left go on; others are forgotten. What was under way, in any set, fails.

    Args:
        ranks: With this many, new ones included; None: with as many as before, or fewer if ``COLLECTIVE_MIN_RANKS``
            allows that.

    Raises:
        ArgumentError: when the job is not elastic (``collective run --elastic``).

    Cost:
        Milliseconds inside a host, tenths of a second across; with new ranks, the time that they take to start.
    """
    world = _joined("recover")
    for process_set in world.sets:
        if process_set.backend:
            process_set.backend.give_up()
    before, (_, *known) = rank(), world.sets
    backend = world.backend.recover(ranks)
    world.undo_crash_hook()
    world.backend, world.undo_crash_hook = backend, _begin(backend, world.chosen)
    world.sets = Registry(backend)
    world.sets.keep(known, before)


def is_lost() -> bool:
    """Tell whether an operation of an elastic job has ended in the middle, so that nothing works before ``recover``."""
    return _world is not None and any(each.backend and each.backend.is_lost for each in _world.sets)


def is_initialized() -> bool:
    """Tell whether this process is in a job: ``init`` was called and ``shutdown`` was not."""
    return _world is not None


def skips_steps() -> bool:
    """Tell whether optimizers leave out steps that aren't finite: ``COLLECTIVE_CHECK_FINITE=skip``."""
    return _world is not None and _world.chosen.check_finite == "skip"


def refuses_infinite() -> bool:
    """Tell whether reduced values that aren't finite are an error: ``COLLECTIVE_CHECK_FINITE=raise``."""
    return _world is not None and _world.chosen.check_finite == "raise"


def add_process_set(process_set: ProcessSet | Sequence[int]) -> ProcessSet:
    """Register a process set; called by all ranks, also by those that are not in it, in the same order.

    Args:
        process_set: The set, or its ranks. Of communicators each rank gives its own, and each different one
            becomes a set.

    Returns:
        The set, whose ``process_set_id`` is the same on all ranks: the lowest that is free.

    Raises:
        ArgumentError: when there is a set of these ranks already, or one of them is no rank.
        MismatchError: on every rank, when the ranks differ.

    Cost:
        A few messages; inside a host, shared memory of some MiB for the set.
    """
    return _able_to("add_process_set").sets.add(process_set)


def remove_process_set(process_set: ProcessSet) -> bool:
    """Forget a process set; called by all ranks.

    Returns:
        Whether it was registered; the set of all ranks can't be removed.
    """
    return _able_to("remove_process_set").sets.remove(process_set)


def process_sets() -> dict[int, ProcessSet]:
    """The registered process sets by their number, that of all ranks first."""
    return _joined("").sets.by_number()


def backend(operation: str = "") -> Backend:
    """What carries the data of the job.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``; it names ``operation``.
    """
    return _joined(operation).backend


def begin(operation: str, name: str | None = None, process_set: ProcessSet | None = None) -> tuple[Backend, str]:
    """Begin an operation: the backend that carries it out, and its name; a number if the user gave none.

    Raises:
        ArgumentError: when this rank is not in the process set.
        NotInitializedError: before ``init`` or after ``shutdown``, when the process set is not registered, or in a
            process that a rank has forked.
    """
    if not _world or _is_child:
        _able_to(operation)
    members = process_set or global_process_set
    backend = members.backend
    if backend is None:
        raise _not_a_member(operation, members)
    # One counter for all operations, named or not: after a mismatch, in which ranks called different ones, it agrees.
    number = next(members.numbers)
    return backend, name or f"#{number}"


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


def _begin(backend: Backend, chosen: settings.Settings) -> Callable[[], None]:
    """Make this process's place in the job known, and its crashes; returns what undoes the latter."""
    place = backend.topology
    log.configure(chosen.log_level, place.where)
    link.tell("joined", rank=place.rank, size=place.size)
    alone = place.size == 1 and not backend.is_elastic
    return (lambda: None) if alone else crash.end_job_on_exception(place.where, backend.abort)


def check_registered(process_set: ProcessSet, operation: str) -> None:
    """Refuse a process set that the job doesn't know; for what is built before it runs.

    Raises:
        NotInitializedError: it names ``operation``.
    """
    if _world and process_set not in _world.sets:
        raise NotInitializedError(
            "a process set is registered before it is used",
            received=f"process_set={process_set}",
            fix="Call add_process_set on all ranks, again if ranks of it were lost",
            operation=operation,
            where=topology().where,
        )


def _not_a_member(operation: str, process_set: ProcessSet) -> ArgumentError:
    check_registered(process_set, operation)
    return ArgumentError(
        "an operation in a process set is called by its ranks",
        received=f"process_set={process_set}",
        fix="Ask process_set.included() first",
        operation=operation,
        where=topology().where,
    )


def _become_child() -> None:
    """After a fork: leave the job to the parent. Its messages, its end and its errors are none of the child's."""
    global _is_child
    if _world:
        _is_child = True
        atexit.unregister(_shutdown_at_exit)
        _world.undo_crash_hook()


os.register_at_fork(after_in_child=_become_child)


def _able_to(operation: str) -> World:
    """The job, for a process that is one of its ranks."""
    if _is_child:
        raise NotInitializedError(
            "operations are called by ranks, and a process that was forked from one is none",
            received=f"process {os.getpid()}, forked",
            fix="Hand the result to the parent and call it there, or start the process by multiprocessing's 'spawn'",
            operation=operation,
            where=f"a child of {topology().where}",
        )
    return _joined(operation)


def _joined(operation: str) -> World:
    if not _world:
        raise NotInitializedError(
            "a process joins the job before it asks for ranks or operations",
            fix="Call collective.init() first, on all ranks",
            operation=operation,
        )
    return _world


def _shutdown_at_exit() -> None:
    """Leave with the others, or end the job: a rank that exits early must not let them wait."""
    ending = backend()
    try:
        shutdown()
    except (MismatchError, TransportError) as error:
        crash.report(ending.topology.where, f"this rank came to its end before the others: {error.received}")
        ending.abort(1)
