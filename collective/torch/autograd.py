"""Make a function over tensors differentiable, by its value and the rule for its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]


def differentiable(run: Callable[..., Tensors], gradient: Callable[..., Tensors], tensors: Tensors) -> Tensors:
    """Return ``run(*tensors)`` as values whose gradients are ``gradient(*upstream)``.

    Args:
        run: Takes tensors and returns others, without a graph of their own.
        gradient: Takes the gradients of what ``run`` returns, and returns those of what it takes; called by all ranks
            in the same order, for autograd goes back in the order of the calls.
        tensors: What ``run`` takes.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        results: Tensors = _Operation.apply(run, gradient, *tensors)
        return results
    return run(*tensors)


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, run: Callable[..., Tensors], gradient: Callable[..., Tensors], *tensors: Any) -> Any:
        context.gradient = gradient
        return tuple(run(*tensors))

    @staticmethod
    def backward(context: Any, *upstream: Any) -> Any:
        return None, None, *context.gradient(*upstream)
