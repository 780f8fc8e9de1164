"""What carries the data of a job: the interface of the MPI, Horovod and solo backends."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from collective.reduce_ops import ReduceOp
from collective.topology import Topology


class Backend(abc.ABC):
    """Collective operations on NumPy arrays that the front ends have already checked.

    Every array given is C-contiguous, in native byte order, of a dtype in ``collective.dtypes``, and writable where
    the operation works in place. Every method but ``abort`` is called by all ranks in the same order, from one thread
    at a time. ``name`` is the user's name for the operation or one made from a counter, the same on all ranks.
    """

    name: str
    topology: Topology

    @abc.abstractmethod
    def allreduce(self, arrays: Sequence[np.ndarray], op: ReduceOp, name: str) -> None:
        """Reduce each array over all ranks, in place; the results are equal on all ranks to the bit."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, name: str) -> np.ndarray:  # noqa: ARG002
        """A new array, in memory that the ranks of a host share if the backend has such."""
        return np.empty(shape, dtype)

    @abc.abstractmethod
    def allgather(self, array: np.ndarray, name: str) -> np.ndarray:
        """Concatenate the ranks' arrays along axis 0, in rank order; the first dimensions may differ."""

    @abc.abstractmethod
    def broadcast(self, arrays: Sequence[np.ndarray], root: int, name: str) -> None:
        """Overwrite each array with the root's, in place."""

    @abc.abstractmethod
    def reducescatter(self, array: np.ndarray, op: ReduceOp, name: str) -> np.ndarray:
        """Reduce and return this rank's rows of axis 0; the first ``rows % size`` ranks get one row more."""

    @abc.abstractmethod
    def alltoall(self, array: np.ndarray, splits: Sequence[int], name: str) -> tuple[np.ndarray, np.ndarray]:
        """Send ``splits[r]`` rows of axis 0 to each rank r; return the rows received and how many came from each."""

    @abc.abstractmethod
    def barrier(self, name: str) -> None:
        """Return once every rank has called it."""

    def refuse(self, operation: str, reason: str) -> None:  # noqa: B027  # not every backend can tell the others
        """Tell the ranks that wait in ``operation`` that this one can't take part, so that they raise as well."""

    @abc.abstractmethod
    def shutdown(self) -> None:
        """Leave the job in good order; called by all ranks."""

    @abc.abstractmethod
    def abort(self, status: int) -> None:
        """End the processes of all ranks with exit status ``status``; called by the rank that failed, alone."""
