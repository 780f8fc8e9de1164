"""Measure, when a job starts, which all-reduce is the fastest for which size.

It differs by library, host and number of ranks, and with it where one overtakes the other: a constant would be wrong
somewhere. The result is kept in the user's cache, so that a job that runs again chooses again alike and gets the same
bits: the sum of three floats depends on their order.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np

from collective.algorithms import choice, exchange
from collective.algorithms.choice import EXCHANGE, JOINED, LARGE, NATIVE
from collective.engine.fusion import Layout
from collective.engine.matching import BUSY, agree, gather_counts, gather_texts
from collective.engine.ways import IN_PLACE, NEW, Alone, Exchanged, Joined, Native, Resources, Way
from collective.reduce_ops import Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport

# For results that overwrite the arrays, and for new ones: up to how many bytes which algorithm; beyond, the large one.
Crossovers = dict[str, list[tuple[int, str]]]
# The probe is to take this long, and ends after twice as long with whatever it has: a start must not be felt.
SECONDS = 0.025
THOROUGH_SECONDS = 5.0
SIZES = tuple(256 * 4**power for power in range(7))
FEWEST, MOST = 3, 15
COPIED, NATIVE_NEW = "joined, and copied back", "native, to a new array"
# Of places in the cache; beyond, the oldest is forgotten. Clusters that name their hosts anew for every job have many.
MOST_KEPT = 100


def crossovers(resources: Resources, place: str, thorough: bool = False) -> Crossovers:
    """Up to how many bytes which algorithm is the fastest, in ascending order; called by all ranks, all get the same.

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
        return {key: [(small, NATIVE), (exchange.LARGEST, EXCHANGE)] for key in (IN_PLACE, NEW)}
    kept = _kept().get(place) if transport.rank == 0 and not thorough else None
    table = json.loads(gather_texts(transport, json.dumps(kept))[0])
    if table is None:
        table = measured(resources, THOROUGH_SECONDS if thorough else SECONDS)
        if transport.rank == 0:
            _keep(place, table)
    return table


def measured(resources: Resources, seconds: float) -> Crossovers:
    """Race the algorithms over sizes from 256 bytes to 1 MiB; it takes ``seconds``, at most twice that and a race."""
    started, elapsed = time.perf_counter(), 0.0
    most = int(MOST * seconds / SECONDS)
    races: list[dict[str, float]] = []
    for number, size in enumerate(SIZES):
        # What disturbed the races so far leaves less time for each of the others, not none for some.
        race, elapsed = _race(resources, size, most, (seconds - elapsed) / (len(SIZES) - number), started)
        races.append(race)
        if elapsed > 2 * seconds:
            break
    if not resources.transport.shared:
        return dict.fromkeys((IN_PLACE, NEW), _cut(races, LARGE))
    in_place = _cut(races, LARGE)
    larger = races[len(SIZES) - 2 :]  # those of 256 KiB and more, where bytes count
    if larger and sum(race[COPIED] / race[LARGE] for race in larger) < len(larger):
        in_place = [*_cut(races, COPIED), (SIZES[-1], JOINED)]
    return {IN_PLACE: in_place, NEW: _cut([race | {NATIVE: race[NATIVE_NEW]} for race in races], JOINED)}


def _cut(races: list[dict[str, float]], large: str) -> list[tuple[int, str]]:
    """Cut where the times of all sizes together are the least: what disturbs one race doesn't move the cut far."""
    small = [min((name for name in race if name in (NATIVE, EXCHANGE)), key=race.__getitem__) for race in races]
    # How much slower than the other each is, at every size.
    excess = [race[name] / race[large] for race, name in zip(races, small, strict=True)]
    costs = [sum(excess[:cut]) + sum(1 / ratio for ratio in excess[cut:]) for cut in range(len(races) + 1)]
    rows = list(zip(SIZES, small, strict=False))[: costs.index(min(costs))]
    # Of neighbours with the same algorithm only the last one counts.
    return [row for row, after in itertools.pairwise([*rows, (0, "")]) if row[1] != after[1]]


def _race(resources: Resources, size: int, most: int, seconds: float, started: float) -> tuple[dict[str, float], float]:
    """Least seconds of each contender in up to ``most`` rounds, on the slowest rank; and the seconds since ``started``.

    Cost: ``seconds``, or that of ``FEWEST`` rounds and a first one.
    """
    transport = resources.transport
    ways = _contenders(resources, size)
    array = np.zeros(size // 4, np.float32)
    (first,) = _slowest(transport, sum(_seconds(transport, way, array) for way in ways.values()))
    rounds = max(FEWEST, min(most, int(seconds / first)))
    # In turns, so that what else the machine does disturbs all; and that only ever adds.
    times = np.min([[_seconds(transport, way, array) for way in ways.values()] for _ in range(rounds)], axis=0)
    *slowest, elapsed = _slowest(transport, *times, time.perf_counter() - started)
    return dict(zip(ways, slowest, strict=True)), elapsed


def _contenders(resources: Resources, size: int) -> dict[str, Way]:
    transport = resources.transport
    reduction = reduction_for(Sum, np.dtype(np.float32), transport.size)
    layout = Layout([(size // 4,)], reduction.dtype)
    ways: dict[str, Way] = {
        LARGE: Alone(resources, choice.large, reduction),
        NATIVE: Native(resources, reduction, in_place=True),
    }
    if transport.shared:
        ways[JOINED] = Joined(resources, layout, reduction, in_place=False)
        ways[COPIED] = Joined(resources, layout, reduction, in_place=True)
        ways[NATIVE_NEW] = Native(resources, reduction, in_place=False)
        if resources.small is not None and size <= exchange.LARGEST:
            ways[EXCHANGE] = Exchanged(resources, layout, reduction, in_place=True)
    return ways


def _seconds(transport: Transport, way: Way, array: np.ndarray) -> float:
    """How long a way takes, with the agreement without which nothing runs."""
    agree(transport, 0)  # begin together
    start = time.perf_counter()
    busy = agree(transport, BUSY if way.publish([array]) else 0)
    way.run([array], busy > 0)
    return time.perf_counter() - start


def _slowest(transport: Transport, *seconds: float) -> list[float]:
    nanoseconds = [gather_counts(transport, int(second * 1e9)) for second in seconds]
    return [float(counts.max()) / 1e9 for counts in nanoseconds]


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collective" / "crossovers.json"


def _kept() -> dict[str, Crossovers]:
    """What earlier jobs found; a file that can't be read says nothing."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError):
        known = {name: name for name in (NATIVE, EXCHANGE, JOINED)}
        kept = json.loads(_file().read_text()).items()
        return {
            place: {key: [(int(limit), known[name]) for limit, name in table[key]] for key in (IN_PLACE, NEW)}
            for place, table in kept
        }
    return {}


def _keep(place: str, table: Crossovers) -> None:
    """Remember a result; a cache that can't be written is none."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        kept = _kept()
        kept.pop(place, None)  # the newest comes last
        newest = [*kept.items(), (place, table)][-MOST_KEPT:]
        scratch.write_text(json.dumps(dict(newest), indent=1))
        scratch.replace(file)
