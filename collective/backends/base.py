"""What carries the data of a job: the interface of the MPI, Horovod and solo backends."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, Protocol

import numpy as np

from collective import timeline
from collective.errors import ArgumentError
from collective.reduce_ops import ReduceOp
from collective.topology import Topology

Arguments = ParamSpec("Arguments")


class Operation(Protocol):
    """An operation that a backend has been told of. It is begun once: by ``start``, or by ``wait``."""

    def start(self) -> None:
        """Begin it and return at once, if the backend can; buffers are not to be touched before its end."""

    def wait(self) -> Any:
        """Return its result once it is there. Raises what went wrong."""

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""


class Backend(abc.ABC):
    """Collective operations on NumPy arrays that the front ends have already checked.

    Every array given is C-contiguous, in native byte order, of a dtype in ``collective.dtypes``, and writable where
    the operation works in place. Every method but ``abort`` is called by all ranks. ``name`` is the user's name for the
    operation or one made from a counter, by which the ranks' calls are matched.

    Attributes:
        name: What users call it.
        topology: This process's place.
        is_elastic: Whether ``recover`` goes on without ranks that have died.
        is_newcomer: Whether this process came when the job was under way.
    """

    name: str
    topology: Topology
    is_elastic: bool = False
    is_newcomer: bool = False

    @abc.abstractmethod
    def allreduce(
        self,
        arrays: Sequence[np.ndarray],
        op: ReduceOp,
        name: str,
        in_place: bool,
        wire: np.dtype | None = None,
        note: str = "",
    ) -> Operation:
        """Reduce each array over all ranks; the results, a list, are equal on all ranks to the bit.

        ``in_place``: they overwrite the arrays; else the arrays are only read, and the results are new. ``wire``: the
        dtype floats have on the wire, where the backend can. ``note``: what else has to be the same on all ranks.
        """

    def allreduce_again(
        self,
        arrays: Sequence[np.ndarray],  # noqa: ARG002
        op: ReduceOp,  # noqa: ARG002
        name: str,  # noqa: ARG002
        in_place: bool,  # noqa: ARG002
    ) -> Operation | None:
        """``allreduce`` of arrays; None: none of their dtypes and shapes were reduced like this before.

        It has been checked of them only that they are contiguous and aligned, and writable if they are overwritten:
        those before have passed the rest. To check and to plan takes longer than to reduce small ones.
        """
        return None

    @abc.abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> Operation:
        """Make an array, in memory that the ranks of a host share if the backend has such."""

    @abc.abstractmethod
    def allgather(self, array: np.ndarray, name: str) -> Operation:
        """Concatenate the ranks' arrays along axis 0, in rank order; the first dimensions may differ."""

    @abc.abstractmethod
    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> Operation:
        """Overwrite each array with the root's, in place; the result is the list of arrays."""

    @abc.abstractmethod
    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str, note: str = "") -> Operation:
        """Reduce; the result is this rank's rows of axis 0. The first ``rows % size`` ranks get one row more.

        The array given is left with partial results.
        """

    @abc.abstractmethod
    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> Operation:
        """Send ``splits[r]`` rows of axis 0 to each rank r; the result: the rows received, how many came from each."""

    @abc.abstractmethod
    def barrier(self, name: str) -> Operation:
        """End once every rank has called it."""

    def join(self, name: str) -> Operation:  # noqa: ARG002
        """Let the other ranks go on without this one's data; the result is the last rank to join."""
        raise self._lacks("join")

    def subset(self, ranks: Sequence[int], name: str) -> Operation:  # noqa: ARG002
        """Make a backend for some of the ranks; the result is None on the others. ``ranks`` are in order."""
        raise self._lacks("process sets")

    def ranks_of(self, communicator: Any) -> list[int]:  # noqa: ARG002
        """The ranks that belong to an mpi4py communicator; not a collective operation."""
        raise self._lacks("process sets")

    def refuse(self, operation: str, name: str, reason: str) -> None:  # noqa: B027  # not every backend can tell the others
        """Tell the ranks that wait in ``operation`` that this one can't take part, so that they raise as well."""

    @property
    def is_lost(self) -> bool:
        """Whether an operation has ended in the middle, so that none works any more."""
        return False

    def give_up(self) -> None:
        """Let what other ranks wait for in vain fail there; called before ``recover``, in every process set."""
        raise self._lacks("recovery in place")

    def recover(self, ranks: int | None) -> Backend:  # noqa: ARG002
        """Go on with the ranks that are left; called by all of them, after ``give_up``.

        ``ranks``: with this number at least; None: with as many as before, or as the user's settings say.
        """
        raise self._lacks("recovery in place")

    def _lacks(self, what: str) -> ArgumentError:
        return ArgumentError(
            f"the {self.name} backend has no {what}",
            received=f"backend={self.name}",
            fix="Use the mpi backend: unset COLLECTIVE_BACKEND and start the job by collective run",
            where=self.topology.where,
        )

    @abc.abstractmethod
    def shutdown(self) -> None:
        """Leave the job in good order; called by all ranks."""

    @abc.abstractmethod
    def abort(self, status: int) -> None:
        """End the processes of all ranks with exit status ``status``; called by the rank that failed, alone."""


class Blocking:
    """An operation of a backend without an engine of its own: it is carried out where it is begun."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._ended = False
        self._result: Any = None
        self._error: Exception | None = None

    def start(self) -> None:
        """See ``Operation``; what goes wrong is raised by ``wait``."""
        try:
            self._result = self._function()
        except Exception as error:
            self._error = error
        self._ended = True

    def wait(self) -> Any:
        """See ``Operation``."""
        if not self._ended:
            self.start()
        if self._error:
            raise self._error
        return self._result

    def done(self) -> bool:
        """See ``Operation``."""
        return self._ended


def blocking(method: Callable[Arguments, Any]) -> Callable[Arguments, Operation]:
    """Make of a method that carries out an operation one that returns the operation."""

    @functools.wraps(method)
    def operation(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Operation:
        function = functools.partial(method, *args, **kwargs)
        return Blocking(_recorded(function, timeline.recorder) if timeline.recorder else function)

    return operation


def _recorded(function: functools.partial, recorder: timeline.Recorder) -> Callable[[], Any]:
    """The same function, telling the timeline: nobody is waited for that one could know of."""
    kind = function.func.__name__
    given = inspect.signature(function.func).bind(*function.args, **function.keywords).arguments
    row = timeline.row_of(kind, given["name"])
    arrays = [given["array"]] if "array" in given else given.get("arrays", ())

    def tell() -> Any:
        recorder.cycle()
        recorder.phase(row, f"NEGOTIATE_{kind.upper()}")
        recorder.phase(row, kind.upper())
        try:
            return function()
        finally:
            recorder.end(row, timeline.details((array.dtype, array.shape) for array in arrays))

    return tell
