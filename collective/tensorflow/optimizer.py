"""Optimizers of TF1 whose gradients are reduced over all ranks; Keras's are passed on to ``collective.keras``."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from collective import world
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Adasum, Average, ReduceOp
from collective.tensorflow.compression import Compression, Compressor
from collective.tensorflow.finite import if_finite, name_of
from collective.tensorflow.gradient_aggregation import LocalGradientAggregationHelper
from collective.tensorflow.gradients import reduce_gradients
from collective.tensorflow.groups import Groups, checked_groups, places
from collective.tensorflow.local_sources import LocalSources
from collective.tensorflow.reductions import allreduce
from collective.tensorflow.tape import check_predivide


class _Wrapping(tf.compat.v1.train.Optimizer):
    """A TF1 optimizer that asks another one for its slots and variables."""

    def __init__(self, optimizer: tf.compat.v1.train.Optimizer, name: str, use_locking: bool) -> None:
        super().__init__(name=name, use_locking=use_locking)
        self._optimizer = optimizer

    def compute_gradients(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """The wrapped optimizer's gradients and variables."""
        return self._optimizer.compute_gradients(*args, **kwargs)

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Apply gradients by the wrapped optimizer."""
        return self._optimizer.apply_gradients(grads_and_vars, global_step=global_step, name=name)

    def get_slot(self, *args: Any, **kwargs: Any) -> Any:
        """The wrapped optimizer's slot."""
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args: Any, **kwargs: Any) -> list[str]:
        """The wrapped optimizer's names of slots."""
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The wrapped optimizer's variables."""
        return self._optimizer.variables(*args, **kwargs)


