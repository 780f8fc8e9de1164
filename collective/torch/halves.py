"""Half precision by PyTorch, for ``collective.halves``: one instruction of the processor, where it has one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from collective.torch.arrays import tensor_of

# PyTorch leaves longer ones to several threads, if it may: they would take the cores from those that compute.
LONGEST = 32 * 1024


def cast(source: np.ndarray, out: np.ndarray) -> bool:
    """Copy flat ``source`` to ``out`` in the dtype of that; see ``collective.halves.Arithmetic``."""
    if not source.flags.writeable:  # tensors always are
        return False
    for values, place in _parts(source, out):
        place.copy_(values)
    return True


def add(lower: np.ndarray, higher: np.ndarray, out: np.ndarray) -> bool:
    """Add flat arrays of halves; see ``collective.halves.Arithmetic``."""
    if not (lower.flags.writeable and higher.flags.writeable):
        return False
    for one, other, place in _parts(lower, higher, out):
        torch.add(one, other, out=place)
    return True


def _parts(*arrays: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
    tensors = tuple(tensor_of(array) for array in arrays)
    if torch.get_num_threads() == 1:
        return iter([tensors])
    return zip(*(tensor.split(LONGEST) for tensor in tensors), strict=True)
