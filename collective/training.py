"""Checkpoints of a whole training: what all ranks hold alike is kept once, and what differs is kept of every rank.

Nobody has to say which is which: the ranks compare checksums. So replicas cost their bytes once, and what is each
rank's own (seeds, the averages of batch normalisation, sums of metrics) comes back to the rank it belongs to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from collective import collectives, objects, replicas, world
from collective.checkpoint import Checkpoints
from collective.log import logger

# Before the names of arrays that all ranks hold alike, and of those of which every rank has its own: [ranks, ...].
ALIKE, EACH = "alike/", "each/"


class Training(NamedTuple):
    """What was read.

    Attributes:
        step: The number it was saved under.
        arrays: This rank's arrays by name, new ones.
        values: Rank 0's plain values.
        own: Each rank's own plain values, by the rank it had then; there may be more or fewer ranks now.
    """

    step: int
    arrays: dict[str, np.ndarray]
    values: Any
    own: list[Any]

    @property
    def mine(self) -> Any:
        """The own plain values of this rank; of rank 0 where there were fewer ranks."""
        return self.own[_number_then(len(self.own))]


class TrainingCheckpoints:
    """The checkpoints of one training in one folder.

    Args:
        folder: Where they are on rank 0's host; made when the first one is saved.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self._checkpoints = Checkpoints(folder, keep)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Any = None, own: Any = None) -> None:
        """Write a checkpoint; called by all ranks, and complete on the disk when it returns.

        Args:
            step: Its number, from 0; a newer one has a higher one. One of the same number is replaced.
            arrays: This rank's, of the same names, shapes and dtypes on all ranks.
            values: Rank 0's numbers, strings, lists, dictionaries and so on; see ``broadcast_object``.
            own: This rank's, of the same kinds.

        Raises:
            CheckpointError: on all ranks, when rank 0 couldn't write it; older ones are left as they were.
            MismatchError: on all ranks, when the shapes or dtypes of arrays that differ do.

        Cost per rank:
            A pass over the arrays (some 40 ms for 100 MB) and 4 bytes for each; the arrays that differ go to all
            ranks; after that rank 0 writes.
        """
        different = replicas.differences(arrays, name="checkpoint.compare")
        each = {
            EACH + name: collectives.allgather(np.asarray(arrays[name])[None], name=f"checkpoint.{name}")
            for name in different
        }
        everyone = objects.allgather_object(own, name="checkpoint.own")
        alike = {ALIKE + name: array for name, array in arrays.items() if name not in different}
        self._checkpoints.save(step, alike | each, {"values": values, "own": everyone})

    def newest(self) -> Training | None:
        """Read the newest checkpoint that is complete; called by all ranks. None: there is none.

        A rank that there wasn't when it was saved gets what rank 0 had.

        Raises:
            CheckpointError: on all ranks, when rank 0 can't read the folder.

        Cost per rank:
            The bytes once.
        """
        found = self._checkpoints.newest()
        if found is None:
            return None
        own = found.values["own"]
        if len(own) != world.size() and world.rank() == 0:
            logger.warning(
                "The checkpoint of step %d was saved by %d ranks, not %d", found.step, len(own), world.size()
            )
        number = _number_then(len(own))
        arrays = {
            name.removeprefix(ALIKE) if name.startswith(ALIKE) else name.removeprefix(EACH):
            array if name.startswith(ALIKE) else array[number].copy()
            for name, array in found.arrays.items()
        }  # fmt: skip
        return Training(found.step, arrays, found.values["values"], own)


def _number_then(ranks_then: int) -> int:
    """The rank whose values this one goes on from."""
    return world.rank() if world.rank() < ranks_then else 0
