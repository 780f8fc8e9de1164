"""An optimizer that averages gradients over all ranks before it applies them."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from collective import world
from collective.errors import ArgumentError
from collective.monitor import activity
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Adasum, Average, ReduceOp, Sum
from collective.torch.compression import Compression, Compressor, pack
from collective.torch.delta import Stepping
from collective.torch.gradients import Gradients, Options


class _NotFinite(Exception):
    """Leaves a step in the middle, with the loss."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss


class Averaging:
    """What ``DistributedOptimizer`` puts in front of a PyTorch optimizer's class."""

    _gradients: Gradients
    _skips = False
    _synchronized = False

    def start(self, options: Options, passes: int, names: Mapping[torch.Tensor, str]) -> None:
        """Begin with a wrapped optimizer; called by all ranks."""
        self._gradients = Gradients(_parameters(self), names, options, passes)

    @property
    def backward_passes_per_step(self) -> int:
        """How many backward passes add up in one step."""
        return self._gradients.passes

    def synchronize(self) -> None:
        """Wait until the gradients are averaged, to do something with them before ``step``; called by all ranks.

        Example::

            optimizer.synchronize()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            with optimizer.skip_synchronize():
                optimizer.step()
        """
        self._average()
        self._synchronized = True

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Let ``step`` inside apply the gradients as they are, for they are averaged already."""
        self._skips = True
        try:
            yield
        finally:
            self._skips = False

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Change how many backward passes add up in one step, from the next step on; called by all ranks."""
        self._gradients.passes = _checked_passes(passes)
        self._gradients.forget()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Average the gradients, then apply them; called by all ranks. After each call of ``closure`` likewise.

        With ``COLLECTIVE_CHECK_FINITE=skip`` nothing is applied on any rank if an average is not finite, and a rank is
        named in a warning. What calls ``closure`` several times (LBFGS) keeps what it has done until then.
        """
        activity.count_step()
        if self._skips:
            self._synchronized = False
            return super().step(closure) if self._gradients.are_finite else None  # type: ignore[misc]
        if closure is None:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(): the gradients are averaged twice, which takes time.",
                    stacklevel=2,
                )
            self._average()
            self._synchronized = False
            return super().step() if self._gradients.are_finite else None  # type: ignore[misc]

        def averaged() -> Any:
            loss = closure()
            self._average()
            if not self._gradients.are_finite:
                raise _NotFinite(loss)
            return loss

        try:
            return super().step(averaged)  # type: ignore[misc]
        except _NotFinite as leaving:
            return leaving.loss

    def _average(self) -> None:
        self._gradients.watch(_parameters(self))  # some may have been frozen until now
        self._gradients.synchronize()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Forget the gradients, unless they may be on their way to other ranks."""
        self._gradients.check_idle()
        super().zero_grad(*args, **kwargs)  # type: ignore[misc]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up more parameters; called by all ranks."""
        super().add_param_group(param_group)  # type: ignore[misc]
        self._gradients.watch(_parameters(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of an optimizer, wrapped or not, and begin a step anew; called by all ranks."""
        self._gradients.forget()
        self._synchronized = False
        super().load_state_dict(state_dict)  # type: ignore[misc]


# The hooks that users register run in the step of the wrapped class, when the gradients are averaged. PyTorch adds
# their calls to every step that doesn't say that it has them.
Averaging.step.hooked = True  # type: ignore[attr-defined]


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: type[Compressor] = Compression.none,
    backward_passes_per_step: int = 1,
    op: ReduceOp = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | Sequence[Sequence[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Wrap a PyTorch optimizer so that every step averages the gradients over all ranks.

    Called by all ranks; the steps then are collective operations. Between hosts gradients travel while others are
    computed. A parameter that has no gradient on some rank counts as zeros there; one that has none on any rank is
    left alone by the step, as it is without this library.

    Args:
        optimizer: Any optimizer of PyTorch's interface. The result shares its state and parameter groups: use the
            result in its place.
        named_parameters: ``model.named_parameters()``, for the names in errors; all of the optimizer's, or None.
        compression: How gradients travel, one of ``Compression`` or a ``Compressor`` of the user's own.
        backward_passes_per_step: Backward passes whose gradients add up before they are averaged; they are not divided
            by it.
        op: ``Average``, or ``Sum``; or ``Adasum``: every rank takes a step of its own, and these steps are joined.
        gradient_predivide_factor: Horovod's way to keep sums of half precision from overflowing. Averages of it can't
            here, so it has nothing to do; as there it goes with ``Average`` only.
        num_groups: Horovod's older way to say ``groups``.
        groups: Which parameters travel together between hosts, or in how many groups; None: chosen by size.
        sparse_as_dense: Average sparse gradients as dense ones, made sparse again for the step; else every rank gets
            the entries of all.
        process_set: The ranks whose gradients are averaged; on the others the optimizer steps alone.

    Returns:
        An optimizer of a class with the same name, with ``synchronize``, ``skip_synchronize`` and
        ``set_backward_passes_per_step`` beside the methods of the wrapped one.

    Raises:
        ArgumentError: when it is no optimizer, is wrapped already, or another argument is none of the above.

    Cost of a step per rank:
        One all-reduce of the gradients: 2(N-1)/N x bytes.
    """
    _check(optimizer, op, gradient_predivide_factor, process_set)
    pack(compression, [])
    passes = _checked_passes(backward_passes_per_step)
    names = _checked_names(optimizer, named_parameters)
    options = Options(
        op, compression, sparse_as_dense, _checked_groups(num_groups if groups is None else groups), process_set
    )
    # Alone there is nothing to join, and a step is a step.
    wrapped = _wrapped(optimizer, Stepping if op is Adasum and process_set.size() != 1 else Averaging)
    wrapped.start(options, passes, names)
    return wrapped


def _wrapped(optimizer: torch.optim.Optimizer, front: type) -> Any:
    """An optimizer with the methods of ``front`` before its own; both share their state."""
    base = type(optimizer)
    kind = type(base.__name__, (front, base), {"__module__": base.__module__, "__doc__": base.__doc__})
    wrapped: Any = object.__new__(kind)
    # All but what a learning rate scheduler may have put over the class's own step.
    vars(wrapped).update({name: value for name, value in vars(optimizer).items() if name != "step"})
    return wrapped


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check(optimizer: Any, op: ReduceOp, predivide: float, process_set: ProcessSet) -> None:
    world.backend("DistributedOptimizer")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentError(
            "DistributedOptimizer wraps a PyTorch optimizer",
            received=f"optimizer={optimizer!r}",
            fix="Pass an instance, such as torch.optim.Adam(model.parameters())",
        )
    if isinstance(optimizer, (Averaging, Stepping)):
        raise ArgumentError(
            "an optimizer is wrapped once, or gradients are averaged twice", received=type(optimizer).__name__
        )
    if op not in (Average, Sum, Adasum):
        raise ArgumentError(
            "gradients are averaged or summed, or steps joined", received=f"op={op!r}", fix="Use Average, Sum or Adasum"
        )
    if process_set.process_set_id is None:
        raise ArgumentError(
            "a process set is registered before it is used",
            received=f"process_set={process_set}",
            fix="Call add_process_set on all ranks",
        )
    if predivide != 1.0 and op is not Average:
        raise ArgumentError(
            "gradient_predivide_factor goes with op=Average",
            received=f"gradient_predivide_factor={predivide}, op={op!r}",
        )


def _checked_passes(passes: int) -> int:
    if not isinstance(passes, int) or passes < 1:
        raise ArgumentError("backward_passes_per_step is at least 1", received=f"backward_passes_per_step={passes!r}")
    return passes


def _checked_names(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, torch.Tensor]] | None
) -> dict[torch.Tensor, str]:
    named = list(named_parameters or [])
    if any(not isinstance(pair, tuple) or len(pair) != 2 for pair in named):
        raise ArgumentError(
            "named_parameters is a sequence of tuples (name, parameter)",
            received=f"{named[0]!r:.60}",
            fix="Pass model.named_parameters()",
        )
    twice = [name for name, count in Counter(name for name, _ in named).items() if count > 1]
    if twice:
        raise ArgumentError("parameter names in named_parameters are unique", received=", ".join(twice))
    names = {parameter: name for name, parameter in named}
    nameless = [list(parameter.shape) for parameter in _parameters(optimizer) if parameter not in names]
    if named and nameless:
        raise ArgumentError(
            "named_parameters, if given, names all parameters of the optimizer",
            received=f"none for {len(nameless)} parameters of shapes {str(nameless)[1:-1]}",
            fix="Pass the named_parameters() of all models that it optimizes, or leave them out",
        )
    return names


def _checked_groups(groups: Any) -> int | Sequence[Sequence[torch.Tensor]]:
    if isinstance(groups, int):
        if groups < 0:
            raise ArgumentError("the number of groups is not negative", received=f"groups={groups}")
        return groups
    if not isinstance(groups, (list, tuple)) or not all(isinstance(group, (list, tuple)) for group in groups):
        raise ArgumentError("groups is a number or a list of lists of parameters", received=f"{type(groups).__name__}")
    if any(count > 1 for count in Counter(parameter for group in groups for parameter in group).values()):
        raise ArgumentError("a parameter is in one group at most", received="groups with the same parameter twice")
    return groups
