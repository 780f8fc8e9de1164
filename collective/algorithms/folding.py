"""Fold any number of ranks to a power of two, for the algorithms that pair ranks by the bits of their number.

Of the first 2(N - P) ranks, P being the largest power of two up to N, each even one hands its values to its odd
neighbour, stands aside and is given the result at the end.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from collective.reduction import Reduction
from collective.transport.base import Transport


@dataclasses.dataclass(frozen=True)
class Folding:
    """Who takes part.

    Attributes:
        size: The power of two.
        rank: This rank's number among those that take part; None: it stands aside.
        partner: The neighbour in the fold; None: outside it.
    """

    size: int
    rank: int | None
    partner: int | None

    def rank_of(self, folded_rank: int, size: int) -> int:
        """The job's rank for a number among those that take part."""
        aside = size - self.size
        return 2 * folded_rank + 1 if folded_rank < aside else folded_rank + aside


def fold(transport: Transport, array: np.ndarray, reduction: Reduction) -> Folding:
    """Join the values of the ranks that stand aside to their partners'. One message of all bytes in each pair."""
    power = 1 << (transport.size.bit_length() - 1)
    aside = transport.size - power
    rank = transport.rank
    if rank >= 2 * aside:
        return Folding(power, rank - aside, None)
    if rank % 2 == 0:
        transport.send(array, rank + 1).wait()
        return Folding(power, None, rank + 1)
    contribution = np.empty_like(array)
    transport.receive(contribution, rank - 1).wait()
    reduction.combine(contribution, array, array)
    return Folding(power, rank // 2, rank - 1)


def unfold(transport: Transport, array: np.ndarray, folding: Folding) -> None:
    """Hand the result to the ranks that stood aside. One message of all bytes in each pair."""
    if folding.partner is None:
        return
    if folding.rank is None:
        transport.receive(array, folding.partner).wait()
    else:
        transport.send(array, folding.partner).wait()


def exchange(transport: Transport, outgoing: np.ndarray, incoming: np.ndarray, partner: int) -> None:
    """Swap two buffers with ``partner``; the receive is posted first so that neither waits for the other."""
    arriving = transport.receive(incoming, partner)
    leaving = transport.send(outgoing, partner)
    arriving.wait()
    leaving.wait()
