"""What a supervised job keeps in the memory of its hosts, from its first start to its end."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Set
from pathlib import Path

from collective.launch import leftovers, machines

# Tells the ranks where their snapshots go (``Settings.snapshot_folder``).
VARIABLE = "COLLECTIVE_SNAPSHOT_FOLDER"
PREFIX = "collective-snapshots-"
# Held as long as the supervisor lives: a folder without it is of one that was killed.
LOCK = "supervised"


class Memory:
    """Used by ``with``: what is kept ends with it, on all hosts that can be reached.

    Args:
        hosts: Names of the other hosts that the job has used so far.
        launch_agent: Program in place of ssh.
        keeps: Whether the job may be started again, so that snapshots are of use.
    """

    def __init__(self, hosts: Set[str], launch_agent: str, keeps: bool) -> None:
        self._hosts, self._agent, self._keeps = hosts, launch_agent, keeps
        self._began = time.time()
        self._jobs: list[str] = []
        self._folder = ""
        self._lock = -1

    def __enter__(self) -> Memory:
        if self._keeps and leftovers.MEMORY.is_dir():
            _forget_abandoned()
            # The name is as hard to guess on the other hosts, whose ranks make the folder there.
            self._folder = tempfile.mkdtemp(prefix=PREFIX, dir=leftovers.MEMORY)
            self._claim()
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            self.tidy(self._folder)
            os.close(self._lock)
        elif leftovers.MEMORY.is_dir():
            leftovers.remove(self._began)

    @property
    def variables(self) -> dict[str, str]:
        """What the ranks' environment has to say."""
        return {VARIABLE: self._folder} if self._folder else {}

    def started(self, launcher: int) -> None:
        """Note the process number of a launcher, whose daemons may stay on other hosts when it ends."""
        self._jobs.append(f"prterun-{os.uname().nodename}-{launcher}")

    def forget(self) -> None:
        """Remove the snapshots of a job that may be started again, on all hosts."""
        self.tidy(self._folder)
        if self._folder:
            os.close(self._lock)
            Path(self._folder).mkdir(mode=0o700)
            self._claim()

    def tidy(self, folder: str = "") -> None:
        """Remove what a job that has ended left on all hosts; the snapshots, ``folder``, at the end only.

        Cost: a command on every other host, all at once.
        """
        leftovers.end_daemons(self._jobs)
        leftovers.remove(self._began, folder)
        others = sorted(name for name in self._hosts if not machines.is_local(name))
        told = [str(self._began), ",".join(self._jobs), *([folder] if folder else [])]
        command = [sys.executable, "-I", leftovers.__file__, *told]
        machines.run_on(others, self._agent, command)

    def _claim(self) -> None:
        self._lock = os.open(Path(self._folder) / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)


def _forget_abandoned() -> None:
    """Remove the snapshots of supervisors that were killed."""
    for folder in leftovers.MEMORY.glob(f"{PREFIX}*"):
        try:
            if folder.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
        except OSError:  # it lives, or has gone meanwhile
            continue
