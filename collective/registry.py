"""Which process sets a job has: every rank has the same ones under the same numbers, and all register them together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from collective.backends.base import Backend
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set


class Registry:
    """The process sets of a job by their number, that of all ranks first.

    Args:
        everyone: Carries the operations of all ranks.
    """

    def __init__(self, everyone: Backend) -> None:
        self._everyone = everyone
        self._sets: dict[int, ProcessSet] = {}
        self._register(global_process_set, range(everyone.topology.size), everyone)

    def __iter__(self) -> Iterator[ProcessSet]:
        return iter(self._sets.values())

    def by_number(self) -> dict[int, ProcessSet]:
        """All of them."""
        return dict(self._sets)

    def add(self, given: ProcessSet | Sequence[int]) -> ProcessSet:
        """See ``world.add_process_set``."""
        members = _as_set(given)
        for each in [members] if members.mpi_comm is None else self._of_communicators(members):
            self._add(each)
        return members

    def remove(self, process_set: ProcessSet) -> bool:
        """See ``world.remove_process_set``."""
        number = process_set.process_set_id
        if not number or self._sets.get(number) is not process_set:
            return False
        self._everyone.barrier(_name()).wait()
        ending = process_set.backend
        del self._sets[number]
        process_set.forget()
        if ending:
            ending.shutdown()
        return True

    def keep(self, known: Sequence[ProcessSet], before: int) -> None:
        """Register those sets anew of which all ranks are left; called by all ranks of a job that goes on.

        Args:
            known: This rank's sets; a newcomer has none, and learns from rank 0 which there are.
            before: This rank's number in the job that they were sets of; -1: it is a newcomer.
        """
        own = {each.process_set_id: each for each in known}
        numbers = self._everyone.allgather(np.full(1, before), _name()).wait().tolist()
        table = _table(known, numbers) if self._everyone.topology.rank == 0 else _table((), numbers)
        for number, *members in self._everyone.allgather(table, _name()).wait().tolist():
            ranks = np.flatnonzero(members).tolist()
            part = self._everyone.subset(ranks, _name()).wait()
            self._register(own.pop(number, ProcessSet(ranks)), ranks, part, number)
        for process_set in own.values():
            process_set.forget()

    def adopt(self, given: ProcessSet | Sequence[int]) -> None:
        """On a newcomer: take the user's object for a set that the job has; others it can't register alone."""
        wanted = _as_set(given)
        for number, known in self.by_number().items():
            if number and known.ranks == wanted.ranks:
                self._register(wanted, known.ranks or (), known.backend, number)

    def _of_communicators(self, own: ProcessSet) -> list[ProcessSet]:
        """One set for each of the different communicators that the ranks have given."""
        own.ranks = self._everyone.ranks_of(own.mpi_comm)
        mine = np.zeros((1, self._everyone.topology.size), np.uint8)
        mine[0, own.ranks] = 1
        everyone = self._everyone.allgather(mine, _name()).wait()
        different = dict.fromkeys(tuple(np.flatnonzero(row).tolist()) for row in everyone)
        return [own if list(ranks) == own.ranks else ProcessSet(ranks) for ranks in different]

    def _add(self, members: ProcessSet) -> None:
        """Register a set of ranks."""
        name, place = _name(), self._everyone.topology
        ranks = members.ranks or []
        known = [other for other in self if other.ranks == ranks]
        if known or members.process_set_id is not None or not ranks or ranks[0] < 0 or ranks[-1] >= place.size:
            error = ArgumentError(
                f"a process set is some of the ranks from 0 to {place.size - 1}, and none like it is registered",
                received=f"ranks={ranks}" + (f", known as {known[0]}" if known else ""),
                fix="Use the one that is known, or remove it first" if known else "",
                operation="add_process_set",
                where=place.where,
            )
            self._everyone.refuse("add_process_set", name, str(error))
            raise error
        self._register(members, ranks, self._everyone.subset(ranks, name).wait())

    def _register(
        self, process_set: ProcessSet, ranks: Sequence[int], backend: Backend | None, number: int | None = None
    ) -> None:
        if number is None:
            number = next(number for number in itertools.count() if number not in self._sets)
        process_set.register(number, ranks, backend)
        self._sets[number] = process_set


def _as_set(given: ProcessSet | Sequence[int] | Any) -> ProcessSet:
    return given if isinstance(given, ProcessSet) else ProcessSet(given)


def _name() -> str:
    """A name for the next operation of all ranks."""
    return f"#{next(global_process_set.numbers)}"


def _table(process_sets: Sequence[ProcessSet], numbers: Sequence[int]) -> np.ndarray:
    """The process sets of which all ranks are left when a job goes on with others.

    Args:
        process_sets: Registered ones.
        numbers: Which number each of the job's ranks had before; -1: it is new.

    Returns:
        int64[sets, 1 + ranks]: its number, then 1 for each rank that is in it and 0 for each other.
    """
    whole = [each for each in process_sets if set(each.ranks or []) <= set(numbers)]
    rows = [[each.process_set_id, *np.isin(numbers, each.ranks or [])] for each in whole]
    return np.array(rows, np.int64).reshape(-1, 1 + len(numbers))
