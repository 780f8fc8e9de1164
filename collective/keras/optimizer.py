"""An optimizer that averages gradients over all ranks before it applies them."""

from __future__ import annotations

from typing import Any, TypeVar

import keras

from collective.compression import Compression
from collective.errors import ArgumentError
from collective.keras.bridge import reduce_gradients
from collective.reduce_ops import Average, ReduceOp, Sum

Optimizer = TypeVar("Optimizer", bound=keras.optimizers.Optimizer)


class Averaging:
    """What ``DistributedOptimizer`` puts in front of a Keras optimizer's class."""

    reduce_op: ReduceOp = Average
    compression: Compression = Compression.none

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Average, then apply: so clipping and loss scaling see the gradients of the whole batch."""
        averaged = reduce_gradients(grads, self.reduce_op, self.compression)
        return super().apply(averaged, trainable_variables)  # type: ignore[misc]


def DistributedOptimizer(
    optimizer: Optimizer, *, op: ReduceOp = Average, compression: Compression = Compression.none
) -> Optimizer:
    """Wrap a Keras optimizer so that every step averages the gradients over all ranks.

    Called by all ranks, before ``model.compile``; the steps then are collective operations.

    Args:
        optimizer: Any Keras 3 optimizer. It is not changed; if it is built, its state is copied.
        op: ``Average``, or ``Sum``.
        compression: How gradients travel between hosts.

    Returns:
        An optimizer of a class with the same name, so that a saved model loads where this library is not installed.

    Raises:
        ArgumentError: when it is no Keras optimizer, is wrapped already, or ``op`` is another.

    Cost of a step per rank:
        One all-reduce of the gradients: 2(N-1)/N x bytes.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ArgumentError(
            "DistributedOptimizer wraps a Keras 3 optimizer",
            received=f"optimizer={optimizer!r}",
            fix="Pass an instance, such as keras.optimizers.Adam()",
        )
    if isinstance(optimizer, Averaging):
        raise ArgumentError("an optimizer is wrapped once, or gradients are averaged twice", received=f"{optimizer!r}")
    if op not in (Average, Sum):
        raise ArgumentError("gradients are averaged or summed", received=f"op={op!r}", fix="Use Average or Sum")
    base = type(optimizer)
    # Keras writes the class's name and module into a saved model; these are the wrapped class's.
    averaging = type(base.__name__, (Averaging, base), {"__module__": base.__module__, "__doc__": base.__doc__})
    averaging.reduce_op, averaging.compression = op, compression  # type: ignore[attr-defined]
    wrapped: Optimizer = averaging.from_config(optimizer.get_config())  # type: ignore[attr-defined]
    if optimizer.built:
        wrapped.build(optimizer._trainable_variables)
        for variable, value in zip(wrapped.variables, optimizer.variables, strict=True):
            variable.assign(value)
    return wrapped
