"""How gradients travel between hosts: as they are, or in half the bytes."""

from __future__ import annotations

import enum

import numpy as np

from collective.dtypes import BFLOAT16, FLOAT16


class Compression(enum.Enum):
    """What floats of 32 and 64 bits become on the wire; they are added in their own dtype all the same.

    ``fp16`` keeps 11 bits of precision and numbers from 6e-8 to 65504; ``bf16`` keeps 8 bits and the range of float32.
    Inside a host nothing travels, so nothing is compressed there.
    """

    none = "none"
    fp16 = "fp16"
    bf16 = "bf16"

    def wire(self, dtype: np.dtype) -> np.dtype | None:
        """The dtype on the wire for arrays of ``dtype``; None: their own."""
        if self is Compression.none or dtype.kind != "f" or dtype.itemsize not in (4, 8):
            return None
        return FLOAT16 if self is Compression.fp16 else BFLOAT16
