"""Modules, optimizers, samplers and objects as one state, to commit and to go back to; see ``common.elastic``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from collective import dtypes
from collective.common.elastic import ObjectState
from collective.torch.arrays import array_of, tensor_of
from collective.torch.elastic.sampler import ElasticSampler
from collective.torch.state import broadcast_optimizer_state, broadcast_parameters

# What has a ``state_dict``, and how all ranks get rank 0's.
Sync = Callable[[Any], None]
_registry: list[tuple[type, Sync]] = [
    (torch.nn.Module, lambda module: broadcast_parameters(module.state_dict(), 0)),
    (torch.optim.Optimizer, lambda optimizer: broadcast_optimizer_state(optimizer, 0)),
    (ElasticSampler, lambda sampler: sampler.sync()),
]


def get_handler_registry() -> list[tuple[type, Sync]]:
    """Which kinds of objects a ``TorchState`` keeps by their ``state_dict``, and how they are synchronized."""
    return list(_registry)


def set_handler_registry(registry: list[tuple[type, Sync]]) -> None:
    """Set what ``get_handler_registry`` returns; for kinds of one's own."""
    _registry[:] = registry


class TorchState(ObjectState):
    """A model, an optimizer, and whatever else is given by name.

    Args:
        model: A module; None: none.
        optimizer: An optimizer; None: none.
        kwargs: Attributes: modules, optimizers and ``ElasticSampler`` are kept by their ``state_dict``, others whole.
    """

    def __init__(self, model: torch.nn.Module | None = None, optimizer: Any = None, **kwargs: Any) -> None:
        given = {"model": model, "optimizer": optimizer, **kwargs}
        self._handled = {
            name: sync
            for name, value in given.items()
            for sync in [next((sync for kind, sync in _registry if isinstance(value, kind)), None)]
            if sync
        }
        for name in self._handled:
            setattr(self, name, given[name])
        self._states: dict[str, Any] = {}
        plain = {name: value for name, value in given.items() if name not in self._handled and value is not None}
        super().__init__(**plain)
        self._remember()

    def save(self) -> None:
        """See ``State``."""
        super().save()
        self._remember()

    def restore(self) -> None:
        """See ``State``."""
        super().restore()
        for name, state in self._states.items():
            getattr(self, name).load_state_dict(copy.deepcopy(state))

    def stored(self) -> Any:
        """See ``State``."""
        states = {name: _arrays(state) for name, state in self._states.items() if name not in self._samplers}
        return {"objects": super().stored(), "states": states}

    def own(self) -> Any:
        """See ``State``: the samples that this rank has read."""
        return {name: [self._states[name]["epoch"], self._read(name)] for name in self._samplers}

    def adopt(self, stored: Any, own: list[Any]) -> None:
        """See ``State``."""
        self._states = {name: _tensors(state) for name, state in stored["states"].items()}
        for name in self._samplers:
            epoch = own[0][name][0]
            read = set().union(*(each[name][1].tolist() for each in own if each[name][0] == epoch))
            self._states[name] = {"epoch": epoch, "processed_indices": sorted(read)}
        super().adopt(stored["objects"], own)

    def sync(self) -> None:
        """See ``State``. Cost: a broadcast of each."""
        for name, sync in self._handled.items():
            sync(getattr(self, name))
        super().sync()
        self._remember()

    def reset(self) -> None:
        """Deal samplers out to the ranks there are now."""
        for name in self._samplers:
            getattr(self, name).reset()

    def _read(self, name: str) -> np.ndarray:
        """The samples of a sampler that were read, in as few bytes as their numbers need."""
        kind = np.min_scalar_type(len(getattr(self, name).dataset))
        return np.array(self._states[name]["processed_indices"], kind)

    @property
    def _samplers(self) -> list[str]:
        return [name for name in self._handled if isinstance(getattr(self, name), ElasticSampler)]

    def _remember(self) -> None:
        self._states = {name: copy.deepcopy(getattr(self, name).state_dict()) for name in self._handled}


def _arrays(state: Any) -> Any:
    """A ``state_dict`` with arrays in place of tensors, but for those that NumPy has no dtype for."""
    if isinstance(state, torch.Tensor):
        array = array_of(state)
        return array if dtypes.is_supported(array.dtype) else state
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return type(state)(map(_arrays, state)) if type(state) in (list, tuple) else state


def _tensors(state: Any) -> Any:
    """What ``_arrays`` was given."""
    if isinstance(state, np.ndarray):
        return tensor_of(state)
    if isinstance(state, dict):
        return {key: _tensors(value) for key, value in state.items()}
    return type(state)(map(_tensors, state)) if type(state) in (list, tuple) else state
