"""Python objects between ranks, of any kind, with Horovod's order of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collective import objects
from collective.process_sets import ProcessSet, global_process_set


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    session: Any = None,  # noqa: ARG001
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Give all ranks the object of rank ``root_rank``; called by all ranks, also where a TF1 graph is the default.

    Args:
        obj: Anything that pickle knows. The ranks of a job trust each other: reading it runs code.
        root_rank: The rank whose object all get.
        session: Accepted and not used: objects don't pass through TensorFlow.
        name: What errors call the operation.
        process_set: The ranks that take part.

    Returns:
        A copy of the root's object.

    Cost:
        Two broadcasts: of the length (8 bytes) and of the pickled object.
    """
    return objects.broadcast_object(obj, root_rank, name=name, allow_pickle=True, process_set=process_set)


def broadcast_object_fn(
    root_rank: int = 0, session: Any = None, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Callable[[Any], Any]:
    """Make a function of an object that does what ``broadcast_object`` does with the other arguments."""

    def broadcast(obj: Any) -> Any:
        return broadcast_object(obj, root_rank, session, name, process_set)

    return broadcast


def allgather_object(
    obj: Any,
    session: Any = None,  # noqa: ARG001
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> list[Any]:
    """Give all ranks the objects of all ranks, in rank order; called by all ranks. See ``broadcast_object``.

    Cost:
        Two all-gathers: of the lengths (8 bytes a rank) and of the pickled objects.
    """
    return objects.allgather_object(obj, name=name, allow_pickle=True, process_set=process_set)
