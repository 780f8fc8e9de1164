"""States of TensorFlow's variables and of Keras models, to commit and to go back to; see ``common.elastic``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from collective.common.elastic import ObjectState
from collective.common.elastic import run as run
from collective.tensorflow.variables import broadcast_variables


class TensorFlowState(ObjectState):
    """Variables, and the objects given by name.

    Args:
        variables: TensorFlow's or Keras's; None: none.
        session: Accepted and not used: states are kept eagerly.
        kwargs: Attributes, such as ``epoch=0, batch=0``.
    """

    def __init__(self, variables: Sequence[Any] | None = None, session: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        self.variables = list(variables or [])
        self._values: list[np.ndarray] = []
        super().__init__(**kwargs)
        self._remember()

    def save(self) -> None:
        """See ``State``."""
        super().save()
        self._remember()

    def restore(self) -> None:
        """See ``State``."""
        super().restore()
        for variable, value in zip(self._all(), self._values, strict=False):
            variable.assign(value)

    def sync(self) -> None:
        """See ``State``. Cost: a broadcast of the variables and one of the objects."""
        if self._all():
            broadcast_variables(self._all(), 0)
        super().sync()
        self._remember()

    def stored(self) -> Any:
        """See ``State``."""
        return {"objects": super().stored(), "variables": self._values}

    def adopt(self, stored: Any, own: list[Any]) -> None:
        """See ``State``."""
        self._values = stored["variables"]
        super().adopt(stored["objects"], own)

    def _all(self) -> list[Any]:
        return self.variables

    def _remember(self) -> None:
        self._values = [np.array(tf.convert_to_tensor(variable)) for variable in self._all()]


class TensorFlowKerasState(TensorFlowState):
    """A Keras model, its optimizer, and the objects given by name.

    Args:
        model: A built model.
        optimizer: Its optimizer; None: the one that the model was compiled with, if any.
        backend: Accepted and not used.
        kwargs: Attributes.
    """

    def __init__(self, model: Any, optimizer: Any = None, backend: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        self.model, self.optimizer = model, optimizer or getattr(model, "optimizer", None)
        super().__init__(**kwargs)

    def adopt(self, stored: Any, own: list[Any]) -> None:
        """See ``State``."""
        if self.optimizer is not None and len(stored["variables"]) > len(self._all()):
            self.optimizer.build(self.model.trainable_variables)
        super().adopt(stored, own)

    def _all(self) -> list[Any]:
        # An optimizer has its variables once it is built, which may be after the first step.
        optimizer = self.optimizer
        own = getattr(optimizer, "variables", None) if optimizer is not None else None
        return [*self.model.variables, *(own() if callable(own) else own or [])]
