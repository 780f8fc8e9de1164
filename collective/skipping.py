"""Tell whose gradients make a step one that is left out on all ranks (``COLLECTIVE_CHECK_FINITE=skip``).

Reduced gradients are the same on all ranks, so each rank sees by itself that they aren't finite and leaves the step
out. Only then do the ranks tell each other whose own gradients were not: as long as all is well no message is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collective import collectives, world
from collective.engine.calls import ranks_text
from collective.engine.finite import is_finite
from collective.errors import NonFiniteError
from collective.log import logger
from collective.process_sets import ProcessSet, global_process_set

# Names in a message; a rank whose loss is no number has no finite gradient at all.
MOST_NAMES = 3


def all_finite(arrays: Sequence[np.ndarray]) -> bool:
    """Tell whether no array has an infinite value or one that is no number; a pass over the arrays."""
    return all(map(is_finite, arrays))


def tell(
    own: Sequence[np.ndarray],
    reduced: Sequence[np.ndarray],
    names: Sequence[str],
    process_set: ProcessSet | None = None,
    raises: bool = False,
) -> None:
    """Say which reduced gradients are not finite, and of which ranks; called by all ranks that have seen it.

    Args:
        own: What this rank gave.
        reduced: What all got, not all of it finite.
        names: What each is the gradient of.
        process_set: The ranks that took part; a rank outside speaks for itself.
        raises: Make it an error, with ``raise``, and for who can't leave out a step.

    Raises:
        NonFiniteError: if ``raises``; else rank 0, or the first of the process set, says it in a warning.

    Cost:
        An all-gather of a byte for each gradient that isn't finite.
    """
    members = process_set or global_process_set
    places = [place for place, array in enumerate(reduced) if not is_finite(array)]
    mine = np.array([[not is_finite(own[place]) for place in places]])
    alone = members.included() is False
    everyone = mine if alone else collectives.allgather(mine, name="gradients.finite", process_set=members)
    ranks = [world.rank()] if alone else list(members.ranks or range(world.size()))
    told = [f"{names[place]}: {_whose(everyone[:, column], ranks)}" for column, place in enumerate(places[:MOST_NAMES])]
    more = [f"and {len(places) - MOST_NAMES} more"] if len(places) > MOST_NAMES else []
    text = "; ".join([*told, *more])
    if raises:
        raise NonFiniteError(
            "reduced gradients are finite",
            received=text,
            fix="Look at that rank's batch and loss; COLLECTIVE_CHECK_FINITE=pass lets such values pass",
            operation="gradients",
            where=world.topology().where,
        )
    if world.rank() == ranks[0]:
        logger.warning("This step is left out on all ranks, as reduced gradients are not finite. %s", text)


def _whose(is_bad: np.ndarray, ranks: Sequence[int]) -> str:
    bad = [rank for rank, flag in zip(ranks, is_bad, strict=True) if flag]
    return f"not finite on {ranks_text(bad)}" if bad else "finite on all ranks, so that the sum is too large"
