"""All that a Keras training goes on from, as arrays and plain values: variables by their place, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state  # Keras tells nowhere else of the generator that seeds without one
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from collective import random_states, world
from collective.errors import CheckpointError
from collective.keras import bridge

# What names begin with: of variables that last, and of the sums of metrics, which begin anew in each epoch.
LASTING = ("model/", "optimizer/", "accumulated/")
KINDS = (*LASTING, "metrics/")


def build(model: Any) -> None:
    """Make the variables of the optimizer, which Keras makes in the first step."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)


def variables_of(model: Any, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """The variables of a built model, its optimizer and its metrics, by names that are the same in every run."""
    optimizer = model.optimizer
    metrics = {bridge.key(variable) for variable in model.metrics_variables}
    gathered = {
        "model/": [variable for variable in model.variables if bridge.key(variable) not in metrics],
        "optimizer/": optimizer.variables if optimizer is not None else (),
        "accumulated/": _accumulated(model),
        "metrics/": model.metrics_variables,
    }
    return {f"{kind}{number}": variable for kind in kinds for number, variable in enumerate(gathered[kind])}


def arrays_of(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What variables hold now."""
    return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in variables.items()}


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Set variables to what ``arrays_of`` has returned, in this process or another.

    Raises:
        CheckpointError: when they are others; nothing is set then.
    """
    for name in dict.fromkeys([*variables, *arrays]):
        if name not in variables or name not in arrays or _kind(variables[name]) != _kind(arrays[name]):
            raise CheckpointError(
                "training goes on with the model, the optimizer and the metrics of which the checkpoint was saved",
                received=f"{getattr(variables.get(name), 'path', name)}: {_told(arrays.get(name))} in the checkpoint, "
                f"{_told(variables.get(name))} in the model",
                fix="Go on with the same program, or begin anew in another folder",
                where=world.topology().where,
            )
    for name, array in arrays.items():
        variables[name].assign(array)


def random_numbers() -> dict[str, Any]:
    """The states of Python's, NumPy's and Keras's random numbers, as plain values; layers' are among the variables."""
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    own = None if generator is None else np.array(keras.ops.convert_to_numpy(generator.state))
    return {"keras": own, **random_states.random_states()}


def set_random_numbers(states: dict[str, Any]) -> None:
    """Go on from what ``random_numbers`` has returned."""
    if states["keras"] is not None:
        global_seed_generator().state.assign(states["keras"])
    random_states.set_random_states(states)


def _accumulated(model: Any) -> list[Any]:
    """The sums of gradients since the last update, where several backward passes make one."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for each in (model.optimizer, optimizer):
        helper = getattr(each, "_agg_helper", None)
        if helper is not None:
            return list(helper.variables(model.trainable_variables))
    return []


def _kind(values: Any) -> tuple[tuple[int, ...], str]:
    return tuple(values.shape), keras.backend.standardize_dtype(values.dtype)


def _told(values: Any) -> str:
    return "nothing" if values is None else f"{_kind(values)[1]}{list(values.shape)}"
