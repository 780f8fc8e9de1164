"""Add up the gradients of several backward passes in a TF1 graph, and reduce only the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.tensorflow.local_sources import LocalSources, divided


class LocalGradientAggregationHelper:
    """The sums of gradients, and how many passes are in them.

    Its variables are local ones of the graph: ``tf.compat.v1.local_variables_initializer`` sets them to zero.

    Args:
        backward_passes_per_step: How many passes are added up.
        allreduce_func: Reduces gradients, given with their variables.
        sparse_as_dense: Make sparse gradients dense; else they are refused.
        average_aggregated_gradients: Divide the sums by the number of passes.
        rank: Of this process; part of the names of the variables.
        optimizer_type: Accepted and not used.
        process_set: The ranks that take part.
        scale_local_gradients: Divide gradients of local variables by the number of ranks.
        name: Part of the names of the variables.

    Attributes:
        counter: How many passes are in the sums, a variable; None before ``compute_gradients``.
    """

    _OPTIMIZER_TYPE_KERAS = "optimizer_type_keras"
    _OPTIMIZER_TYPE_LEGACY = "optimizer_type_legacy"

    def __init__(
        self,
        backward_passes_per_step: int,
        allreduce_func: Callable[[list[Any], list[Any]], list[Any]],
        sparse_as_dense: bool,
        average_aggregated_gradients: bool,
        rank: int,
        optimizer_type: str = _OPTIMIZER_TYPE_LEGACY,  # noqa: ARG002
        process_set: ProcessSet = global_process_set,
        scale_local_gradients: bool = True,
        name: str = "",
    ) -> None:
        if backward_passes_per_step <= 0:
            raise ArgumentError(
                "a step has one backward pass or more", received=f"backward_passes_per_step={backward_passes_per_step}"
            )
        self.backward_passes_per_step = backward_passes_per_step
        self.average_aggregated_gradients = average_aggregated_gradients
        self.sparse_as_dense = sparse_as_dense
        self.counter: Any = None
        self._reduce = allreduce_func
        self._scope = f"aggregation_variables_{name}{rank}"
        self._local = LocalSources(process_set, scale_local_gradients)

    def register_local_var(self, var: Any) -> None:
        """Let every rank keep its own gradient of this variable."""
        self._local.register(var)

    def compute_gradients(self, grads: Sequence[Any], vars: Sequence[Any]) -> list[Any]:
        """Add gradients to the sums.

        Returns:
            In the last pass of a step the reduced sums, else the sums so far; None where the gradient is.
        """
        present = [place for place, gradient in enumerate(grads) if gradient is not None]
        dense = [self._dense(grads[place]) for place in present]
        sums = self._sums(present, dense)
        first = tf.equal(self.counter, 0)
        added = [
            total.assign(tf.where(first, gradient, total.read_value() + gradient))
            for total, gradient in zip(sums, dense, strict=True)
        ]
        with tf.control_dependencies(added):
            counted = self.counter.assign_add(1)
        with tf.control_dependencies([counted]):
            so_far = [total.read_value() for total in sums]
            last = tf.equal(self.counter.read_value(), self.backward_passes_per_step)

        def reduced() -> list[tf.Tensor]:
            results = self._local.reduce_others(so_far, [vars[place] for place in present], self._reduce)
            if self.average_aggregated_gradients:
                results = [divided(result, self.backward_passes_per_step) for result in results]
            with tf.control_dependencies([*results, self.counter.assign(0)]):
                return [tf.identity(result) for result in results]

        handed_on = tf.cond(last, reduced, lambda: [tf.identity(each) for each in so_far]) if present else []
        results: list[Any] = [None] * len(grads)
        for place, gradient in zip(present, [handed_on] if tf.is_tensor(handed_on) else handed_on, strict=True):
            results[place] = gradient
        return results

    def apply_gradients(
        self, apply_grads_closure: Callable[[], Any], optimizer: Any, *args: Any, **kwargs: Any
    ) -> tf.Operation:
        """Apply the gradients of the last pass of a step; in the others only count ``iterations`` and global steps."""
        gradients = [gradient for gradient, _ in args[0] if gradient is not None]
        steps = [kwargs.get("global_step"), getattr(optimizer, "iterations", None)]

        def count() -> tf.Operation:
            return tf.group(*[step.assign_add(tf.ones_like(step)) for step in steps if step is not None])

        with tf.control_dependencies(gradients):
            complete = tf.equal(self.counter.read_value(), 0)
        return tf.cond(complete, lambda: tf.group(apply_grads_closure()), count)

    def _dense(self, gradient: Any) -> tf.Tensor:
        if isinstance(gradient, tf.IndexedSlices) and not self.sparse_as_dense:
            raise ArgumentError(
                "gradients that are added up over several passes are dense",
                received="tf.IndexedSlices",
                fix="Pass sparse_as_dense=True, or backward_passes_per_step=1",
            )
        return tf.convert_to_tensor(gradient)

    def _sums(self, places: Sequence[int], gradients: Sequence[tf.Tensor]) -> list[Any]:
        local: dict[str, Any] = {"trainable": False, "collections": [tf.compat.v1.GraphKeys.LOCAL_VARIABLES]}
        zeros = tf.compat.v1.zeros_initializer()
        with tf.compat.v1.variable_scope(self._scope, reuse=tf.compat.v1.AUTO_REUSE):
            self.counter = tf.compat.v1.get_variable("aggregation_counter", (), tf.int32, zeros, **local)
            return [
                tf.compat.v1.get_variable(str(place), gradient.shape, gradient.dtype, zeros, use_resource=True, **local)
                for place, gradient in zip(places, gradients, strict=True)
            ]
