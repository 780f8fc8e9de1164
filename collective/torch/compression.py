"""How tensors travel, as Horovod's users name it: classes that make them small before and large again after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from collective import compression as core
from collective.errors import ArgumentError


class Compressor:
    """Base of compressions: two functions on tensors, for what is sent and for what was received. Subclass it."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return the tensor that is reduced in the place of ``tensor``, and what ``decompress`` has to know."""
        raise NotImplementedError

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return the result that a reduced tensor stands for."""
        raise NotImplementedError


class NoneCompressor(Compressor):
    """Tensors as they are."""

    @staticmethod
    def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the tensor itself."""
        return tensor, None

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:  # noqa: ARG004  # Horovod's signature
        """Return the tensor itself."""
        return tensor


class FP16Compressor(Compressor):
    """Floats as float16: 11 bits of precision, numbers from 6e-8 to 65504."""

    dtype = torch.float16

    @classmethod
    def compress(cls, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Return floats in half precision, anything else as it is, and the dtype it had."""
        return tensor.to(cls.dtype) if tensor.is_floating_point() else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Return the tensor in the dtype it had."""
        return tensor.to(ctx)


class BF16Compressor(FP16Compressor):
    """Floats as bfloat16: 8 bits of precision, the range of float32."""

    dtype = torch.bfloat16


class Compression:
    """The compressions to choose from.

    The operations of this library know them: they compress what leaves a host, and add in the tensors' own dtype.
    """

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor


ON_THE_WIRE = {
    Compression.none: core.Compression.none,
    Compression.fp16: core.Compression.fp16,
    Compression.bf16: core.Compression.bf16,
}


class Packing(NamedTuple):
    """Tensors on their way: what is reduced, how the wire compresses it, and what makes the results of it."""

    tensors: list[torch.Tensor]
    wire: core.Compression
    unpack: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def pack(compression: type[Compressor] | core.Compression, tensors: Sequence[torch.Tensor]) -> Packing:
    """Leave a compression of ours to the wire, and apply one of the user's own here.

    Raises:
        ArgumentError: when it is none.
    """
    if isinstance(compression, core.Compression):
        return Packing(list(tensors), compression, list)
    if compression in ON_THE_WIRE:
        return Packing(list(tensors), ON_THE_WIRE[compression], list)
    if not hasattr(compression, "compress") or not hasattr(compression, "decompress"):
        raise ArgumentError(
            "a compression has compress(tensor) and decompress(tensor, ctx)",
            received=f"compression={compression!r}",
            fix="Use Compression.none, Compression.fp16 or Compression.bf16, or a subclass of Compressor",
        )
    pairs = [compression.compress(tensor) for tensor in tensors]

    def unpack(reduced: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [compression.decompress(one, context) for one, (_, context) in zip(reduced, pairs, strict=True)]

    return Packing([tensor for tensor, _ in pairs], core.Compression.none, unpack)
