"""What a rank calls: all that has to be the same on every rank, and the error when it is not."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from collective.errors import MismatchError
from collective.reduce_ops import ReduceOp

Kinds = tuple[tuple[np.dtype, tuple[int, ...]], ...]
# A digest leaves room in a word of 64 bits for its sign and for a bit that the engine adds.
DIGEST_BITS = 61
# The kind of call by which a rank leaves the job.
SHUTDOWN = "shutdown"


class Call(NamedTuple):
    """One operation as a rank calls it.

    Attributes:
        kind: The operation, such as ``allreduce``.
        name: The user's name for it, or one made from a counter: what matches it with the calls of other ranks.
        arrays: dtype and shape of each array, as far as they have to be the same.
        detail: The reduce operation, the root, or the reason of a refusal.
    """

    kind: str
    name: str
    arrays: Kinds = ()
    detail: ReduceOp | int | str = ""

    @property
    def label(self) -> str:
        """The operation as errors name it."""
        return f"{self.kind} {self.name!r}"

    def __str__(self) -> str:
        arrays = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.arrays)
        detail = f"from rank {self.detail}" if isinstance(self.detail, int) else str(self.detail)
        return " ".join(part for part in (self.label, arrays and f"of {arrays}", detail) if part)

    @property
    def digest(self) -> int:
        """A number of 61 bits that differs where anything differs."""
        # Only names are new in every call; the rest is hashed once.
        name = zlib.crc32(self.name.encode()) * 0x9E3779B97F4A7C15
        return (_digest(self.kind, self.arrays, self.detail) ^ name) & (2**DIGEST_BITS - 1)


@functools.lru_cache(maxsize=4096)
def _digest(kind: str, arrays: Kinds, detail: ReduceOp | int | str) -> int:
    text = str(Call(kind, "", arrays, detail)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def kinds(arrays: Sequence[np.ndarray]) -> Kinds:
    """Dtype and shape of each array."""
    return tuple([(array.dtype, array.shape) for array in arrays])


def mismatch(texts: Sequence[str], operation: str, where: str) -> MismatchError:
    """The error that every rank raises when the ranks' descriptions of what they call, ``texts``, differ."""
    return MismatchError(
        "all ranks call the same operations, with the same names, shapes and dtypes",
        received=differences(texts),
        fix="Look for a branch or a loop that differs between these ranks, or for unequal numbers of batches, against "
        "which collective.data helps",
        operation=operation,
        where=where,
    )


def differences(texts: Sequence[str]) -> str:
    """One clause for each different text, with the ranks that sent it."""
    clauses = []
    for text in dict.fromkeys(texts):
        clauses.append(f"{ranks_text([rank for rank, other in enumerate(texts) if other == text])}: {text}")
    return "; ".join(clauses)


def ranks_text(ranks: Sequence[int]) -> str:
    """``rank 1`` or ``ranks 1, 3``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
