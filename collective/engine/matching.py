"""Make sure that all ranks mean the same operation before any data moves.

MPI itself does not look: ranks that differ in shape or dtype get garbage as a success, ranks that differ in order
hang. Here every operation is described in a line of text, and the ranks compare a hash of it; where it differs, they
exchange the texts and all raise the same error.
"""

from __future__ import annotations

import hashlib
import itertools

import numpy as np

from collective.algorithms import doubling, native, ring, shared_memory
from collective.errors import MismatchError
from collective.reduce_ops import Max, ReduceOp, Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport

SEGMENT = 64 * 1024
# Longest description that travels; a rank with thousands of tensors differs from the others early.
LONGEST_TEXT = 2000


def agree(transport: Transport, description: str, operation: str) -> None:
    """Return once every rank has come with the same ``description``; so it is a barrier as well.

    Cost: one all-reduce of 16 bytes, or a few flags in shared memory.

    Raises:
        MismatchError: on every rank, when the descriptions differ.
    """
    digest = int.from_bytes(hashlib.blake2b(description.encode(), digest_size=8).digest(), "little") >> 2
    if _all_equal(transport, digest):
        return
    texts = gather_texts(transport, description[:LONGEST_TEXT])
    raise mismatch(texts, operation, f"rank {transport.rank} of {transport.size}")


def mismatch(texts: list[str], operation: str, where: str) -> MismatchError:
    """The error that every rank raises when the ranks' descriptions of what they call, ``texts``, differ."""
    return MismatchError(
        "all ranks call the same operations in the same order, with the same names, shapes and dtypes",
        received=_differences(texts),
        fix="Look for a branch, a loop or a data shard that differs between these ranks",
        operation=operation,
        where=where,
    )


def gather_counts(transport: Transport, count: int) -> np.ndarray:
    """Every rank's ``count``, as int64[size]. Cost: one all-reduce of 8 x size bytes, or a few flags."""
    if transport.shared:
        return np.array(shared_memory.all_gather_words(transport.shared, count), np.int64)
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


def _all_equal(transport: Transport, word: int) -> bool:
    if transport.shared:
        return set(shared_memory.all_gather_words(transport.shared, word)) == {word}
    extremes = np.array([word, -word], np.int64)
    _small_all_reduce(transport, extremes, Max)
    return bool(extremes[0] == -extremes[1])


def _small_all_reduce(transport: Transport, values: np.ndarray, op: ReduceOp) -> None:
    algorithm = native if transport.native else doubling
    algorithm.all_reduce(transport, values, reduction_for(op, values.dtype, transport.size), SEGMENT)


def _differences(texts: list[str]) -> str:
    """One clause for each different text, with the ranks that sent it."""
    clauses = []
    for text in dict.fromkeys(texts):
        ranks = [rank for rank, other in enumerate(texts) if other == text]
        clauses.append(f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {text}")
    return "; ".join(clauses)
