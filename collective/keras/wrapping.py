"""Make an optimizer that averages out of one that doesn't."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import keras

from collective.errors import ArgumentError
from collective.keras import loss_scaling
from collective.keras.averaging import Averaging
from collective.keras.reduction import Reduction

Optimizer = TypeVar("Optimizer", bound=keras.optimizers.Optimizer)

# What a Keras optimizer can be told and does not write into its configuration.
TOLD = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")


def averages(optimizer: Any) -> bool:
    """Whether an optimizer, or the one inside a ``LossScaleOptimizer``, averages gradients."""
    return any(isinstance(each, Averaging) for each in (optimizer, getattr(optimizer, "inner_optimizer", None)))


def wrap(optimizer: Optimizer, reduction: Reduction) -> Optimizer:
    """Wrap a Keras optimizer; see ``DistributedOptimizer``."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ArgumentError(
            "DistributedOptimizer wraps a Keras 3 optimizer",
            received=f"optimizer={optimizer!r}",
            fix="Pass an instance, such as keras.optimizers.Adam()",
        )
    if averages(optimizer):
        raise ArgumentError("an optimizer is wrapped once, or gradients are averaged twice", received=f"{optimizer!r}")
    loss_scaling.average_first()
    base = type(optimizer)
    # Keras writes the class's name and module into a saved model; these are the wrapped class's.
    namespace = {"__module__": base.__module__, "__doc__": base.__doc__, "reduction": reduction}
    averaging = type(base.__name__, (Averaging, base), namespace)
    wrapped: Optimizer = remade(optimizer, averaging)
    _copy_state(optimizer, wrapped)
    return wrapped


def remade(optimizer: Any, of_class: type[Any]) -> Any:
    """An optimizer of the same configuration and another class, without state."""
    inner = type(getattr(optimizer, "inner_optimizer", optimizer))
    with keras.saving.custom_object_scope({inner.__name__: inner}):
        return of_class.from_config(optimizer.get_config())


def _copy_state(source: Any, target: Any) -> None:
    for name in TOLD:
        if hasattr(source, name):
            setattr(target, name, copy.copy(getattr(source, name)))
    if source.built:
        target.build(source._trainable_variables)
    for variable, value in zip(target.variables, source.variables, strict=True):
        variable.assign(value)
