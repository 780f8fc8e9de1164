"""Python objects between ranks, of any kind, with Horovod's order of arguments."""

from __future__ import annotations

from typing import Any

from collective import objects
from collective.process_sets import ProcessSet, global_process_set


def broadcast_object(
    obj: Any, root_rank: int = 0, name: str | None = None, process_set: ProcessSet = global_process_set
) -> Any:
    """Give all ranks the object of rank ``root_rank``; called by all ranks.

    Args:
        obj: Anything that pickle knows, tensors as well. The ranks of a job trust each other: reading it runs code.
        root_rank: The rank whose object all get.
        name: What errors call the operation.
        process_set: The ranks that take part.

    Returns:
        A copy of the root's object.

    Cost:
        Two broadcasts: of the length (8 bytes) and of the pickled object.
    """
    return objects.broadcast_object(obj, root_rank, name=name, allow_pickle=True, process_set=process_set)


def allgather_object(obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set) -> list[Any]:
    """Give all ranks the objects of all ranks, in rank order; called by all ranks. See ``broadcast_object``.

    Cost:
        Two all-gathers: of the lengths (8 bytes a rank) and of the pickled objects.
    """
    return objects.allgather_object(obj, name=name, allow_pickle=True, process_set=process_set)
