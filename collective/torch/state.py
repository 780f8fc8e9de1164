"""Start all ranks alike: parameters and the optimizer's state from one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from collective import grouped, world
from collective.errors import ArgumentError
from collective.objects import broadcast_object
from collective.torch.arrays import array_of, write_back

# How a tensor is told apart from what a state holds beside tensors.
TENSOR = "torch.Tensor"


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[torch.Tensor | tuple[str, torch.Tensor]], root_rank: int = 0
) -> None:
    """Overwrite a model's parameters with those of rank ``root_rank``; called by all ranks.

    Args:
        params: ``model.state_dict()``, which includes buffers, ``model.named_parameters()`` or ``model.parameters()``;
            of the same names on all ranks, or in the same order.
        root_rank: The rank whose values all get.

    Raises:
        ArgumentError: when something else than tensors is in it.
        MismatchError: on every rank, when shapes or dtypes differ.

    Cost:
        Each rank but the root receives the bytes once, in few messages.
    """
    entries = sorted(params.items()) if isinstance(params, Mapping) else params
    values = [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
    values = [value for value in values if value is not None]  # such as a buffer that isn't used
    others = sorted({type(value).__name__ for value in values if not isinstance(value, torch.Tensor)})
    if others:
        raise ArgumentError(
            "parameters are tensors",
            received=", ".join(others),
            fix="Pass model.state_dict() or model.named_parameters(); other objects go through broadcast_object",
            operation="broadcast_parameters",
            where=world.topology().where,
        )
    _broadcast(values, root_rank, "parameters")


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer,
    root_rank: int = 0,
    model: torch.nn.Module | None = None,  # noqa: ARG001  # Horovod's signature; nothing needs it here
) -> None:
    """Give all ranks' optimizers the state of rank ``root_rank``: moments, step counts, learning rates and all.

    Called by all ranks. A rank whose optimizer has no state yet, as one that has just started, gets it all the same;
    its parameters have gradients of zeros then, as they have with Horovod, which takes a step for that.

    Args:
        optimizer: The same kind over the same parameters on all ranks, wrapped or not.
        root_rank: The rank whose state all get.
        model: Unused.

    Raises:
        ArgumentError: when the root's state holds other things than tensors, numbers and strings.
        MismatchError: on every rank, when the optimizers have other numbers of parameters.

    Cost:
        The plain values in two broadcasts; then each rank but the root receives the bytes of the tensors once.
    """
    members = [group["params"] for group in optimizer.param_groups]
    parameters = [parameter for group in members for parameter in group]
    tensors: list[torch.Tensor] = []
    state = [_described(optimizer.state.get(parameter, {}), tensors) for parameter in parameters]
    groups = [_described({**group, "params": None}, tensors) for group in optimizer.param_groups]
    # In the name, so that ranks that differ in it get the same error.
    name = f"state of an optimizer of {[len(group) for group in members]} parameters"
    state, groups = broadcast_object([state, groups], root_rank, name=name)
    if world.rank() != root_rank:
        tensors = []
        state = [_made(values, tensors, like.device) for values, like in zip(state, parameters, strict=True)]
        groups = [_made(values, tensors, group[0].device) for values, group in zip(groups, members, strict=True)]
    _broadcast(tensors, root_rank, "tensors of the optimizer state")
    if not optimizer.state:
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    if world.rank() != root_rank:
        for parameter, values in zip(parameters, state, strict=True):
            optimizer.state.pop(parameter, None)
            if values:
                optimizer.state[parameter] = values
        for group, values, own in zip(optimizer.param_groups, groups, members, strict=True):
            group.update({**values, "params": own})


def _broadcast(tensors: list[torch.Tensor], root_rank: int, name: str) -> None:
    arrays = [array_of(tensor) for tensor in tensors]
    grouped.grouped_broadcast(arrays, root_rank, name=name, out=arrays)
    for array, tensor in zip(arrays, tensors, strict=True):
        write_back(array, tensor)


def _described(value: Any, tensors: list[torch.Tensor]) -> Any:
    """A value with a description in place of every tensor, which goes into ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        on_cpu = value.device.type == "cpu"
        return {TENSOR: [list(value.shape), str(value.dtype).removeprefix("torch."), on_cpu]}
    if isinstance(value, Mapping):
        return {key: _described(one, tensors) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_described(one, tensors) for one in value])
    return value


def _made(described: Any, tensors: list[torch.Tensor], device: torch.device) -> Any:
    """The value that was described, with new tensors in the place of descriptions: they go into ``tensors``, too."""
    if isinstance(described, dict) and TENSOR in described:
        shape, dtype, on_cpu = described[TENSOR]
        # Step counts stay on the CPU where the parameters are on an accelerator.
        tensors.append(torch.empty(shape, dtype=getattr(torch, dtype), device="cpu" if on_cpu else device))
        return tensors[-1]
    if isinstance(described, dict):
        return {key: _made(one, tensors, device) for key, one in described.items()}
    if isinstance(described, (list, tuple)):
        return type(described)([_made(one, tensors, device) for one in described])
    return described
