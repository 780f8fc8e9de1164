"""What to do when the ranks come with different operations: they tell each other all that waits, and sort it out.

A rank that has called ``join`` has nothing of its own to come with any more. It takes part in whatever the others agree
on, as far as taking part with nothing has a meaning: zeros for a sum, no rows for an all-gather.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from collective.engine.calls import JOIN, SHUTDOWN, Call, digest, ranks_text
from collective.engine.matching import gather_texts
from collective.transport.base import Transport

# Longest description in an error; a rank with thousands of tensors differs from the others early.
LONGEST_TEXT = 2000
# What a rank that has nothing more to give can take part in; data sent to it, or kept for it, would be lost.
WITHOUT_DATA = frozenset(("allreduce", "allgather", "broadcast", "barrier"))


class Outcome(NamedTuple):
    """What all ranks know alike after they have told each other.

    Attributes:
        agreed: The operations that can be carried out by name, in an order that is the same on all ranks.
        different: For each name that means different things: every rank's description.
        hopeless: Whether nothing that waits can ever be matched.
        waiting: Every rank's description of what waits there, in rank order.
        missing: Which ranks lack what, in words.
        joined: The ranks that have called ``join``.
    """

    agreed: dict[str, Call]
    different: dict[str, list[str]]
    hopeless: bool
    waiting: list[str]
    missing: str
    joined: frozenset[int]


def negotiate(transport: Transport, pending: Mapping[str, Call], silent: bool) -> Outcome:
    """Tell each other what waits; called by all ranks.

    Args:
        transport: All ranks.
        pending: This rank's calls by name, the oldest first.
        silent: Whether this rank can't call anything more before one of these has ended.

    Cost: an all-gather of the descriptions.
    """
    mine = {name: call.fields() for name, call in pending.items()}
    # A rank that leaves the job calls nothing more, whatever its threads do.
    leaving = any(call.kind == SHUTDOWN for call in pending.values())
    told = [json.loads(text) for text in gather_texts(transport, json.dumps([silent, leaving, mine]))]
    lists = [{name: Call.from_fields(fields) for name, fields in calls.items()} for _, _, calls in told]
    joined = frozenset(rank for rank, calls in enumerate(lists) if JOIN in calls)
    active = [calls for rank, calls in enumerate(lists) if rank not in joined] or lists
    common = [name for name in active[0] if all(name in calls for calls in active)]
    agreed: dict[str, Call] = {}
    different: dict[str, list[str]] = {}
    for name in common:
        call = active[0][name]
        # A joined rank may have called it before it joined.
        calls = [calls.get(name, calls.get(JOIN, call)) for calls in lists]
        if len({digest(other, name) for other in calls if other.kind != JOIN}) == 1 and _goes_without(call, calls):
            agreed[name] = call
        else:
            different[name] = [_text(other, JOIN if other.kind == JOIN else name) for other in calls]
    hopeless = not common and (all(silent for silent, _, _ in told) or any(leaving for _, leaving, _ in told))
    waiting = ["; ".join(_text(call, name) for name, call in calls.items()) for calls in lists]
    return Outcome(agreed, different, hopeless, waiting, _missing(transport, lists, joined), joined)


def _goes_without(call: Call, calls: Sequence[Call]) -> bool:
    """Whether the ranks that have joined can take part in ``call`` with nothing."""
    joined = [rank for rank, other in enumerate(calls) if other.kind == JOIN]
    return call.kind == JOIN or not joined or (call.kind in WITHOUT_DATA and call.root not in joined)


def _text(call: Call, name: str) -> str:
    return call.describe(name)[:LONGEST_TEXT]


def _missing(transport: Transport, lists: Sequence[Mapping[str, Call]], joined: Collection[int]) -> str:
    """Such as: allreduce 'a' of float32[3], Sum (not called on rank 1)."""
    everything = {name: call for calls in lists for name, call in calls.items() if call.kind != JOIN}
    missing = []
    for name, call in everything.items():
        ranks = [rank for rank, calls in enumerate(lists) if name not in calls and rank not in joined]
        if ranks:
            members = [transport.members[rank] for rank in ranks]
            missing.append(f"{_text(call, name)} (not called on {ranks_text(members)})")
    return "; ".join(missing)
