"""Make sure that all ranks mean the same operation before any data moves.

MPI itself does not look: ranks that differ in shape or dtype get garbage as a success, ranks that differ in order
hang. Here the ranks compare a hash of what they call; where it differs, they exchange it as text and all raise the same
error.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib
from typing import NamedTuple

import numpy as np

from collective.algorithms import doubling, ring, shared_memory
from collective.errors import MismatchError
from collective.reduce_ops import Max, ReduceOp, Sum
from collective.reduction import reduction_for
from collective.transport.base import Transport

SEGMENT = 64 * 1024
# Longest description that travels; a rank with thousands of tensors differs from the others early.
LONGEST_TEXT = 2000


class Call(NamedTuple):
    """What a rank calls: all that has to be the same on every rank.

    Attributes:
        kind: The operation, such as ``allreduce``.
        name: The user's name for it, or one made from a counter; empty: it needs none.
        arrays: dtype and shape of each array, as far as they have to be the same.
        detail: The reduce operation, the root, or the reason of a refusal.
    """

    kind: str
    name: str = ""
    arrays: tuple[tuple[np.dtype, tuple[int, ...]], ...] = ()
    detail: ReduceOp | int | str = ""

    @property
    def label(self) -> str:
        """The operation as errors name it."""
        return f"{self.kind} {self.name!r}" if self.name else self.kind

    def __str__(self) -> str:
        arrays = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.arrays)
        detail = f"from rank {self.detail}" if isinstance(self.detail, int) else str(self.detail)
        return " ".join(part for part in (self.label, arrays and f"of {arrays}", detail) if part)

    @property
    def digest(self) -> int:
        """A number of 62 bits that differs where anything differs."""
        # Only names are new in every call; the rest is hashed once.
        name = zlib.crc32(self.name.encode()) * 0x9E3779B97F4A7C15
        return (_digest(self.kind, self.arrays, self.detail) ^ name) & (2**62 - 1)


@functools.lru_cache(maxsize=4096)
def _digest(kind: str, arrays: tuple[tuple[np.dtype, tuple[int, ...]], ...], detail: ReduceOp | int | str) -> int:
    text = str(Call(kind, "", arrays, detail)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def agree(transport: Transport, call: Call) -> None:
    """Return once every rank has come with the same ``call``; so it is a barrier as well.

    Cost: one all-reduce of 16 bytes, or a few flags in shared memory.

    Raises:
        MismatchError: on every rank, when the calls differ.
    """
    if _all_equal(transport, call.digest):
        return
    texts = gather_texts(transport, str(call)[:LONGEST_TEXT])
    raise mismatch(texts, call.label, f"rank {transport.rank} of {transport.size}")


def mismatch(texts: list[str], operation: str, where: str) -> MismatchError:
    """The error that every rank raises when the ranks' descriptions of what they call, ``texts``, differ."""
    return MismatchError(
        "all ranks call the same operations in the same order, with the same names, shapes and dtypes",
        received=_differences(texts),
        fix="Look for a branch or a loop that differs between these ranks, or for unequal numbers of batches, against "
        "which collective.data helps",
        operation=operation,
        where=where,
    )


def all_agree(transport: Transport, yes: bool) -> bool:
    """Tell whether every rank says yes. Cost: one all-reduce of 8 bytes."""
    return int(gather_counts(transport, not yes).sum()) == 0


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
    if transport.native:
        transport.native.all_reduce_patiently(values, op)
    else:
        doubling.all_reduce(transport, values, reduction_for(op, values.dtype, transport.size), SEGMENT)


def _differences(texts: list[str]) -> str:
    """One clause for each different text, with the ranks that sent it."""
    clauses = []
    for text in dict.fromkeys(texts):
        ranks = [rank for rank, other in enumerate(texts) if other == text]
        clauses.append(f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}: {text}")
    return "; ".join(clauses)