class _DistributedOptimizer(_Wrapping):
    """Reduces gradients when they are computed. See ``DistributedOptimizer``."""

    _agg_helper: LocalGradientAggregationHelper | None = None

    def __init__(
        self,
        optimizer: tf.compat.v1.train.Optimizer,
        name: str,
        use_locking: bool,
        groups: Groups,
        scale_local_gradients: bool,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, name, use_locking)
        self._groups, self._options = groups, options
        self._local = LocalSources(options["process_set"], scale_local_gradients)

    def add_up(self, backward_passes_per_step: int, average: bool, scale_local_gradients: bool) -> None:
        """Reduce the sums of several backward passes only; in graphs.

        Raises:
            ArgumentError: eagerly, where a TF1 optimizer can't skip a step; a ValueError.
        """
        if tf.executing_eagerly():
            raise ArgumentError(
                "a TF1 optimizer adds up several backward passes in a graph",
                received=f"backward_passes_per_step={backward_passes_per_step}, eager execution",
                fix="Use a Keras optimizer",
            )
        self._agg_helper = LocalGradientAggregationHelper(
            backward_passes_per_step,
            self._reduce,
            self._options["sparse_as_dense"],
            average,
            world.rank(),
            process_set=self._options["process_set"],
            scale_local_gradients=scale_local_gradients,
            name=self.get_name(),
        )

    def register_local_var(self, var: Any) -> None:
        """Let every rank keep its own gradient of this variable."""
        register = self._agg_helper.register_local_var if self._agg_helper else self._local.register
        register(var)

    def compute_gradients(self, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """The wrapped optimizer's gradients, reduced over all ranks, and variables; called by all ranks."""
        pairs = self._optimizer.compute_gradients(*args, **kwargs)
        gradients, variables = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        if self._agg_helper:
            reduced = self._agg_helper.compute_gradients(gradients, variables)
        else:
            reduced = self._local.reduce_others(gradients, variables, self._reduce)
        return list(zip(reduced, variables, strict=True))

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Apply gradients by the wrapped optimizer, when those of all passes are in them."""
        pairs = list(grads_and_vars)

        def apply() -> Any:
            return self._optimizer.apply_gradients(pairs, global_step=global_step, name=name)

        def apply_if_finite() -> Any:
            if not world.skips_steps():
                return apply()
            return if_finite([gradient for gradient, variable in pairs if variable not in self._local], apply)

        if self._agg_helper is None:
            return apply_if_finite()
        return self._agg_helper.apply_gradients(apply_if_finite, self._optimizer, pairs, global_step=global_step)

    def _reduce(self, gradients: list[Any], variables: list[Any]) -> list[Any]:
        grouped, names = places(self._groups, gradients, variables), [*map(name_of, variables)]
        return reduce_gradients(gradients, groups=grouped, names=names, raises=False, **self._options)


class _DistributedAdasumOptimizer(_Wrapping):
    """Lets every rank make steps of its own, and joins the ranks' changes of the variables by Adasum."""

    def __init__(
        self,
        optimizer: tf.compat.v1.train.Optimizer,
        name: str,
        use_locking: bool,
        compression: type[Compressor],
        backward_passes_per_step: int,
    ) -> None:
        super().__init__(optimizer, name, use_locking)
        self._compression, self._passes = compression, backward_passes_per_step

    def apply_gradients(self, grads_and_vars: Any, global_step: Any = None, name: str | None = None) -> Any:
        """Apply gradients by the wrapped optimizer; every n-th time, join the changes since the last time."""
        pairs = [(gradient, variable) for gradient, variable in grads_and_vars if gradient is not None]
        variables = [variable for _, variable in pairs]
        starts = [self._zeros_slot(variable, "delta_start", self._name) for variable in variables]
        count = self._create_non_slot_variable(tf.zeros([], tf.int64), "step_count", variables[0])
        number = count.read_value() % self._passes

        def remember() -> tf.Operation:
            return tf.group(*[start.assign(variable) for start, variable in zip(starts, variables, strict=True)])

        def join() -> tf.Operation:
            assigned = []
            for start, variable in zip(starts, variables, strict=True):
                before = start.read_value()
                change = allreduce(variable.read_value() - before, op=Adasum, compression=self._compression)
                assigned.append(variable.assign(before + change))
            return tf.group(*assigned)

        with tf.control_dependencies(_present(tf.cond(tf.equal(number, 0), remember, tf.no_op))):
            applied = self._optimizer.apply_gradients(pairs, global_step=global_step, name=name)
        with tf.control_dependencies(_present(applied)):
            joined = tf.cond(tf.equal(number, self._passes - 1), join, tf.no_op)
        with tf.control_dependencies(_present(joined)):
            return tf.group(count.assign_add(1))


def _present(operation: Any) -> list[Any]:
    """An operation as control dependencies; eagerly there is none."""
    return [] if operation is None else [operation]


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    use_locking: bool = False,
    device_dense: str = "",
    device_sparse: str = "",
    compression: type[Compressor] = Compression.none,
    sparse_as_dense: bool = False,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    average_aggregated_gradients: bool = False,
    num_groups: int = 0,
    groups: Any = None,
    process_set: ProcessSet = global_process_set,
    scale_local_gradients: bool = True,
) -> Any:
    """Wrap an optimizer so that every step reduces the gradients over all ranks.

    Args:
        optimizer: A ``tf.compat.v1.train.Optimizer``, or a Keras optimizer, which goes to ``collective.keras``.
        name: Its name; None: made from the optimizer's class.
        use_locking: As a TF1 optimizer takes it.
        device_dense: Accepted and not used.
        device_sparse: Accepted and not used.
        compression: How dense gradients travel between hosts.
        sparse_as_dense: Make sparse gradients dense first.
        backward_passes_per_step: How many backward passes are added up before one is reduced and applied.
        op: How gradients are reduced. ``Adasum`` joins the changes that the ranks' own steps make.
        gradient_predivide_factor: An average is divided by this before the sum, and by the rest after it.
        average_aggregated_gradients: Divide what was added up by the number of passes.
        num_groups: Older spelling of ``groups``.
        groups: How many operations reduce the dense gradients, or lists of variables for one each; None: one.
        process_set: The ranks that take part.
        scale_local_gradients: Divide gradients of variables given to ``register_local_var`` by the number of ranks.

    Raises:
        ArgumentError: for arguments that exclude each other; a ValueError.
        NotImplementedError: for Adasum in a process set.
    """
    check_predivide(gradient_predivide_factor, op)
    if op is Adasum and average_aggregated_gradients:
        raise ArgumentError("Adasum is not averaged", received="op=Adasum, average_aggregated_gradients=True")
    groups = checked_groups(groups, num_groups)
    options: dict[str, Any] = {
        "op": op,
        "compression": compression,
        "sparse_as_dense": sparse_as_dense,
        "gradient_predivide_factor": gradient_predivide_factor,
        "process_set": process_set,
    }
    if not isinstance(optimizer, tf.compat.v1.train.Optimizer):
        return _of_keras(
            optimizer,
            name=name,
            device_dense=device_dense,
            device_sparse=device_sparse,
            backward_passes_per_step=backward_passes_per_step,
            average_aggregated_gradients=average_aggregated_gradients,
            groups=groups,
            scale_local_gradients=scale_local_gradients,
            **options,
        )
    if op is Adasum:
        if process_set.process_set_id:
            raise NotImplementedError("Adasum in a process set: use all ranks")
        name = name or f"DistributedDelta{type(optimizer).__name__}"
        return _DistributedAdasumOptimizer(optimizer, name, use_locking, compression, backward_passes_per_step)
    name = name or f"Distributed{type(optimizer).__name__}"
    wrapped = _DistributedOptimizer(optimizer, name, use_locking, groups, scale_local_gradients, **options)
    if backward_passes_per_step > 1:
        wrapped.add_up(backward_passes_per_step, average_aggregated_gradients, scale_local_gradients)
    return wrapped


def _of_keras(optimizer: Any, **options: Any) -> Any:
    if options["op"] is Adasum:
        raise ArgumentError("Keras optimizers average or sum", received="op=Adasum")
    # Imported here because Keras need not be there.
    from collective.tensorflow import keras

    return keras.DistributedOptimizer(optimizer, **options)
