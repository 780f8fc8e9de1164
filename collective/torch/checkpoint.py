"""Checkpoints of a PyTorch training: all that it goes on from, without pickle, and on every rank what was its own."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from collective import world
from collective.common import trees
from collective.errors import ArgumentError, CheckpointError
from collective.random_states import random_states, set_random_states
from collective.torch.arrays import array_of, tensor_of
from collective.torch.elastic.sampler import ElasticSampler
from collective.training import TrainingCheckpoints

# How a tensor is told apart from an array that a state holds, and what a module notes of the versions of its parts.
TENSOR, METADATA = "torch.Tensor", "torch metadata"


class Checkpoint:
    """The checkpoints of one training in one folder, and what they are made of.

    Parts are modules, optimizers, schedulers, ``ElasticSampler`` and whatever else has ``state_dict`` and
    ``load_state_dict``, or is a ``torch.Generator``. Saved with them are the random numbers of PyTorch (CPU and GPUs),
    Python and ``np.random``. What differs between ranks is saved of every rank.

    Example::

        checkpoint = Checkpoint("checkpoints", model=model, optimizer=optimizer, sampler=sampler)
        values = checkpoint.restore() or {"epoch": 0}
        for epoch in range(values["epoch"], epochs):
            if epoch > sampler.epoch:
                sampler.set_epoch(epoch)
            for number, batch in enumerate(loader):
                ...
                sampler.record_batch(number, batch_size)
                checkpoint.save(epoch=epoch)

    Args:
        folder: Where checkpoints are on rank 0's host.
        keep: How many of the newest are kept.
        parts: By name, the same on all ranks.

    Raises:
        ArgumentError: for a part that has no state.

    Note:
        A ``DataLoader`` draws a number from PyTorch's generator whenever it begins, also in the middle of an epoch. For
        the same bits give it one of its own: ``DataLoader(..., generator=torch.Generator())``.
    """

    def __init__(self, folder: str | os.PathLike[str], *, keep: int = 2, **parts: Any) -> None:
        for name, part in parts.items():
            if not isinstance(part, torch.Generator) and not hasattr(part, "load_state_dict"):
                raise ArgumentError(
                    "parts of a checkpoint have state_dict and load_state_dict",
                    received=f"{name}: a {type(part).__name__}",
                    fix="Pass plain values to save",
                )
        self._checkpoints, self._parts = TrainingCheckpoints(folder, keep), parts
        self._saved = 0

    def save(self, **values: Any) -> None:
        """Write a checkpoint; called by all ranks, and complete on the disk when it returns.

        Args:
            values: Rank 0's numbers, strings, lists, dictionaries and so on, such as ``epoch=3``.

        Raises:
            ArgumentError: for a state that holds other things than tensors, arrays and plain values.

        Cost per rank:
            See ``TrainingCheckpoints.save``.
        """
        states = {name: _state_of(part) for name, part in self._parts.items() if not isinstance(part, ElasticSampler)}
        samplers = {name: part.position() for name, part in self._parts.items() if isinstance(part, ElasticSampler)}
        arrays, rest = trees.split(_taken(states), allow_pickle=False)
        own = {"random": _random(), "rest": rest, "samplers": samplers}
        self._saved += 1
        self._checkpoints.save(self._saved, arrays, values, own)

    def restore(self) -> dict[str, Any] | None:
        """Go back to the newest checkpoint that is complete; called by all ranks.

        Returns:
            The values that were saved with it; None: there is no checkpoint, and nothing was changed.

        Raises:
            CheckpointError: on all ranks, when its parts are others, or rank 0 can't read the folder.

        Cost per rank:
            The bytes once.
        """
        found = self._checkpoints.newest()
        if found is None:
            return None
        mine, self._saved = found.mine, found.step
        states = _given_back(trees.join(mine["rest"], found.arrays, allow_pickle=False))
        if {*states, *mine["samplers"]} != {*self._parts}:
            raise CheckpointError(
                "training goes on with the parts of which the checkpoint was saved",
                received=f"{', '.join([*states, *mine['samplers']])} in it; {', '.join(self._parts)} in the program",
                where=world.topology().where,
            )
        for name, state in states.items():
            part = self._parts[name]
            part.set_state(state) if isinstance(part, torch.Generator) else part.load_state_dict(state)
        for name in mine["samplers"]:
            self._parts[name].go_on([each["samplers"][name] for each in found.own])
        _set_random(mine["random"])
        return dict(found.values)


def _state_of(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    state = part.state_dict()
    metadata = getattr(state, "_metadata", None)
    return {METADATA: [dict(metadata), dict(state)]} if metadata is not None else state


def _taken(value: Any) -> Any:
    """A value with marked arrays in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return {TENSOR: array_of(value)}
    if isinstance(value, Mapping):
        return {key: _taken(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_taken, value))
    return value


def _given_back(value: Any) -> Any:
    """The value that ``_taken`` has taken tensors from."""
    if isinstance(value, dict) and TENSOR in value:
        return tensor_of(value[TENSOR])
    if isinstance(value, dict) and METADATA in value:
        metadata, state = value[METADATA]
        module: Any = OrderedDict(_given_back(state))
        module._metadata = OrderedDict(metadata)
        return module
    if isinstance(value, dict):
        return {key: _given_back(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_given_back, value))
    return value


def _random() -> dict[str, Any]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {**random_states(), "torch": array_of(torch.get_rng_state()), "gpus": [array_of(state) for state in gpus]}


def _set_random(states: dict[str, Any]) -> None:
    set_random_states(states)
    torch.set_rng_state(tensor_of(states["torch"]))
    if states["gpus"]:
        torch.cuda.set_rng_state_all([tensor_of(state) for state in states["gpus"]])
