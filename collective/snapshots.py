"""Snapshots: the state of training in the memory of every host, which outlives the death of processes and of hosts.

Under ``collective run --restarts`` a job that is started again goes on from its newest snapshot, and loses the few
steps since then. One rank of each host writes to ``/dev/shm``, so as long as one host is left there is a copy, and
nothing is read from a disk. A snapshot doesn't outlive its job, nor the loss of all hosts at once: that is what
``collective.checkpoint`` is for.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from collective import objects, settings, world
from collective.archive import Archive, Content
from collective.checkpoint import broadcast_content
from collective.errors import ArgumentError, CheckpointError

# While one is written the one before has to be there.
FEWEST = 2
# What a host without a snapshot has as the newest: a step before all others.
NOTHING = (-1, "")


class Snapshot(NamedTuple):
    """What was read.

    Attributes:
        step: The number it was saved under.
        arrays: New arrays by name, equal on all ranks.
        values: The plain values.
        own: What each rank had as its own, by the rank it had then; there may be more or fewer ranks now.
    """

    step: int
    arrays: dict[str, np.ndarray]
    values: Any
    own: list[Any]


class Snapshots:
    """The snapshots of a job, as long as it is supervised; without ``collective run --restarts`` nothing is kept.

    Args:
        keep: How many of the newest are kept; from 2, as a death while one is written leaves the one before.
    """

    def __init__(self, keep: int = FEWEST) -> None:
        if keep < FEWEST:
            raise ArgumentError(f"at least {FEWEST} snapshots are kept", received=f"keep={keep}")
        self._folder = settings.from_environment(os.environ).snapshot_folder
        # By host, because emulated hosts and containers may share a /dev/shm.
        self._archive = Archive(Path(self._folder) / socket.gethostname(), keep, in_memory=True)

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Any = None, own: Any = None) -> None:
        """Keep the state; called by all ranks, and complete on all hosts when it returns.

        Args:
            step: Its number, from 0; a newer one has a higher one. One of the same number is replaced.
            arrays: Arrays by name, equal on all ranks; read on one rank of each host.
            values: Rank 0's numbers, strings, lists, dictionaries and so on; see ``broadcast_object``.
            own: This rank's, of the same kinds: where it is in its data, its random numbers.

        Raises:
            ArgumentError: on all ranks, when values are of another kind on one.
            CheckpointError: on all ranks, when a host has no room, or can't write; the snapshot before is still there.

        Cost per rank:
            Four all-gathers: of ``own``, rank 0's ``values`` and some bytes. On one rank of each host a copy of the
            arrays to memory and a checksum. Memory on each host: ``keep`` times the arrays.
        """
        if not self._folder:
            return
        everyone = objects.allgather_object([values if world.rank() == 0 else None, own], name="snapshot.own")
        content = [everyone[0][0], [each for _, each in everyone]]
        self._on_each_host(lambda: self._write(step, arrays, content), "save")

    def newest(self) -> Snapshot | None:
        """The newest snapshot that is complete on any host; called by all ranks. None: there is none.

        Every rank reads that of its own host. Where hosts have others, all get the newest, and keep it.

        Raises:
            CheckpointError: on all ranks, when one can't read its host's memory, or a host has no room.

        Cost per rank:
            Four all-gathers of some bytes, and a copy of the arrays with a checksum; where hosts have others, a
            broadcast of the arrays in addition.
        """
        if not self._folder:
            return None
        found: Content | None = None
        mark = NOTHING

        def read() -> None:
            nonlocal found, mark
            _check_private(Path(self._folder))
            found = self._archive.newest(warns=world.local_rank() == 0)
            mark = (found.step, self._archive.mark(found.step)) if found else NOTHING

        self._on_all(read, "newest")
        marks = objects.allgather_object(mark, name="snapshot.marks")
        newest = max(marks)
        is_everywhere = min(marks) == newest
        content = found if is_everywhere else broadcast_content(found, marks.index(newest), "snapshot")
        self._on_each_host(lambda: self._write(*content) if content and mark != newest else None, "spread")
        return Snapshot(content.step, content.arrays, *content.values) if content else None

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], content: Any) -> None:
        _check_private(Path(self._folder))
        self._archive.write(step, arrays, content)

    def _on_each_host(self, action: Callable[[], None], operation: str) -> None:
        """Do something on one rank of each host, and raise on all ranks what went wrong on any."""
        self._on_all(action if world.local_rank() == 0 else lambda: None, operation)

    def _on_all(self, action: Callable[[], None], operation: str) -> None:
        """Do something, and raise on all ranks what went wrong on any."""
        failure: str | None = None
        try:
            action()
        except (OSError, ArgumentError, MemoryError) as error:
            failure = f"{error} on host {socket.gethostname()}"
        failures = objects.allgather_object(failure, name=f"snapshot.{operation}")
        failed = [rank for rank, text in enumerate(failures) if text is not None]
        if failed:
            raise CheckpointError(
                f"every host has room for snapshots in {self._folder}",
                received=f"{failures[failed[0]]} (rank {failed[0]})",
                fix="Give /dev/shm more room (Docker: --shm-size), or keep less",
                operation=f"snapshot {operation}",
                where=world.topology().where,
            )


def _check_private(folder: Path) -> None:
    """Make the job's folder on this host, where only its owner may look; refuse one that somebody else has made."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise OSError(f"{folder} is not this user's own, or open to others")
