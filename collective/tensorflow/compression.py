"""Tensors in half precision on their way, and the compressions to choose from; see ``common.compressors``."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from collective import compression as core
from collective.common.compressors import Compressor as Compressor
from collective.common.compressors import NoneCompressor as NoneCompressor
from collective.common.compressors import Packing as Packing
from collective.common.compressors import pack as pack


class FP16Compressor(Compressor):
    """Floats as float16: 11 bits of precision, numbers from 6e-8 to 65504."""

    dtype, wire = tf.float16, core.Compression.fp16

    @classmethod
    def compress(cls, tensor: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Return floats in half precision, anything else as it is, and the dtype it had."""
        return tf.cast(tensor, cls.dtype) if tensor.dtype.is_floating else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: tf.Tensor, ctx: Any) -> tf.Tensor:
        """Return the tensor in the dtype it had."""
        return tf.cast(tensor, ctx)


class BF16Compressor(FP16Compressor):
    """Floats as bfloat16: 8 bits of precision, the range of float32."""

    dtype, wire = tf.bfloat16, core.Compression.bf16


class Compression:
    """The compressions to choose from.

    The operations of this library know them: they compress what leaves a host, and add in the tensors' own dtype.
    """

    none = NoneCompressor
    fp16 = FP16Compressor
    bf16 = BF16Compressor
