"""What to do when the ranks come with different operations: they tell each other all that waits, and sort it out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from collective.engine.calls import SHUTDOWN, Call, digest, ranks_text
from collective.engine.matching import gather_texts
from collective.transport.base import Transport

# Longest description that travels; a rank with thousands of tensors differs from the others early.
LONGEST_TEXT = 2000


class Outcome(NamedTuple):
    """What all ranks know alike after they have told each other.

    Attributes:
        agreed: Names of the operations that can be carried out, in an order that is the same on all ranks.
        different: For each name that means different things: every rank's description.
        hopeless: Whether nothing that waits can ever be matched.
        waiting: Every rank's description of what waits there, in rank order.
        missing: Which ranks lack what, in words.
    """

    agreed: list[str]
    different: dict[str, list[str]]
    hopeless: bool
    waiting: list[str]
    missing: str


def negotiate(transport: Transport, pending: Mapping[str, Call], silent: bool) -> Outcome:
    """Tell each other what waits; called by all ranks.

    Args:
        transport: All ranks.
        pending: This rank's calls by name, the oldest first.
        silent: Whether this rank can't call anything more before one of these has ended.

    Cost: an all-gather of the descriptions.
    """
    mine = {name: (digest(call, name), call.describe(name)[:LONGEST_TEXT]) for name, call in pending.items()}
    # A rank that leaves the job calls nothing more, whatever its threads do.
    leaving = any(call.kind == SHUTDOWN for call in pending.values())
    told = [json.loads(text) for text in gather_texts(transport, json.dumps([silent, leaving, mine]))]
    lists: list[dict[str, tuple[int, str]]] = [calls for _, _, calls in told]
    common = [name for name in lists[0] if all(name in calls for calls in lists)]
    agreed = [name for name in common if len({calls[name][0] for calls in lists}) == 1]
    different = {name: [calls[name][1] for calls in lists] for name in common if name not in agreed}
    hopeless = not common and (all(silent for silent, _, _ in told) or any(leaving for _, leaving, _ in told))
    waiting = ["; ".join(text for _, text in calls.values()) for calls in lists]
    return Outcome(agreed, different, hopeless, waiting, _missing(lists))


def _missing(lists: Sequence[Mapping[str, tuple[int, str]]]) -> str:
    """Such as: allreduce 'a' of float32[3] Sum (not called on rank 1)."""
    everything = {name: text for calls in lists for name, (_, text) in calls.items()}
    lacking = {
        text: [rank for rank, calls in enumerate(lists) if name not in calls] for name, text in everything.items()
    }
    return "; ".join(f"{text} (not called on {ranks_text(ranks)})" for text, ranks in lacking.items() if ranks)
