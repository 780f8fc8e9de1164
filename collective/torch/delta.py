"""Adasum in an optimizer: not the gradients are joined but the steps that ranks take on their own.

Source: Maleki et al., "Scaling distributed training with adaptive summation", MLSys 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from collective import finite, grouped
from collective.reduce_ops import Adasum
from collective.torch.arrays import array_of, tensor_of
from collective.torch.compression import pack
from collective.torch.gradients import Options, OrderError, name_of, next_label


class Stepping:
    """What ``DistributedOptimizer`` with ``op=Adasum`` puts in front of a PyTorch optimizer's class."""

    def start(self, options: Options, passes: int, names: Mapping[torch.Tensor, str]) -> None:
        """Begin with a wrapped optimizer; called by all ranks."""
        self._options, self.backward_passes_per_step, self._names = options, passes, names
        self._label = next_label("steps", options.process_set)

    def synchronize(self) -> None:
        """Do nothing: it is the steps that are joined, not the gradients."""

    def skip_synchronize(self) -> NoReturn:
        """Refuse to step without the other ranks.

        Raises:
            OrderError: always.
        """
        raise OrderError("with op=Adasum every step is joined with those of the other ranks", fix="Call step() alone")

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Say how many backward passes add up in one step; ``step`` ends them in any case."""
        self.backward_passes_per_step = passes

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take this rank's own step, join it with those of the others, and take that; called by all ranks.

        Cost per rank:
            An all-reduce by Adasum of the parameters: log2 N messages of all bytes.
        """
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]  # type: ignore[attr-defined]
        before = [parameter.detach().clone() for parameter in parameters]
        loss = super().step(closure)  # type: ignore[misc]
        if self._options.process_set.included():
            with torch.no_grad():
                moves = [parameter - start for parameter, start in zip(parameters, before, strict=True)]
                with finite.named([name_of(parameter, self._names) for parameter in parameters]):
                    joined = self._joined(moves)
                for parameter, start, move in zip(parameters, before, joined, strict=True):
                    parameter.copy_(start + move)
        return loss

    def _joined(self, moves: list[torch.Tensor]) -> list[torch.Tensor]:
        packing = pack(self._options.compression, moves)
        arrays = [array_of(move) for move in packing.tensors]
        joined = grouped.grouped_allreduce(
            arrays,
            Adasum,
            name=self._label,
            out=arrays,
            compression=packing.wire,
            process_set=self._options.process_set,
        )
        return packing.unpack([tensor_of(array, move.device) for array, move in zip(joined, moves, strict=True)])


# As in ``Averaging``: hooks run in the wrapped class's step.
Stepping.step.hooked = True  # type: ignore[attr-defined]
