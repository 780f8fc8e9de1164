"""Checkpoints: each is complete on the disk, or it is none.

What they look like there is told by ``collective.archive``. Rank 0 writes and reads, and the others get what it read,
so hosts need no file system in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from collective import archive, dtypes, objects, world
from collective.archive import Content as Checkpoint
from collective.errors import ArgumentError, CheckpointError
from collective.grouped import grouped_broadcast

__all__ = ["Checkpoint", "Checkpoints", "broadcast_content"]


class Checkpoints:
    """The checkpoints of a job in one folder.

    Args:
        folder: Where they are on rank 0's host; made when the first one is saved.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ArgumentError("at least one checkpoint is kept", received=f"keep={keep}")
        self._archive = archive.Archive(Path(folder), keep)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Any = None) -> None:
        """Write a checkpoint; called by all ranks, and complete on the disk when it returns.

        Args:
            step: Its number, from 0; a newer one has a higher one. One of the same number is replaced.
            arrays: Rank 0's arrays by name, of any dtypes that travel (``collective.dtypes``).
            values: Rank 0's numbers, strings, lists, dictionaries and so on; see ``broadcast_object``.

        Raises:
            CheckpointError: on all ranks, when rank 0 couldn't write it; older ones are left as they were.

        Cost:
            A broadcast of some bytes, after rank 0 has written and synced the file.
        """
        self._on_first(lambda: self._archive.write(step, arrays, values), "save")

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is complete; called by all ranks. None: there is none.

        What is incomplete or damaged is named in a warning, and left where it is.

        Raises:
            CheckpointError: on all ranks, when rank 0 can't read the folder.

        Cost per rank:
            The bytes once.
        """
        found: Checkpoint | None = None

        def read() -> None:
            nonlocal found
            found = self._archive.newest()

        self._on_first(read, "newest")
        return broadcast_content(found, 0, "checkpoint")

    def _on_first(self, action: Callable[[], None], operation: str) -> None:
        """Do something on rank 0, and raise on all ranks what went wrong there."""
        failure: str | None = None
        if world.rank() == 0:
            try:
                action()
            except (OSError, ArgumentError) as error:
                failure = str(error)
        failure = objects.broadcast_object(failure, name=f"checkpoint.{operation}")
        if failure is not None:
            raise CheckpointError(
                f"rank 0 can write and read {self._archive.folder}",
                received=failure,
                operation=f"checkpoint {operation}",
                where=world.topology().where,
            )


def broadcast_content(content: Checkpoint | None, root: int, name: str) -> Checkpoint | None:
    """Give all ranks what rank ``root`` has read; called by all ranks, and ``content`` is looked at on the root only.

    Cost per rank:
        The bytes once, and two broadcasts of some bytes.
    """
    found = content if world.rank() == root else None
    told = found and [found.step, found.values, {each: archive.kind(array) for each, array in found.arrays.items()}]
    told = objects.broadcast_object(told, root, name=name)
    if told is None:
        return None
    step, values, kinds = told
    own = (
        found.arrays
        if found
        else {each: np.empty(shape, dtypes.by_name(kind)) for each, (kind, shape) in kinds.items()}
    )
    arrays = [own[each] for each in kinds]
    grouped_broadcast(arrays, root, name=f"{name}.arrays", out=arrays)
    return Checkpoint(step, dict(zip(kinds, arrays, strict=True)), values)
