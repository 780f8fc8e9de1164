"""Make sure that all ranks mean the same operation before any data moves.

MPI itself does not look: ranks that differ in shape or dtype get garbage as a success, ranks that differ in order
hang. Here every rank tells a word made from what it calls and hears those of the others: through flags inside a host,
by an all-reduce of 24 bytes elsewhere. Telling doesn't wait, so that a rank can get its data ready meanwhile.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np

from collective.algorithms import doubling, ring, words
from collective.engine.calls import DIGEST_BITS
from collective.reduce_ops import Max, ReduceOp, Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport
from collective.transport.shared import Watch

SEGMENT = 64 * 1024
# A word is a call's digest and this bit, which says "not so fast" and may differ.
BUSY = 1 << DIGEST_BITS


def teller(transport: Transport) -> Callable[[int, Watch | None], list[int]]:
    """A function that tells the other ranks a word and returns theirs, of which ``compare`` makes something.

    Inside a host those are the words of all ranks, and its second argument sees them come; elsewhere the extremes.
    It returns once all ranks have come, so it is a barrier, and what a rank wrote to shared memory before is there.

    Cost: a few flags in shared memory, or one all-reduce of 24 bytes.
    """
    if transport.shared:
        return functools.partial(words.all_gather, transport.shared)
    return functools.partial(_extremes, transport)


def compare(told: list[int]) -> int:
    """0 when the digests of all words are equal, BUSY when they are and a rank is busy, -1 when not."""
    if len({word & ~BUSY for word in told}) > 1:
        return -1
    return max(told) & BUSY


def agree(transport: Transport, word: int) -> int:
    """Tell a word and compare every rank's; see ``teller`` and ``compare``."""
    return compare(teller(transport)(word, None))


def _extremes(transport: Transport, word: int, watch: Watch | None = None) -> list[int]:  # noqa: ARG001
    digest = word & ~BUSY
    extremes = np.array([digest, -digest, word & BUSY], np.int64)
    _small_all_reduce(transport, extremes, Max)
    most, negated_least, busy = extremes.tolist()
    return [most | busy, -negated_least | busy]


def gather_counts(transport: Transport, count: int) -> np.ndarray:
    """Every rank's ``count``, as int64[size]. Cost: one all-reduce of 8 x size bytes, or a few flags."""
    if transport.shared:
        return np.array(words.all_gather(transport.shared, count), np.int64)
    counts = np.zeros(transport.size, np.int64)
    counts[transport.rank] = count
    _small_all_reduce(transport, counts, Sum)
    return counts


def gather_texts(transport: Transport, text: str) -> list[str]:
    """Every rank's ``text``. Cost: an all-reduce of 8 x size bytes and an all-gather of the texts."""
    mine = np.frombuffer(text.encode(), np.uint8)
    bounds = np.concatenate([[0], np.cumsum(gather_counts(transport, mine.size))]).tolist()
    everything = np.empty(bounds[-1], np.uint8)
    everything[bounds[transport.rank] : bounds[transport.rank + 1]] = mine
    ring.all_gather(transport, everything, bounds, SEGMENT)
    pieces = (everything[start:stop] for start, stop in itertools.pairwise(bounds))
    return [piece.tobytes().decode(errors="replace") for piece in pieces]


def _small_all_reduce(transport: Transport, values: np.ndarray, op: ReduceOp) -> None:
    if transport.native:
        transport.native.all_reduce_patiently(values, op)
    else:
        doubling.all_reduce(transport, values, reduction_for(op, values.dtype, transport.size), SEGMENT)
