"""The control plane: what it costs to agree, and what an engine and a waiting rank take from the cores.

An all-reduce of one element is all agreement; what is left when the MPI library's own is taken off is what ours adds.
Calls follow each other, as they do in a step, in blocks: one alone would pay for how the ranks come out of a barrier.
Peers run in processes of their own, so that no other's threads are counted as theirs.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

import collective
from collective import world
from collective.algorithms import resident
from collective.bench.contenders import CONTENDERS, OURS, PACKAGES
from collective.bench.measure import Call as Timed
from collective.bench.measure import from_all_ranks, measure, summarize
from collective.bench.rows import Progress, Row
from collective.bench.subject import Events, Subject
from collective.bench.units import microseconds
from collective.engine import matching
from collective.engine.calls import Call, digest
from collective.reduce_ops import Sum

TABLE = "one small operation, and what waiting takes"
BARRIER = "barrier"
ONE_ELEMENT = "all-reduce of 1 element"
MEETING = "the ranks meet at flags in shared memory"
AGREEMENT = "the same, and agree on a call"
IDLE = "CPU of a second with nothing to do"
LATE = "CPU while another rank is a second late"
SECONDS = 1.0
PAUSE = 1.0
TIMES = 3
BLOCK = 100


def measure_all(arguments: argparse.Namespace, names: Sequence[str]) -> Events:  # noqa: ARG001
    """Measure all four rows; called by all ranks."""
    collective.init()
    reduces = {name: _one_element(name) for name in names}
    yield Progress(f"{BARRIER}, {', '.join(names)}", 1, 4)
    barriers = _barriers(names)
    if barriers:
        yield Row(TABLE, BARRIER, *measure(_blocks(barriers), SECONDS))
    yield Progress(f"{ONE_ELEMENT}, {', '.join(names)}", 2, 4)
    yield Row(TABLE, ONE_ELEMENT, *measure(_blocks(reduces), SECONDS))
    if OURS in names:
        yield from (Row(TABLE, label, *measure(_blocks({OURS: meet}), SECONDS)) for label, meet in _meetings().items())
    yield Progress(f"{IDLE}, {', '.join(names)}", 3, 4)
    # The processes' own, whoever's threads are in them.
    yield _cpu_row(IDLE, {names[0]: lambda: None}, late_rank=None)
    yield Progress(f"{LATE}, {', '.join(names)}", 4, 4)
    yield _cpu_row(LATE, reduces, late_rank=0)


def _one_element(name: str) -> Callable[[], object]:
    contender = CONTENDERS[name]()
    array = contender.make(1, np.dtype(np.float32))
    array[:] = 1
    return lambda: contender.all_reduce(array)


def _barriers(names: Sequence[str]) -> dict[str, Callable[[], object]]:
    barriers: dict[str, Callable[[], object]] = {}
    if OURS in names:
        barriers[OURS] = collective.barrier
    if "mpi" in names:
        from collective.transport.mpi import MPI

        barriers["mpi"] = MPI.COMM_WORLD.Barrier
    return barriers


def _meetings() -> dict[str, Callable[[], object]]:
    """What an operation begins with inside a host, without and with the word that tells what is called."""
    from collective.backends.mpi import MpiBackend

    backend = world.backend()
    if not isinstance(backend, MpiBackend) or not backend.transport.shared:
        return {}
    tell, call = matching.teller(backend.transport), Call("allreduce", op=Sum)
    meet = functools.partial(resident.meet, backend.transport.shared)
    return {MEETING: meet, AGREEMENT: lambda: matching.compare(tell(digest(call, "loss"), None))}


def _blocks(calls: Mapping[str, Callable[[], object]]) -> list[Timed]:
    return [Timed(name, call, times=BLOCK) for name, call in calls.items()]


def _cpu_row(label: str, calls: dict[str, Callable[[], object]], late_rank: int | None) -> Row:
    """CPU seconds of the rank that uses most, while ``late_rank`` (None: every rank) sleeps before it calls."""
    seconds = np.zeros((TIMES, len(calls), 2))
    for number in range(TIMES):
        for place, call in enumerate(calls.values()):
            collective.barrier()
            cpu = time.process_time()
            if late_rank in (None, world.rank()):
                time.sleep(PAUSE)
            call()
            seconds[number, place] = time.process_time() - cpu
    return Row(TABLE, label, TIMES, summarize(list(calls), from_all_ranks(seconds)))


def cells(row: Row, arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:  # noqa: ARG001
    """Microseconds, or the part of a core; and what ours takes longer than MPI's own."""
    text = _part_of_a_core if row.label in (IDLE, LATE) else _microseconds
    told = {"": row.label} | {name: text(row.values[name].median) if name in row.values else "" for name in names}
    if {OURS, "mpi"} <= set(names):
        both = {OURS, "mpi"} <= set(row.values) and text is _microseconds
        told["collective - mpi"] = text(row.values[OURS].median - row.values["mpi"].median) if both else ""
    return told


def _microseconds(seconds: float) -> str:
    return f"{microseconds(seconds)} us"


def _part_of_a_core(seconds: float) -> str:
    return f"{seconds / PAUSE:.1%} of a core"


SUBJECT = Subject(
    title="Control plane",
    measure=measure_all,
    cells=cells,
    contenders={name: PACKAGES.get(name, "") for name in (OURS, "mpi", "horovod", "gloo")},
    usual=(OURS, "mpi", "horovod", "gloo"),
    job_of=lambda name: OURS if name == "mpi" else name,
)
