"""What ``DistributedOptimizer`` puts in front of a Keras optimizer's class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from collective import world
from collective.keras import bridge
from collective.keras.accumulation import Accumulator
from collective.keras.reduction import Reduction


class CallableList(list[Any]):
    """A list that may be called: Keras 2's optimizers have ``variables()``, Keras 3's have ``variables``."""

    def __call__(self) -> CallableList:
        """The list."""
        return self


class Averaging:
    """Reduces the gradients of all ranks before they are applied.

    So clipping, loss scaling and weight decay see the gradients of the whole batch, the same on all ranks.

    Attributes:
        reduction: How they are reduced; the class's, so that ``from_config`` makes an optimizer that does the same.
    """

    reduction = Reduction()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._agg_helper = Accumulator(self.reduction) if self.reduction.passes > 1 else None
        self._local = self.reduction.local_variables()
        self._reduced: tuple[Any, ...] = ()
        self._is_inside = False

    @property
    def process_set(self) -> Any:
        """The ranks whose gradients are reduced."""
        return self.reduction.process_set

    @property
    def variables(self) -> CallableList:
        """The optimizer's state."""
        return CallableList(super().variables)  # type: ignore[misc]

    def register_local_var(self, var: Any) -> None:
        """Let the gradients of a variable stay this rank's own."""
        self._local.register(var)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Reduce the gradients, unless ``compute_gradients`` has, and apply them; called by all ranks."""
        self.reduce_and_apply(self, super().apply, grads, trainable_variables)  # type: ignore[misc]

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Any, Any]],
        name: str | None = None,  # noqa: ARG002  # Keras 2 names the operation
        experimental_aggregate_gradients: bool = True,
        skip_gradients_aggregation: bool = False,
    ) -> Any:
        """Reduce the gradients, unless they are said to be reduced already, and apply them; called by all ranks."""
        gradients, variables = zip(*grads_and_vars, strict=True)
        if skip_gradients_aggregation or not experimental_aggregate_gradients:
            self._reduced = gradients
        self.apply(gradients, variables)
        return _counted(self)._iterations

    def compute_gradients(self, loss: Any, var_list: Any, tape: Any = None) -> list[tuple[Any, Any]]:
        """The gradients of a loss, reduced over all ranks; as ``_compute_gradients``."""
        return self._compute_gradients(loss, var_list, tape=tape)

    def _compute_gradients(
        self, loss: Any, var_list: Any, grad_loss: Any = None, tape: Any = None
    ) -> list[tuple[Any, Any]]:
        """The gradients of a loss, reduced over all ranks, for ``apply_gradients``; called by all ranks.

        Args:
            loss: A function of nothing, or a tensor that ``tape`` has recorded.
            var_list: Variables, or lists of them.
            grad_loss: The gradient of what is minimised with respect to the loss.
            tape: A ``tf.GradientTape``.

        Returns:
            Pairs of a gradient and its variable.
        """
        variables = bridge.flat(var_list)
        gradients = bridge.gradients_of(loss, variables, grad_loss, tape)
        return list(zip(self._reduce(gradients, variables), variables, strict=True))

    def get_gradients(self, loss: Any, params: Sequence[Any]) -> list[Any]:
        """The gradients of a loss, by the optimizer's own method if it has one, reduced over all ranks."""
        own = getattr(super(), "get_gradients", None)
        gradients = own(loss, params) if own else bridge.gradients_of(loss, params, None, None)
        return self._reduce(gradients, params)

    def reduce_and_apply(
        self, owner: Any, apply: Callable[[Any, Any], None], gradients: Sequence[Any], variables: Any
    ) -> None:
        """Reduce the gradients of a step, then apply them if this was the last backward pass of the step.

        Args:
            owner: This optimizer, or the ``LossScaleOptimizer`` around it.
            apply: What applies reduced gradients: ``owner``'s class has it.
            gradients: What ``owner`` got.
            variables: What ``owner`` got; None: those it is built for.
        """
        if self._is_inside or not len(gradients) or (variables is None and not owner.built):
            return apply(gradients, variables)
        variables = list(owner._trainable_variables if variables is None else variables)
        if not self._are_reduced(gradients):
            gradients = self._reduce(gradients, variables, owner)
        self._reduced = ()

        def update() -> None:
            self._is_inside = True
            try:
                apply(gradients, variables)
            finally:
                self._is_inside = False

        def update_if_finite() -> None:
            if _watches(owner):
                reduced = [each for each, of in zip(gradients, variables, strict=True) if of not in self._local]
                keras.ops.cond(bridge.all_finite(reduced), update, lambda: None)
            else:
                update()

        if not owner.built and (self._agg_helper or _watches(owner)):  # variables can't be made in a branch
            owner.build(variables)
        if self._agg_helper is None:
            return update_if_finite()
        keras.ops.cond(self._agg_helper.is_empty(), update_if_finite, self._skip)
        return None

    def _skip(self) -> None:
        # As in Horovod, every pass counts as an iteration: schedules of the learning rate go by batches.
        _counted(self)._iterations.assign_add(1)

    def _reduce(self, gradients: Sequence[Any], variables: Sequence[Any], owner: Any = None) -> list[Any]:
        reduce_shared = functools.partial(self.reduction.reduce, watches=_watches(owner or self))

        def reduce(some: Sequence[Any], of: Sequence[Any]) -> list[Any]:
            return self._local.reduce_others(some, of, reduce_shared)

        reduced = (
            self._agg_helper.add(gradients, variables, reduce) if self._agg_helper else reduce(gradients, variables)
        )
        self._reduced = tuple(reduced)
        return reduced

    def _are_reduced(self, gradients: Sequence[Any]) -> bool:
        known = {id(gradient) for gradient in self._reduced}
        return bool(known) and all(id(gradient) in known for gradient in gradients)


def _watches(optimizer: Any) -> bool:
    """Whether to leave out steps that aren't finite; a ``LossScaleOptimizer`` has to see them, and does so itself."""
    return world.skips_steps() and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _counted(optimizer: Any) -> Any:
    """The optimizer that counts the iterations: of a ``LossScaleOptimizer`` the inner one."""
    return getattr(optimizer, "inner_optimizer", optimizer)
