"""Find out which rank's values made a reduced value infinite or not a number (``COLLECTIVE_CHECK_FINITE=raise``).

The result is the same on all ranks, so all of them see that it is not finite, and only then do they tell each other
whose values were not: as long as all is well no message is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collective.dtypes import is_half
from collective.engine.calls import ranks_text
from collective.engine.matching import gather_counts
from collective.errors import NonFiniteError
from collective.transport.base import Transport


def require(
    transport: Transport, label: str, arrays: Sequence[np.ndarray] | None, results: Sequence[np.ndarray], where: str
) -> None:
    """Raise on all ranks unless all results are finite; called by all ranks with the same results.

    Args:
        transport: The ranks.
        label: The operation as errors name it.
        arrays: What this rank gave; None: it was overwritten.
        results: What all got.
        where: This rank as errors name it.

    Raises:
        NonFiniteError: it names the first such result, and the ranks whose values were not finite.
    """
    place = _first(results)
    if place is None:
        return
    own = _first(arrays) if arrays is not None else None
    given = gather_counts(transport, -1 if own is None else own)
    ranks = [transport.members[rank] for rank in range(transport.size) if given[rank] >= 0]
    array = f"array {place + 1} of {len(results)}, {results[place].dtype}{list(results[place].shape)}"
    cause = f"not finite on {ranks_text(ranks)}" if ranks else "finite on all ranks, so that the sum is too large"
    raise NonFiniteError(
        "reduced values are finite",
        received=f"{array}: {cause if arrays is not None else 'reduced in place, so that nobody knows whose it was'}",
        fix="Look at that rank's batch and loss; unset COLLECTIVE_CHECK_FINITE to let such values pass",
        operation=label,
        where=where,
    )


def _first(arrays: Sequence[np.ndarray]) -> int | None:
    """The place of the first array with an infinite value or one that is no number."""
    return next((place for place, array in enumerate(arrays) if not is_finite(array)), None)


def is_finite(array: np.ndarray) -> bool:
    """Tell whether no value is infinite or no number; a pass over the array."""
    if array.dtype.kind not in "fc" and not is_half(array.dtype):
        return True
    with np.errstate(all="ignore"):
        # One pass that writes nothing; a sum may be too large while no value is.
        return bool(np.isfinite(array.sum(dtype=np.float32 if is_half(array.dtype) else None))) or bool(
            np.isfinite(array).all()
        )
