"""How the gradients of one step become those of all ranks."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from collective.compression import Compression
from collective.errors import ArgumentError
from collective.keras import bridge
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp, Sum


@dataclasses.dataclass(frozen=True)
class Reduction:
    """What an optimizer does with each step's gradients; see ``DistributedOptimizer``.

    Attributes:
        op: ``Average`` or ``Sum``.
        compression: How they travel.
        sparse_as_dense: Whether sparse gradients are made dense before.
        gradient_predivide_factor: What an average is divided by before the sum; the rest comes after it.
        groups: How many operations reduce them, or lists of variables that are reduced as one operation each.
        process_set: The ranks whose gradients are reduced; the others keep theirs.
        scale_local_gradients: Whether gradients of local variables are divided by the number of ranks.
        passes: Backward passes before gradients are reduced and applied.
        average_passes: Whether the sum of these passes is divided by their number.
    """

    op: ReduceOp = Average
    compression: Any = Compression.none
    sparse_as_dense: bool = False
    gradient_predivide_factor: float = 1.0
    groups: int | Sequence[Sequence[Any]] | None = None
    process_set: ProcessSet = global_process_set
    scale_local_gradients: bool = True
    passes: int = 1
    average_passes: bool = False

    def __post_init__(self) -> None:
        """Refuse what can't be done."""
        if self.op not in (Average, Sum):
            raise ArgumentError(
                "gradients are averaged or summed", received=f"op={self.op!r}", fix="Use Average or Sum"
            )
        if isinstance(self.groups, int) and self.groups <= 0:
            raise ArgumentError(
                "groups are a number of them, or lists of variables",
                received=f"groups={self.groups!r}",
                fix="Leave groups out to reduce all gradients together",
            )
        if self.passes < 1:
            raise ArgumentError(
                "gradients are applied after one backward pass or more",
                received=f"backward_passes_per_step={self.passes!r}",
            )

    def reduce(self, gradients: Sequence[Any], variables: Sequence[Any], local: AbstractSet[Hashable]) -> list[Any]:
        """Reduce a step's gradients; called by all ranks of the process set.

        Args:
            gradients: One for each of ``variables``; None where there is none.
            variables: The same on all ranks, in the same order.
            local: Keys of variables whose gradients stay this rank's own.

        Returns:
            The gradients in the order given.
        """
        if self.process_set.included() is False:
            return list(gradients)
        result = list(gradients)
        shared = [place for place, variable in enumerate(variables) if bridge.key_of(variable) not in local]
        reduced = bridge.reduce_gradients(
            [result[place] for place in shared],
            self.op,
            self.compression,
            sparse_as_dense=self.sparse_as_dense,
            # As in Horovod, a sum has nothing to divide.
            gradient_predivide_factor=self.gradient_predivide_factor if self.op is Average else 1.0,
            groups=self._places([variables[place] for place in shared]),
            process_set=self.process_set,
        )
        for place, gradient in zip(shared, reduced, strict=True):
            result[place] = gradient
        if self.scale_local_gradients:
            # The loss of all ranks is their mean, of which each has a share only in its own variables.
            for place in set(range(len(result))) - set(shared):
                result[place] = bridge.divided(result[place], self.process_set.size() or 1)
        return result

    def _places(self, variables: Sequence[Any]) -> list[list[int]] | None:
        if self.groups is None:
            return None
        if isinstance(self.groups, int):
            edges = [number * len(variables) // self.groups for number in range(self.groups + 1)]
            return [list(range(start, end)) for start, end in itertools.pairwise(edges) if start < end]
        place_of = {bridge.key_of(variable): place for place, variable in enumerate(variables)}
        keys = [[bridge.key_of(variable) for variable in group] for group in self.groups]
        return [[place_of[key] for key in group if key in place_of] for group in keys]
