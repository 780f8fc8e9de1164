"""Measure, when a job starts, which all-reduce is the fastest for which size.

It differs by library, host and number of ranks, and with it where one overtakes the other: a constant would be wrong
somewhere. The result is kept in the user's cache, so that a job that runs again chooses again alike and gets the same
bits: the sum of three floats depends on their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np

from collective.algorithms import choice, exchange, native
from collective.algorithms.choice import EXCHANGE, LARGE, NATIVE
from collective.engine.fusion import Layout
from collective.engine.matching import agree, gather_counts, gather_texts
from collective.engine.ways import Alone, Exchanged, Resources, Way
from collective.reduce_ops import Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport

Crossovers = list[tuple[int, str]]
# The probe ends when the algorithm for large arrays has won twice, or after this time: a start must not be felt.
SECONDS = 0.04
THOROUGH_SECONDS = 5.0
SIZES = tuple(256 * 4**power for power in range(8))
# What most machines find, for sizes that a busy one doesn't come to in time.
USUAL = 64 * 1024
FEWEST, MOST = 3, 15


def crossovers(resources: Resources, place: str, thorough: bool = False) -> Crossovers:
    """Up to how many bytes which algorithm is the fastest, in ascending order; beyond the last it is the large one.

    Called by all ranks, and all get the same.

    Args:
        resources: What the algorithms use.
        place: What the result depends on: the host, the MPI library, the number of ranks and hosts.
        thorough: Measure anew and take seconds for it.

    Returns:
        What rank 0's cache says for ``place``; else what was measured, and is kept there.
    """
    transport = resources.transport
    small = resources.settings.small_bytes
    if small >= 0:
        return [(small, NATIVE), (exchange.LARGEST, EXCHANGE)]
    kept = _kept().get(place) if transport.rank == 0 and not thorough else None
    table = json.loads(gather_texts(transport, json.dumps(kept))[0])
    if table is None:
        table = measured(resources, THOROUGH_SECONDS if thorough else SECONDS)
        if transport.rank == 0:
            _keep(place, table)
    return table


def measured(resources: Resources, seconds: float) -> Crossovers:
    """Race the algorithms over sizes from 256 bytes to 4 MiB; it takes ``seconds``, or one race more."""
    started = time.perf_counter()
    table: Crossovers = []
    won = 0
    for size in SIZES:
        names, times, elapsed = _race(resources, size, seconds, started)
        fastest = names[int(np.argmin(times))]
        won = won + 1 if fastest == LARGE else 0
        if fastest != LARGE:
            table.append((size, fastest))
        if won == 2:  # a single win may be the machine's doing
            break
        if elapsed > seconds:
            table.append((max(size, USUAL), fastest))
            break
    return _joined(table)


def _joined(table: Crossovers) -> Crossovers:
    """Only the last of neighbours with the same algorithm."""
    return [row for row, after in zip(table, [*table[1:], (0, "")], strict=True) if row[1] != after[1]]


def _race(resources: Resources, size: int, seconds: float, started: float) -> tuple[list[str], np.ndarray, float]:
    """Names, least seconds of each on the slowest rank, and the seconds since ``started``."""
    transport = resources.transport
    ways = _contenders(resources, size)
    array = np.zeros(size // 4, np.float32)
    (first,) = _slowest(transport, sum(_seconds(transport, way, array) for way in ways.values()))
    rounds = max(FEWEST, min(MOST, int(seconds / len(SIZES) / first)))
    # In turns, so that what else the machine does disturbs all; and that only ever adds.
    times = np.min([[_seconds(transport, way, array) for way in ways.values()] for _ in range(rounds)], axis=0)
    *slowest, elapsed = _slowest(transport, *times, time.perf_counter() - started)
    return list(ways), np.array(slowest), elapsed


def _contenders(resources: Resources, size: int) -> dict[str, Way]:
    reduction = reduction_for(Sum, np.dtype(np.float32), resources.transport.size)
    ways: dict[str, Way] = {LARGE: Alone(resources, choice.large, reduction)}
    if resources.transport.native:
        ways[NATIVE] = Alone(resources, native.all_reduce, reduction)
    if resources.transport.shared and size <= exchange.LARGEST:
        ways[EXCHANGE] = Exchanged(resources, Layout([(size // 4,)], reduction.dtype), reduction, in_place=True)
    return ways


def _seconds(transport: Transport, way: Way, array: np.ndarray) -> float:
    """How long a way takes, with the agreement without which nothing runs."""
    agree(transport, 0)  # begin together
    start = time.perf_counter()
    way.publish([array])
    agree(transport, 0)
    way.run([array], False)
    return time.perf_counter() - start


def _slowest(transport: Transport, *seconds: float) -> list[float]:
    nanoseconds = [gather_counts(transport, int(second * 1e9)) for second in seconds]
    return [float(counts.max()) / 1e9 for counts in nanoseconds]


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collective" / "crossovers.json"


def _kept() -> dict[str, Crossovers]:
    """What earlier jobs found; a file that can't be read says nothing."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError):
        known = {NATIVE: NATIVE, EXCHANGE: EXCHANGE}
        kept = json.loads(_file().read_text()).items()
        return {place: [(int(limit), known[name]) for limit, name in table] for place, table in kept}
    return {}


def _keep(place: str, table: Crossovers) -> None:
    """Remember a result; a cache that can't be written is none."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({**_kept(), place: table}, indent=1))
        scratch.replace(file)
