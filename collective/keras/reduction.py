"""How the gradients of one step become those of all ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

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
    compression: Any = bridge.Compression.none
    sparse_as_dense: bool = False
    gradient_predivide_factor: float = 1.0
    groups: bridge.Groups = None
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
        if self.passes < 1:
            raise ArgumentError(
                "gradients are applied after one backward pass or more",
                received=f"backward_passes_per_step={self.passes!r}",
            )

    def local_variables(self) -> bridge.LocalSources:
        """A list, still empty, of variables whose gradients stay this rank's own."""
        return bridge.LocalSources(self.process_set, self.scale_local_gradients)

    def reduce(self, gradients: Sequence[Any], variables: Sequence[Any], watches: bool = False) -> list[Any]:
        """Reduce a step's gradients; called by all ranks of the process set.

        Args:
            gradients: One for each of ``variables``; None where there is none.
            variables: The same on all ranks, in the same order.
            watches: Whether to tell of gradients that aren't finite, with whom the step is left out.

        Returns:
            The gradients in the order given.
        """
        return bridge.reduce_gradients(
            gradients,
            self.op,
            self.compression,
            sparse_as_dense=self.sparse_as_dense,
            # As in Horovod, a sum has nothing to divide.
            gradient_predivide_factor=self.gradient_predivide_factor if self.op is Average else 1.0,
            groups=bridge.places(self.groups, gradients, variables),
            process_set=self.process_set,
            names=[bridge.name_of(variable) for variable in variables],
            watches=watches,
            raises=False,
        )
