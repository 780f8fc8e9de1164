"""How it is measured: contenders take turns call by call, so that what disturbs the machine disturbs all of them.

Each has an array of its own, rewritten by its rank before every timed call, as gradients are; else its cache lines
would lie where the last contender left them. A call begins at a barrier; the slowest rank's time counts; the median of
all rounds is told, and every result of the first round is checked.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np

import collective
from collective import world
from collective.bench.contenders import Contender
from collective.reduce_ops import Max

# There are as many rounds as fit this time, within limits.
SECONDS_A_SIZE = 2.0
FEWEST, MOST = 5, 200


@dataclasses.dataclass(frozen=True)
class Row:
    """The result for one size.

    Attributes:
        bytes: Size of one rank's array.
        dtype: Its dtype.
        rounds: Number of timed calls of each contender.
        seconds: Median seconds of each contender, by name.
    """

    bytes: int
    dtype: str
    rounds: int
    seconds: dict[str, float]


def measure(contenders: Sequence[Contender], size_bytes: int, dtype: np.dtype) -> Row:
    """Time all contenders on arrays of ``size_bytes`` bytes; called by all ranks.

    Raises:
        ValueError: when a contender's sum is wrong.
    """
    elements = max(1, size_bytes // dtype.itemsize)
    able = [contender for contender in contenders if not contender.dtypes or dtype.name in contender.dtypes]
    arrays = [contender.make(elements, dtype) for contender in able]
    expected = world.size() * (world.size() + 1) // 2
    first = [_timed(contender, array) for contender, array in zip(able, arrays, strict=True)]
    for contender, (_, result) in zip(able, first, strict=True):
        if contender.name != "memcpy" and not (result.astype(np.float64) == expected).all():
            raise ValueError(f"{contender.name} adds wrongly on rank {world.rank()}: {result[:4]}, not {expected}")
    slowest_first = float(collective.allreduce(np.float64(sum(seconds for seconds, _ in first)), Max))
    rounds = int(min(MOST, max(FEWEST, SECONDS_A_SIZE / slowest_first)))
    times = np.empty((rounds, len(able)))
    for number in range(rounds):
        # Whoever follows whom changes from round to round.
        for place in np.roll(np.arange(len(able)), number):
            times[number, place] = _timed(able[place], arrays[place])[0]
    times = collective.allreduce(times, Max)
    medians = {contender.name: statistics.median(times[:, place]) for place, contender in enumerate(able)}
    return Row(elements * dtype.itemsize, dtype.name, rounds, medians)


def _timed(contender: Contender, array: np.ndarray) -> tuple[float, np.ndarray]:
    array[...] = world.rank() + 1
    collective.barrier()
    start = time.perf_counter()
    result = contender.all_reduce(array)
    return time.perf_counter() - start, result
