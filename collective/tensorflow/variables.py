"""Start from one rank's variables: TensorFlow's or Keras's, eagerly, in ``tf.function`` and in TF1 graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

from collective import grouped
from collective.errors import ArgumentError, CollectiveError
from collective.process_sets import ProcessSet, global_process_set
from collective.tensorflow.graph import as_written, call


def broadcast_variables(
    variables: Sequence[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
    inplace: bool = False,  # noqa: ARG001
) -> tf.Operation | None:
    """Overwrite variables with those of rank ``root_rank``; called by all ranks.

    Args:
        variables: The same variables in the same order on all ranks.
        root_rank: The rank whose values all get, its number in the job.
        process_set: The ranks that take part.
        inplace: Accepted and not used: the values always go to where the variables are.

    Returns:
        In a TF1 graph, the operation that does it when it is run; else None.

    Cost:
        Each rank but the root receives the bytes once, in few messages.
    """
    variables = list(variables)
    assigned = _broadcast_into(variables, root_rank, "broadcast_variables", process_set)
    return None if tf.inside_function() or tf.executing_eagerly() else tf.group(*assigned)


def broadcast_(
    variables: Sequence[Any], root_rank: int, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[tf.Tensor]:
    """Overwrite variables with those of rank ``root_rank``, and return their new values. See ``broadcast_variables``.

    Raises:
        ValueError: for resource variables and the older reference variables in one call.
    """
    variables = list(variables)
    if len({resource_variable_ops.is_resource_variable(variable) for variable in variables}) > 1:
        raise ArgumentError("the variables of one call are of one kind", received="resource and reference variables")
    with tf.control_dependencies(_operations(_broadcast_into(variables, root_rank, name, process_set))):
        return [variable.read_value() for variable in variables]


def broadcast_global_variables(root_rank: int) -> tf.Operation | None:
    """The operation of a TF1 graph that overwrites all its global variables with those of rank ``root_rank``.

    Raises:
        RuntimeError: eagerly, where no list of all variables is kept.
    """
    if tf.executing_eagerly():
        raise CollectiveError(
            "all global variables are known in a TF1 graph only",
            received="eager execution",
            fix="Use broadcast_variables(model.variables, root_rank)",
            operation="broadcast_global_variables",
        )
    return broadcast_variables(tf.compat.v1.global_variables(), root_rank)


@as_written
def _broadcast_into(variables: list[Any], root_rank: int, name: str | None, process_set: ProcessSet) -> list[Any]:
    if not variables:
        return []

    def send(tag: str | None, *arrays: np.ndarray) -> list[np.ndarray]:
        return grouped.grouped_broadcast(arrays, root_rank, name=tag, process_set=process_set)

    values = [tf.convert_to_tensor(variable) for variable in variables]
    received = call(send, values, "broadcast_variables", [value.shape for value in values], name=name)
    return [variable.assign(value) for variable, value in zip(variables, received, strict=True)]


def _operations(assigned: list[Any]) -> list[tf.Operation]:
    return [] if tf.executing_eagerly() else [getattr(each, "op", each) for each in assigned]


# tf.estimator went with TensorFlow 2.16, and SessionRunHook with it from the top level.
_SessionRunHook: Any = getattr(getattr(tf, "estimator", None), "SessionRunHook", None) or getattr(
    tf.train, "SessionRunHook", None
)

if _SessionRunHook is not None:

    class BroadcastGlobalVariablesHook(_SessionRunHook):
        """A hook of TF1 sessions that overwrites all global variables with those of rank ``root_rank`` at the start.

        Args:
            root_rank: The rank whose values all get.
            device: Accepted and not used.
        """

        def __init__(self, root_rank: int, device: str = "") -> None:  # noqa: ARG002
            super().__init__()
            self.root_rank = root_rank
            self.bcast_op: tf.Operation | None = None

        def begin(self) -> None:
            """Put the operation into the graph, before it is final."""
            if self.bcast_op is None or self.bcast_op.graph is not tf.compat.v1.get_default_graph():
                self.bcast_op = broadcast_global_variables(self.root_rank)

        def after_create_session(self, session: Any, coord: Any) -> None:  # noqa: ARG002
            """Run it once the variables are there."""
            session.run(self.bcast_op)
