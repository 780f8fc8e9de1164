"""Tensors as NumPy arrays and back: the same memory, not copies of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from collective.dtypes import BFLOAT16
from collective.errors import ArgumentError

Array = np.ndarray[Any, Any]


def array_of(tensor: torch.Tensor) -> Array:
    """View a tensor's values as an array of the same shape and strides; what lies on an accelerator is copied."""
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(
            "operations of collective.torch take tensors",
            received=type(tensor).__name__,
            fix="Pass torch.as_tensor(...), or use the operations of collective, which take arrays",
        )
    if tensor.dtype is torch.bfloat16 and tensor.layout is torch.strided:  # NumPy has none of its own
        return tensor.detach().view(torch.int16).numpy(force=True).view(BFLOAT16)
    try:
        return tensor.numpy(force=True)
    except TypeError:
        # Refused by the operation itself, which tells the other ranks and repeats this dtype in its error.
        kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
        return np.empty(tensor.shape, [(str(kind), "V1")])


def tensor_of(array: Array, device: torch.device | None = None) -> torch.Tensor:
    """Make a tensor of an array's memory; a copy on another device than the CPU."""
    array = np.asarray(array)
    if array.dtype == BFLOAT16:
        values = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        values = torch.from_numpy(array)
    return values if device is None else values.to(device)


def write_back(array: Array, tensor: torch.Tensor) -> torch.Tensor:
    """Complete an operation in place: ``array`` is ``array_of(tensor)`` after the operation wrote to it."""
    if tensor.device.type != "cpu":
        with torch.no_grad():
            tensor.copy_(tensor_of(array))
    elif not tensor.is_inference():
        # autograd doesn't see what NumPy writes: told, it refuses to use a saved value that is none any more.
        torch.autograd.graph.increment_version(tensor)
    return tensor
