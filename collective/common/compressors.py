"""How tensors of any framework travel, as Horovod's users name it: made small before, and large again after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from collective.compression import Compression
from collective.errors import ArgumentError


class Compressor:
    """Base of compressions: two functions on tensors, for what is sent and for what was received. Subclass it."""

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, Any]:
        """Return the tensor that is reduced in the place of ``tensor``, and what ``decompress`` has to know."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:
        """Return the result that a reduced tensor stands for."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Tensors as they are."""

    wire = Compression.none

    @staticmethod
    def compress(tensor: Any) -> tuple[Any, None]:
        """Return the tensor itself."""
        return tensor, None

    @staticmethod
    def decompress(tensor: Any, ctx: Any) -> Any:  # noqa: ARG004  # Horovod's signature
        """Return the tensor itself."""
        return tensor


class Packing(NamedTuple):
    """Tensors on their way: what is reduced, how the wire compresses it, and what makes the results of it."""

    tensors: list[Any]
    wire: Compression
    unpack: Callable[[Sequence[Any]], list[Any]]


def pack(compression: type[Compressor] | Compression, tensors: Sequence[Any]) -> Packing:
    """Leave a compression of ours, which has a ``wire``, to the wire, and apply one of the user's own here.

    Raises:
        ArgumentError: when it is none.
    """
    if isinstance(compression, Compression):
        return Packing(list(tensors), compression, list)
    # Not an inherited one: a subclass may do something else.
    wire = getattr(compression, "__dict__", {}).get("wire")
    if isinstance(wire, Compression):
        return Packing(list(tensors), wire, list)
    if not hasattr(compression, "compress") or not hasattr(compression, "decompress"):
        raise ArgumentError(
            "a compression has compress(tensor) and decompress(tensor, ctx)",
            received=f"compression={compression!r}",
            fix="Use Compression.none, Compression.fp16 or Compression.bf16, or a subclass of Compressor",
        )
    pairs = [compression.compress(tensor) for tensor in tensors]

    def unpack(reduced: Sequence[Any]) -> list[Any]:
        return [compression.decompress(one, context) for one, (_, context) in zip(reduced, pairs, strict=True)]

    return Packing([tensor for tensor, _ in pairs], Compression.none, unpack)
