"""How it is measured: contenders take turns call by call, so that what disturbs the machine disturbs all of them.

Each has an array of its own, rewritten by its rank before every timed call, as gradients are; else its cache lines
would lie where the last contender left them. A call begins at a barrier; the slowest rank's time counts; the median of
all rounds is told; every result is checked. The order is drawn anew for every round: whoever comes next pays for
the caches of the one before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import collective
from collective import world
from collective.bench.rows import Spread
from collective.reduce_ops import Max

# There are as many rounds as fit the time, within limits.
FEWEST, MOST = 5, 2000
# The first calls make buffers and connections; then processor and interpreter get up to speed: of all rounds a tenth.
WARM_UP, WARM_UP_SHARE = 2, 0.1


@dataclasses.dataclass(frozen=True)
class Call:
    """One thing to time.

    Attributes:
        name: Of its contender.
        run: What is timed.
        prepare: Called before each time, untimed.
        check: Called with what ``run`` returned, untimed; raises if that is wrong.
        times: How often it runs, one time after the other; the mean of them counts.
    """

    name: str
    run: Callable[[], Any]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Any], None] = lambda _: None
    times: int = 1


def measure(calls: Sequence[Call], seconds: float) -> tuple[int, dict[str, Spread]]:
    """Time all calls in turns for about ``seconds``; called by all ranks.

    Returns:
        The number of rounds, and seconds by name.
    """
    for number in range(WARM_UP):
        start = time.perf_counter()
        _round(calls, number)
        taken = time.perf_counter() - start
    slowest = float(collective.allreduce(np.float64(taken), Max))
    rounds = int(min(MOST, max(FEWEST, seconds / slowest)))
    for number in range(int(rounds * WARM_UP_SHARE)):
        _round(calls, number)
    own = np.stack([_round(calls, number) for number in range(rounds)])
    return rounds, summarize([call.name for call in calls], from_all_ranks(own))


def from_all_ranks(own: np.ndarray) -> np.ndarray:
    """Put every rank's array of figures behind each other, along a new first axis; called by all ranks."""
    return collective.allgather(own[np.newaxis])


def summarize(names: Sequence[str], seconds: np.ndarray) -> dict[str, Spread]:
    """Reduce all samples to what is told.

    Args:
        names: Of the contenders.
        seconds: float64[ranks, rounds, contenders, 2]: wall seconds and CPU seconds of each call.
    """
    slowest = seconds[..., 0].max(axis=0)
    lower, median, upper = np.quantile(slowest, (0.25, 0.5, 0.75), axis=0)
    cpu = seconds[..., 1].mean(axis=(0, 1))
    return {
        name: Spread(float(median[place]), float(lower[place]), float(upper[place]), float(cpu[place]))
        for place, name in enumerate(names)
    }


def _round(calls: Sequence[Call], number: int) -> np.ndarray:
    """Time each call once: float64[contenders, 2], wall and CPU seconds of this rank."""
    seconds = np.empty((len(calls), 2))
    for place in np.random.default_rng(number).permutation(len(calls)):  # the same on all ranks
        call = calls[place]
        call.prepare()
        collective.barrier()
        cpu, start = time.process_time(), time.perf_counter()
        for _ in range(call.times):
            result = call.run()
        seconds[place] = time.perf_counter() - start, time.process_time() - cpu
        seconds[place] /= call.times
        call.check(result)
    return seconds


class Sums:
    """Values for all ranks to add, and their sum, known beforehand: small whole numbers, exact in every dtype.

    They differ from element to element and from rank to rank, so that neither a segment at the wrong place nor a
    rank counted twice goes unnoticed.

    Args:
        elements: Length of the arrays.
        dtype: Their dtype.
    """

    PERIOD = 4
    # As many elements are compared at once as leave the caches to the contenders.
    CHUNK_BYTES = 256 * 1024

    def __init__(self, elements: int, dtype: np.dtype) -> None:
        def values(rank: int) -> np.ndarray:
            return 1 + (np.arange(self.PERIOD) + rank) % self.PERIOD

        total = sum(values(rank) for rank in range(world.size()))
        self.own = np.resize(values(world.rank()), elements).astype(dtype)
        chunk = min(elements, self.CHUNK_BYTES // dtype.itemsize // self.PERIOD * self.PERIOD)
        self.expected = np.resize(np.asarray(total), max(chunk, 1)).astype(dtype)

    def wrong(self, result: np.ndarray) -> int:
        """Number of elements of ``result`` that are not the sum."""
        bits = np.dtype(f"u{result.itemsize}")
        flat, expected = result.reshape(-1).view(bits), self.expected.view(bits)
        chunks = (flat[start : start + expected.size] for start in range(0, flat.size, expected.size))
        return sum(int(np.count_nonzero(chunk != expected[: chunk.size])) for chunk in chunks)
