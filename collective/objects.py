"""Python objects between ranks: small things such as settings, epochs, results."""

from __future__ import annotations

from typing import Any

import numpy as np

from collective import codec, collectives, world
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    *,
    name: str | None = None,
    allow_pickle: bool = False,
    process_set: ProcessSet | None = None,
) -> Any:
    """Give all ranks the object of rank ``root_rank``; called by all ranks.

    Args:
        obj: Numbers, strings, bytes, None, lists, tuples, sets, dictionaries and NumPy arrays, nested as you like;
            read on the root only.
        root_rank: The rank whose object all get.
        name: What errors call the operation.
        allow_pickle: Use pickle, which carries any object and runs code when read; the same on all ranks.
        process_set: The ranks that take part; None: all.

    Returns:
        A copy of the root's object.

    Raises:
        ArgumentError: when the object holds something else and pickle is not allowed, or the root is no rank.

    Cost:
        Two broadcasts: of the length (8 bytes) and of the encoded object.
    """
    _, name = world.begin("broadcast_object", name, process_set)
    content = np.empty(0, np.uint8)
    failure: ArgumentError | None = None
    if world.rank() == root_rank:
        try:
            content = np.frombuffer(codec.encode(obj, allow_pickle), np.uint8)
        except ArgumentError as error:
            failure = error
    own_length = np.int64(-1 if failure else content.size)
    length = collectives.broadcast(own_length, root_rank, name=f"{name}.length", process_set=process_set)
    if length < 0:
        raise failure or ArgumentError(
            "objects without allow_pickle=True are made of plain values",
            received=f"another kind of object on rank {root_rank}, whose error tells which",
            operation=f"broadcast_object {name!r}",
            where=world.topology().where,
        )
    if world.rank() != root_rank:
        content = np.empty(int(length), np.uint8)
    received = collectives.broadcast(content, root_rank, name=name, process_set=process_set)
    return codec.decode(received.tobytes(), allow_pickle)


def allgather_object(
    obj: Any, *, name: str | None = None, allow_pickle: bool = False, process_set: ProcessSet | None = None
) -> list[Any]:
    """Give all ranks the objects of all ranks, in rank order; called by all ranks.

    Args, errors: As ``broadcast_object``.

    Returns:
        One object a rank.

    Cost:
        Two all-gathers: of the lengths (8 bytes a rank) and of the encoded objects.
    """
    _, name = world.begin("allgather_object", name, process_set)
    try:
        content, failure = np.frombuffer(codec.encode(obj, allow_pickle), np.uint8), None
    except ArgumentError as error:
        content, failure = np.empty(0, np.uint8), error
    own_length = np.array([-1 if failure else content.size], np.int64)
    lengths = collectives.allgather(own_length, name=f"{name}.lengths", process_set=process_set)
    if (lengths < 0).any():
        raise failure or ArgumentError(
            "objects without allow_pickle=True are made of plain values",
            received=f"another kind of object on rank {int(np.argmin(lengths))}, whose error tells which",
            operation=f"allgather_object {name!r}",
            where=world.topology().where,
        )
    everything = collectives.allgather(content, name=name, process_set=process_set)
    pieces = np.split(everything, np.cumsum(lengths)[:-1])
    return [codec.decode(piece.tobytes(), allow_pickle) for piece in pieces]
