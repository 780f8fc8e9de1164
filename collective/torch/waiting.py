"""Operations without tensors: let the others go on, and wait for them."""

from __future__ import annotations

from collective import collectives
from collective.process_sets import ProcessSet, global_process_set


def join(device: int = -1) -> int:  # noqa: ARG001  # Horovod's signature; stand-ins for data lie in the CPU's memory
    """Let the other ranks go on without this one, which is out of data; return once all ranks have called it.

    Args:
        device: Unused.

    Returns:
        The rank that joined last. See ``collective.join``.
    """
    return collectives.join()


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Return once every rank of the process set has called it. Cost per rank: one all-reduce of 16 bytes."""
    collectives.barrier(process_set=process_set)
