"""Measure, when a job starts, up to which size the MPI library's own all-reduce is the faster one.

The size differs by library, host and number of ranks, from a few KiB to a MiB; a constant would be wrong somewhere.
It is kept in the user's cache, so that a job that runs again chooses again alike and gets the same bits: the sum of
three floats depends on their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

import numpy as np

from collective.algorithms.choice import AllReduce, large, small
from collective.reduce_ops import Max, Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport

# Ends when ours wins, or after this time: a start must not be felt.
SECONDS = 0.03
# What most machines find, for one that is too busy to tell in time.
USUAL = 64 * 1024
SIZES = tuple(1024 * 4**power for power in range(7))
FEWEST, MOST = 3, 15


def small_bytes(transport: Transport, segment_bytes: int, place: str) -> int:
    """The size up to which the algorithm for small arrays is the faster one; called by all ranks, all get the same.

    Args:
        transport: The ranks.
        segment_bytes: As in ``Settings``.
        place: What the result depends on: the host, the MPI library, the number of ranks and hosts.

    Returns:
        Bytes: what rank 0's cache says for ``place``; else measured, and kept there.
    """
    if transport.size == 1 or transport.native is None:
        return 0
    known = _kept().get(place, -1) if transport.rank == 0 else -1
    (agreed,) = _largest(transport, known)
    if agreed < 0:
        agreed = measured_small_bytes(transport, segment_bytes)
        if transport.rank == 0:
            _keep(place, agreed)
    return agreed


def measured_small_bytes(transport: Transport, segment_bytes: int) -> int:
    """The largest size, of 1 KiB to 4 MiB by fours, up to which the algorithm for small arrays wins; 0: nowhere.

    It takes some 30 ms, and one size more than that on a slow network.
    """
    started = time.perf_counter()
    won, lost = 0, 0
    for size in SIZES:
        native, ours, elapsed = _race(transport, size, segment_bytes, started)
        if native <= ours:
            won, lost = size, 0
        else:
            lost += 1
        if lost == 2:  # a single loss may be the machine's doing
            return won
        if elapsed > SECONDS:
            return max(won, USUAL)
    return won


def _race(transport: Transport, size: int, segment_bytes: int, started: float) -> tuple[float, float, float]:
    """Least seconds of both algorithms, and the seconds since ``started``; of the slowest rank each."""
    array = np.zeros(size // 4, np.float32)
    first = _seconds(transport, small, array, segment_bytes) + _seconds(transport, large, array, segment_bytes)
    (first,) = _slowest(transport, first)
    rounds = max(FEWEST, min(MOST, int(SECONDS / len(SIZES) / first)))
    # In turns, so that what else the machine does disturbs both.
    times = [
        [_seconds(transport, algorithm, array, segment_bytes) for algorithm in (small, large)] for _ in range(rounds)
    ]
    native, ours = np.min(times, axis=0)  # what else the machine does only ever adds
    slowest = _slowest(transport, native, ours, time.perf_counter() - started)
    return slowest[0], slowest[1], slowest[2]


def _seconds(transport: Transport, algorithm: AllReduce, array: np.ndarray, segment_bytes: int) -> float:
    _slowest(transport, 0.0)  # begin together
    start = time.perf_counter()
    algorithm(transport, array, reduction_for(Sum, array.dtype, transport.size), segment_bytes)
    return time.perf_counter() - start


def _slowest(transport: Transport, *seconds: float) -> tuple[float, ...]:
    return tuple(value / 1e9 for value in _largest(transport, *(int(second * 1e9) for second in seconds)))


def _largest(transport: Transport, *values: int) -> list[int]:
    """The largest of each rank's values."""
    array = np.array(values, np.int64)
    small(transport, array, reduction_for(Max, array.dtype, transport.size), 0)
    return [int(value) for value in array]


def _file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "collective" / "small-bytes.json"


def _kept() -> dict[str, int]:
    """What earlier jobs found; a file that can't be read says nothing."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        kept = json.loads(_file().read_text())
        return {place: size for place, size in kept.items() if isinstance(size, int)} if isinstance(kept, dict) else {}
    return {}


def _keep(place: str, size: int) -> None:
    """Remember a result; a cache that can't be written is none."""
    with contextlib.suppress(OSError, RuntimeError):
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps({**_kept(), place: size}, indent=1))
        scratch.replace(file)
