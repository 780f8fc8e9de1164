"""Load saved models so that their training goes on with averaged gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import h5py  # type: ignore[import-untyped]
import keras

from collective.keras.optimizer import DistributedOptimizer
from collective.keras.wrapping import averages, remade
from collective.tensorflow import Compression


def load_model(
    filepath: Any,
    custom_optimizers: Iterable[type[Any]] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    compression: Any = Compression.none,
    legacy_opts: bool = False,  # noqa: ARG001  # Keras 3 has none
) -> Any:
    """Load a saved model and wrap its optimizer, with its state, by ``DistributedOptimizer``.

    Args:
        filepath: Where it was saved: a ``.keras`` or an ``.h5`` file, or an open ``h5py.File``.
        custom_optimizers: Classes of optimizers that are none of Keras's.
        custom_objects: Other classes and functions by their names, as Keras's ``load_model`` takes them. Under the name
            of an optimizer there may also be a function that makes it out of its options: ``lambda **options: ...``.
        compression: How gradients travel between hosts.
        legacy_opts: Of no effect: Keras 3 has no legacy optimizers.

    Returns:
        The model; it isn't trained differently on several ranks if it was saved without an optimizer.
    """
    objects: dict[str, Any] = {each.__name__: each for each in custom_optimizers or ()}
    objects |= {
        name: Maker(each) if _takes_options_only(each) else each for name, each in (custom_objects or {}).items()
    }
    path = getattr(filepath, "filename", filepath)
    model = keras.models.load_model(path, custom_objects=objects)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return model
    forgotten = optimizer.built and model.trainable_variables and not optimizer._trainable_variables
    if forgotten:
        # Keras builds the optimizer of an .h5 file for no variables: it has lost its state and can't be trained with.
        optimizer = remade(optimizer, type(optimizer))
    model.optimizer = optimizer if averages(optimizer) else DistributedOptimizer(optimizer, compression=compression)
    if forgotten:
        model.optimizer.build(model.trainable_variables)
        for variable, value in zip(model.optimizer.variables, _state_in(path), strict=True):
            variable.assign(value)
    return model


def _state_in(path: Any) -> list[Any]:
    """The optimizer's state as Keras writes it into an .h5 file."""
    with h5py.File(path) as file:
        group = file["optimizer_weights"]
        chunks = [f"weight_names{number}" for number in range(len(group.attrs))]  # Keras splits long lists
        names = [name for key in ("weight_names", *chunks) for name in group.attrs.get(key, ())]
        return [group[name][()] for name in names]


class Maker:
    """Stands for a class where Keras looks for ``from_config``, and calls a function with the options."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def from_config(self, config: dict[str, Any]) -> Any:
        """Make the object."""
        options = {name: _plain(value) for name, value in config.items()}
        return self._make(**options)


def _plain(value: Any) -> Any:
    """An option that is an object itself, such as a schedule of the learning rate, out of its configuration."""
    is_object = isinstance(value, dict) and "class_name" in value
    return keras.saving.deserialize_keras_object(value) if is_object else value


def _takes_options_only(something: Any) -> bool:
    if isinstance(something, type) or not callable(something) or hasattr(something, "from_config"):
        return False
    parameters = inspect.signature(something).parameters.values()
    return bool(parameters) and all(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
