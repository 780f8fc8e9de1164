"""Go on with the ranks that are left when one has died, as far as Open MPI 5 can: its "user level failure mitigation".

It sees the death of a process, one at a time: a second one in the midst of this is more than it survives. So every
stage has a time it may take, and what goes wrong in one ends this process by a signal, which the others see. Then the
job ends, and who supervises it starts it again.

Source: Bland, Bouteiller, Herault, Bosilca and Dongarra, "Post-failure recovery of MPI communication capability",
International Journal of High Performance Computing Applications 27(3), 2013.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from collective import crash, newcomer
from collective.errors import RanksLostError, TransportError
from collective.log import logger
from collective.monitor import activity, link
from collective.transport import mpi
from collective.transport.mpi import MPI

# What Open MPI's launcher tells the ranks of --with-ft ulfm.
ENABLED = "OMPI_MCA_mpi_ft_enable"
# How long a rank stays after it has left the job: to slower ones, whoever ends at once has died.
LINGER_SECONDS = 1.0
# By which Open MPI talks to its launcher.
LAUNCHERS_LIBRARY = "libpmix.so.2"

# What operations that failed have left behind: MPI may still write to their buffers, and read from them.
_left_behind: list[Any] = []


def is_possible(environment: Mapping[str, str]) -> bool:
    """Tell whether this MPI, as it was started, can do so."""
    return MPI.get_vendor()[0] == mpi.OPEN_MPI and environment.get(ENABLED, "").lower() in ("1", "true")


def explain(transport: mpi.MpiTransport, error: BaseException, operation: str, where: str) -> BaseException:
    """The error to raise when an operation has ended in the middle: other ranks will wait for this one in vain.

    They hear of it at once, as they wait, in whatever process set.
    """
    _left_behind.append([dict(frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__)])
    revoke(transport.communicator)
    revoke(transport.job.communicator)
    if not isinstance(error, (MPI.Exception, TransportError)):
        return error
    ranks = ", ".join(map(str, _failed(transport.job.communicator)))
    return RanksLostError(
        "all ranks of the job are there",
        received=f"no sign of life of rank {ranks}" if ranks else f"another rank has given up ({error})",
        fix="Train in a function wrapped by collective.common.elastic.run, which goes on without them",
        operation=operation,
        where=where,
        whom=getattr(error, "whom", ""),
    )


def revoke(communicator: MPI.Intracomm) -> None:
    """Let all that its ranks wait for fail."""
    with contextlib.suppress(MPI.Exception):
        communicator.Revoke()


def survivors(communicator: MPI.Intracomm) -> MPI.Intracomm:
    """The ranks that are left of a revoked communicator, in their order; called by all of them."""
    agreed = False
    while not agreed:
        # All that anyone knows of when they meet: a death that comes later, in Shrink, is more than it survives.
        communicator.Ack_failed(communicator.size)
        try:
            communicator.Agree(1)
            agreed = True
        except MPI.Exception as error:
            if error.Get_error_class() != MPI.ERR_PROC_FAILED:
                raise
    left = communicator.Shrink()
    assert isinstance(left, MPI.Intracomm)  # noqa: S101  # mpi4py's hints don't tell
    return _tried(left)


def replenished(communicator: MPI.Intracomm, hosts: Sequence[str]) -> MPI.Intracomm | None:
    """These ranks and more, with the highest numbers, which run the same program; called by all of these.

    Args:
        communicator: These ranks.
        hosts: Where each of the others is started.

    Returns:
        None: none could be started. A warning says why.
    """
    counts, told = Counter(hosts), link.told()
    own = {"wdir": os.getcwd()} | ({"PMIX_ENVAR": f"{link.VARIABLE}={told}"} if told else {})
    hints = [MPI.Info.Create({**own, "host": host}) for host in counts]
    program = ["-m", newcomer.__name__, *sys.orig_argv[1:]] if told else sys.orig_argv[1:]
    try:
        kinds = len(counts)
        started = communicator.Spawn_multiple([sys.executable] * kinds, [program] * kinds, [*counts.values()], hints)
    except MPI.Exception as error:
        if communicator.rank == 0:
            logger.warning("No ranks could be started in the place of those that are lost: %s", error)
        return None
    return _merged(started, is_newcomer=False)


def is_awaited() -> bool:
    """Tell whether this process was started by ``replenished``, and its job waits for it."""
    return not mpi.left and MPI.Comm.Get_parent() != MPI.COMM_NULL


def joined() -> MPI.Intracomm:
    """The ranks of the job that waits for this process, and this one; called by the newcomers."""
    return _merged(MPI.Comm.Get_parent(), is_newcomer=True)


@contextlib.contextmanager
def stage(what: str, seconds: float, where: str, whom: str = "") -> Iterator[None]:
    """End this process by a signal if ``what`` takes longer, or goes wrong.

    Args:
        what: In words that begin with "to".
        seconds: How long it may take.
        where: This rank.
        whom: The ranks that are known to be late; empty: none.
    """
    error = TransportError(f"{what} takes at most {seconds:g} s", where=where, whom=whom)
    late = threading.Timer(seconds, end_process, (f"{what} has taken more than {seconds:g} s", where, error))
    late.daemon, late.name = True, "collective-deadline"
    late.start()
    activity.waits[threading.get_ident()] = activity.Wait(what, time.perf_counter(), lambda: whom or "other ranks")
    try:
        yield
    except BaseException as wrong:
        end_process(f"{what} went wrong: {wrong}", where, wrong)
        raise
    finally:
        activity.waits.pop(threading.get_ident(), None)
        late.cancel()


def end_process(cause: str, where: str, error: BaseException | None = None) -> None:
    """End this process in a way that the others see: they would wait for one that exits, or that MPI aborts.

    Args:
        cause: Why, for the report; empty: it has been told.
        where: This rank.
        error: The exception, if it is one.
    """
    if cause:
        crash.report(where, cause, error)
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    """What the process does last, in place of MPI's own end, which may wait for the dead; its exit status stays."""
    time.sleep(LINGER_SECONDS)
    # The launcher calls it a failure when one that was started later ends without a word to it.
    with contextlib.suppress(OSError):
        ctypes.CDLL(LAUNCHERS_LIBRARY, mode=os.RTLD_NOLOAD).PMIx_Finalize(None, 0)
    if mpi.finalizes():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


# A forked child has no part in the job, and none of the threads that the launcher's library would wait for.
os.register_at_fork(after_in_child=lambda: atexit.unregister(leave))


def _failed(communicator: MPI.Intracomm) -> list[int]:
    with contextlib.suppress(MPI.Exception):
        return MPI.Group.Translate_ranks(communicator.Get_failed(), None, communicator.Get_group())
    return []


def _merged(between: MPI.Comm, is_newcomer: bool) -> MPI.Intracomm:
    assert isinstance(between, MPI.Intercomm)  # noqa: S101  # mpi4py's hints don't tell
    return _tried(between.Merge(is_newcomer))


def _tried(communicator: MPI.Intracomm) -> MPI.Intracomm:
    """A new communicator that works."""
    communicator.Set_errhandler(MPI.ERRORS_RETURN)
    ones = np.ones(1, np.int64)
    communicator.Allreduce(MPI.IN_PLACE, ones)
    if ones[0] != communicator.size:
        raise TransportError("the ranks that are left reach each other", received=f"sum={ones[0]}")
    return communicator
