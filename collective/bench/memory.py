"""The memory that an all-reduce of 100 MiB of gradients takes on a rank beside the gradients themselves.

Pages that the ranks of a host share count on each as its part of them (Linux's "proportional set size"). What the
interpreter, NumPy and MPI take is there before and is not counted; the rise from there on is, from ``collective.init``.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import collective
from collective.bench.contenders import OURS
from collective.bench.measure import from_all_ranks, summarize
from collective.bench.rows import Progress, Row
from collective.bench.subject import Events, Subject
from collective.bench.units import mebibytes, ratio
from collective.errors import ArgumentError
from collective.reduce_ops import Sum

ARRAYS, ARRAY_BYTES = 100, 2**20
TABLE = "100 MiB of gradients, in 100 arrays"
TIMES = 5
MAPS = Path("/proc/self/smaps_rollup")
SAMPLE_SECONDS = 0.001
AT_REST, HIGHEST = "after init", "most, less the gradients"


def measure_all(arguments: argparse.Namespace, names: Sequence[str]) -> Events:  # noqa: ARG001
    """Measure one way to reduce, in processes that have done nothing yet; called by all ranks."""
    (name,) = names
    if not MAPS.exists():
        raise ArgumentError("memory is measured on Linux", received=f"no {MAPS}")
    from collective.transport.mpi import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()
    before = proportional_bytes()
    collective.init()
    yield Progress(name, 1, 1)
    at_rest = proportional_bytes() - before
    gradients = [np.ones(ARRAY_BYTES // 4, np.float32) for _ in range(ARRAYS)]
    reduce = WAYS[name](gradients)
    with highest() as peak:
        for _ in range(TIMES):
            reduce()
    beside = peak() - before - ARRAYS * ARRAY_BYTES
    for label, size in ((AT_REST, at_rest), (HIGHEST, beside)):
        own = np.array([[[size, 0.0]]])
        yield Row(TABLE, label, 1, summarize([name], from_all_ranks(own)), {"gradients": ARRAYS * ARRAY_BYTES})


def ordinary(gradients: list[np.ndarray]) -> Callable[[], object]:
    """Reduce the gradients where they are."""
    return lambda: collective.grouped_allreduce(gradients, Sum, out=gradients)


def resident(gradients: list[np.ndarray]) -> Callable[[], object]:
    """Copy the gradients into shared memory and reduce them there, as the front ends do."""
    flat = collective.empty(sum(gradient.size for gradient in gradients))

    def reduce() -> None:
        np.concatenate(gradients, out=flat)
        collective.allreduce(flat, Sum, out=flat)

    return reduce


WAYS: dict[str, Callable[[list[np.ndarray]], Callable[[], object]]] = {OURS: ordinary, "resident": resident}


def proportional_bytes() -> int:
    """Memory of this process, of shared pages its part."""
    lines = MAPS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@contextlib.contextmanager
def highest() -> Iterator[Callable[[], int]]:
    """Watch this process's memory; what is yielded tells the most so far."""
    seen = [proportional_bytes()]
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(max(seen[-1], proportional_bytes()))
            time.sleep(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(*seen, proportional_bytes())
    finally:
        over.set()
        watcher.join()


def cells(row: Row, arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:  # noqa: ARG001
    """MiB, and how many times the gradients that is."""
    told = {"on a rank": row.label}
    told |= {f"{name}, MiB": mebibytes(row.values[name].median) for name in names}
    return told | {f"{name} / gradients": ratio(row.values[name].median, row.details["gradients"]) for name in names}


SUBJECT = Subject(
    title="Memory",
    measure=measure_all,
    cells=cells,
    contenders=dict.fromkeys(WAYS, ""),
    usual=tuple(WAYS),
    job_of=lambda name: name,
)
