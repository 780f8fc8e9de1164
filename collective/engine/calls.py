"""What a rank calls: all that has to be the same on every rank, and the error when it isn't."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np

from collective.errors import MismatchError
from collective.reduce_ops import ReduceOp

Kinds = tuple[tuple[np.dtype, tuple[int, ...]], ...]
# A digest leaves room in a word of 64 bits for its sign and for a bit that the engine adds.
DIGEST_BITS = 61
DIGEST_MASK = 2**DIGEST_BITS - 1
# The kind of call by which a rank leaves the job.
SHUTDOWN = "shutdown"


@dataclasses.dataclass(frozen=True)
class Call:
    """What an operation is, beside its name.

    Attributes:
        kind: The operation, such as ``allreduce``.
        arrays: dtype and shape of each array, as far as they have to be the same.
        detail: The reduce operation, the root, or the reason of a refusal.
    """

    kind: str
    arrays: Kinds = ()
    detail: ReduceOp | int | str = ""

    def label(self, name: str) -> str:
        """An operation as errors name it: by the user's name, or by the number it has without."""
        if name == self.kind:
            return name
        return f"{self.kind} {name}" if name.startswith("#") else f"{self.kind} {name!r}"

    def describe(self, name: str) -> str:
        """An operation with all that has to be the same on every rank."""
        arrays = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.arrays)
        detail = f"from rank {self.detail}" if isinstance(self.detail, int) else str(self.detail)
        return " ".join(part for part in (self.label(name), arrays and f"of {arrays}", detail) if part)

    @functools.cached_property
    def digest(self) -> int:
        """A number of 61 bits that differs where anything differs."""
        return _digest(self)


@functools.lru_cache(maxsize=4096)
def _digest(call: Call) -> int:
    return int.from_bytes(hashlib.blake2b(call.describe("").encode(), digest_size=8).digest(), "little")


def digest(call: Call, name: str) -> int:
    """A number of 61 bits that differs where the call or the name differs."""
    return (call.digest ^ zlib.crc32(name.encode()) * 0x9E3779B97F4A7C15) & DIGEST_MASK


def kinds(arrays: Sequence[np.ndarray]) -> Kinds:
    """Dtype and shape of each array."""
    if len(arrays) == 1:  # half the price
        return ((arrays[0].dtype, arrays[0].shape),)
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
