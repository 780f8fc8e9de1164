"""Add up the gradients of several backward passes before ranks communicate: a larger batch in the same memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from collective.errors import ArgumentError
from collective.keras import bridge
from collective.keras.reduction import Reduction

Reduce = Callable[[Sequence[Any], Sequence[Any]], list[Any]]


class Accumulator:
    """The sums of this rank's gradients since the last update.

    Its variables are no part of the optimizer's state: a saved model loads without this library.

    Args:
        reduction: After how many passes gradients are reduced, and what else is to be done with them.

    Attributes:
        counter: Passes since the last update.
    """

    def __init__(self, reduction: Reduction) -> None:
        self._reduction = reduction
        with bridge.outside_graphs():
            self.counter = keras.Variable(0, dtype="int32", trainable=False, name="backward_passes")
        self._sums: dict[int, tuple[Any, keras.Variable]] = {}

    def add(self, gradients: Sequence[Any], variables: Sequence[Any], reduce: Reduce) -> list[Any]:
        """Add the gradients of a pass; after the last one, reduce the sums and begin anew.

        Returns:
            The reduced gradients after the last pass, else the sums so far; None where there is no gradient.

        Raises:
            ArgumentError: when a gradient is sparse and shall not be made dense.
        """
        result = [self._dense(gradient) for gradient in gradients]
        places = [place for place, gradient in enumerate(result) if gradient is not None]
        chosen = [variables[place] for place in places]
        sums = [self._sum_for(variable) for variable in chosen]
        for place, total in zip(places, sums, strict=True):
            total.assign_add(keras.ops.cast(result[place], total.dtype))
        self.counter.assign_add(1)

        def flush() -> list[Any]:
            reduced = reduce([bridge.value_of(total) for total in sums], chosen)
            self.counter.assign(0)
            for total in sums:
                total.assign(keras.ops.zeros_like(total))
            divisor = self._reduction.passes if self._reduction.average_passes else 1
            return [bridge.divided(gradient, divisor) if divisor > 1 else gradient for gradient in reduced]

        last = keras.ops.greater_equal(self.counter, self._reduction.passes)
        values = keras.ops.cond(last, flush, lambda: [bridge.value_of(total) for total in sums])
        for place, value in zip(places, values, strict=True):
            result[place] = value
        return result

    def variables(self, of: Sequence[Any]) -> list[keras.Variable]:
        """The count, and the sums for the variables given, which are made if need be."""
        return [self.counter, *map(self._sum_for, of)]

    def is_empty(self) -> Any:
        """Whether the last pass was the one after which gradients are applied, as a tensor."""
        return keras.ops.equal(self.counter, 0)

    def _dense(self, gradient: Any) -> Any:
        if not bridge.is_sparse(gradient):
            return gradient
        if not self._reduction.sparse_as_dense:
            raise ArgumentError(
                "gradients of several backward passes are added as dense ones",
                received=f"backward_passes_per_step={self._reduction.passes}, a sparse gradient, sparse_as_dense=False",
                fix="Pass sparse_as_dense=True to DistributedOptimizer",
            )
        return bridge.dense(gradient)

    def _sum_for(self, variable: Any) -> keras.Variable:
        key = bridge.key(variable)
        if key not in self._sums:
            with bridge.outside_graphs():
                zeros = keras.ops.zeros(variable.shape, variable.dtype)
                # The variable is kept, or another could get its key.
                self._sums[key] = variable, keras.Variable(zeros, dtype=variable.dtype, trainable=False)
        return self._sums[key][1]
