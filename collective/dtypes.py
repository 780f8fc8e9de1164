"""Which dtypes travel, and which of them need more room to be added."""

from __future__ import annotations

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
# Kinds of NumPy's own dtypes that travel.
NUMBERS = frozenset("biufc")


def is_supported(dtype: np.dtype) -> bool:
    """Tell whether arrays of ``dtype`` travel: bool, every NumPy integer, float and complex dtype, and bfloat16."""
    return dtype.kind in NUMBERS or dtype == BFLOAT16


def by_name(name: str) -> np.dtype:
    """The dtype whose ``name`` this is; NumPy alone doesn't know bfloat16's.

    Raises:
        ValueError: when it is none of those that travel: names are read from files and messages, and an array of
            objects would be made of addresses.
    """
    try:
        dtype = BFLOAT16 if name == BFLOAT16.name else np.dtype(name)
    except TypeError as error:
        raise ValueError(str(error)) from None
    if not is_supported(dtype):
        raise ValueError(f"{name} is not a dtype of numbers")
    return dtype


def is_half(dtype: np.dtype) -> bool:
    """Tell whether ``dtype`` has 16 bits of floating point; such values are added in float32 and rounded."""
    return dtype in (FLOAT16, BFLOAT16)


def byte_view(array: np.ndarray) -> np.ndarray:
    """View a C-contiguous array as flat bytes (bfloat16 has no buffer protocol of its own)."""
    return array.reshape(-1).view(np.uint8)
