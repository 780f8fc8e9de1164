"""What a rank calls: all that has to be the same on every rank, and the error when it isn't."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from collective.dtypes import by_name
from collective.errors import MismatchError
from collective.reduce_ops import ReduceOp

Kinds = tuple[tuple[np.dtype, tuple[int, ...]], ...]
# A digest leaves room in a word of 64 bits for its sign and for a bit that the engine adds.
DIGEST_BITS = 61
DIGEST_MASK = 2**DIGEST_BITS - 1
# The kinds of call by which a rank leaves the job, and by which it lets the others go on without it.
SHUTDOWN, JOIN = "shutdown", "join"


@dataclasses.dataclass(frozen=True)
class Call:
    """What an operation is, beside its name.

    Attributes:
        kind: The operation, such as ``allreduce``.
        arrays: dtype and shape of each array, as far as they have to be the same.
        op: The reduce operation.
        root: The rank whose values all get.
        wire: The dtype that floats have between hosts.
        in_place: Whether results overwrite the arrays, on which the way they take depends.
        note: What else has to be the same: factors, or the reason of a refusal.
    """

    kind: str
    arrays: Kinds = ()
    op: ReduceOp | None = None
    root: int | None = None
    wire: np.dtype | None = None
    in_place: bool = False
    note: str = ""

    def label(self, name: str) -> str:
        """An operation as errors name it: by the user's name, or by the number it has without."""
        if name == self.kind:
            return name
        return f"{self.kind} {name}" if name.startswith("#") else f"{self.kind} {name!r}"

    def describe(self, name: str) -> str:
        """An operation with all that has to be the same on every rank."""
        arrays = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.arrays)
        parts = [
            self.label(name),
            arrays and f"of {arrays}",
            str(self.op or ""),
            "" if self.root is None else f"from rank {self.root}",
            "" if self.wire is None else f"as {self.wire} on the wire",
            "in place" if self.in_place else "",
            self.note,
        ]
        return " ".join(filter(None, parts))

    def fields(self) -> list[Any]:
        """The call as JSON holds it; ``from_fields`` reads it."""
        arrays = [(dtype.name, shape) for dtype, shape in self.arrays]
        op, wire = self.op and self.op.value, self.wire and self.wire.name
        return [self.kind, arrays, op, self.root, wire, self.in_place, self.note]

    @classmethod
    def from_fields(cls, fields: Sequence[Any]) -> Call:
        """The call that a rank has told of."""
        kind, arrays, op, root, wire, in_place, note = fields
        what = tuple((by_name(name), tuple(shape)) for name, shape in arrays)
        return cls(kind, what, op and ReduceOp(op), root, wire and by_name(wire), in_place, note)

    @functools.cached_property
    def digest(self) -> int:
        """A number of 61 bits that differs where anything differs."""
        return _digest(self)


class Title(NamedTuple):
    """What messages call an operation, made a text only then. Unlike the operation it holds no arrays."""

    call: Call
    name: str

    def __str__(self) -> str:
        return self.call.describe(self.name)


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


def mismatch(texts: Sequence[str], operation: str, where: str, members: Sequence[int] | None = None) -> MismatchError:
    """The error that every rank raises when the ranks' descriptions of what they call, ``texts``, differ.

    Args:
        texts: One description a rank.
        operation: The operation that failed.
        where: This rank, as errors name it.
        members: The ranks' numbers in the job; None: those of the descriptions.
    """
    return MismatchError(
        "all ranks call the same operations, with the same names, shapes and dtypes",
        received=differences(texts, members),
        fix="Look for a branch or a loop that differs between these ranks, or for unequal numbers of batches, against "
        "which collective.data helps",
        operation=operation,
        where=where,
    )


def differences(texts: Sequence[str], members: Sequence[int] | None = None) -> str:
    """One clause for each different text, with the ranks that sent it."""
    ranks = members or range(len(texts))
    clauses = []
    for text in dict.fromkeys(texts):
        alike = [rank for rank, other in zip(ranks, texts, strict=True) if other == text]
        clauses.append(f"{ranks_text(alike)}: {text}")
    return "; ".join(clauses)


def ranks_text(ranks: Sequence[int]) -> str:
    """``rank 1`` or ``ranks 1, 3``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
