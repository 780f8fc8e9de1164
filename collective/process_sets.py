"""Some of a job's ranks as a set in which operations run, side by side with those of other sets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from collective.backends.base import Backend


class ProcessSet:
    """Ranks of the job between which an operation runs that gets ``process_set=``.

    It means nothing before it is registered: by ``init(process_sets=[...])`` or by ``add_process_set``.

    Args:
        ranks_or_comm: The ranks, in any order, or an mpi4py communicator.

    Attributes:
        process_set_id: Its number in the job, 0 for the set of all ranks; None: not registered.
        ranks: Its ranks in the job, in order; None: those of ``mpi_comm``, not registered before.
        mpi_comm: The communicator given.
        backend: What carries its operations; None: this rank is not in it.
        numbers: Names of its operations without a name.
    """

    def __init__(self, ranks_or_comm: Sequence[int] | Any) -> None:
        self.process_set_id: int | None = None
        self.ranks: list[int] | None = None
        self.mpi_comm: Any = None
        if hasattr(ranks_or_comm, "Get_group"):
            self.mpi_comm = ranks_or_comm
        else:
            self.ranks = sorted(set(ranks_or_comm))
        self.backend: Backend | None = None
        self.numbers: Iterator[int] = itertools.count(1)

    def size(self) -> int | None:
        """Number of its ranks; None: not registered."""
        return None if self.process_set_id is None or self.ranks is None else len(self.ranks)

    def rank(self) -> int | None:
        """Number of this process among them; None: not registered, or not one of them."""
        return self.backend.topology.rank if self.backend else None

    def included(self) -> bool | None:
        """Whether this process is one of them; None: not registered."""
        return None if self.process_set_id is None else self.backend is not None

    def register(self, process_set_id: int, ranks: Sequence[int], backend: Backend | None) -> None:
        """Make it known in the job; for ``world``."""
        self.process_set_id, self.ranks, self.backend = process_set_id, list(ranks), backend
        self.numbers = itertools.count(1)

    def forget(self) -> None:
        """Undo ``register``."""
        self.process_set_id = self.backend = None

    def __repr__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, mpi_comm={self.mpi_comm})"


global_process_set = ProcessSet([])
