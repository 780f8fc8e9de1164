"""What a job that died has left on a host: memory in /dev/shm and the launcher's daemons, found and removed.

A program of its own, which needs nothing but Python, because it also runs on hosts where only the job's ranks ran:
``python leftovers.py SINCE JOBS [FOLDER]`` removes what is younger than SINCE (seconds of the Unix epoch), the daemons
of JOBS (names with commas between), and FOLDER.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108  # only what is this user's own is touched
# Open MPI's and MPICH's memory between the ranks of a host: some 17 MB for each rank that was killed together with its
# launcher. And ours, by the names that mkstemp makes: empty, and only if a rank ended before all had opened it.
# Open MPI's begin with the host's name: what another container's ranks have mapped can't be seen here.
THEIRS, OURS = (f"sm_segment.{os.uname().nodename}.*", "mpich_shm_*"), "collective-????????"
# A file of theirs this young may be one that a starting rank hasn't mapped yet; ours stay open until they are.
YOUNGEST = 1.0
# The argument before the job's name, of a daemon of Open MPI 5.
NAMES_JOB = b"ess_base_nspace"


def remove(since: float, folder: str = "") -> int:
    """Remove what nobody has mapped or open of this user's segments; returns the bytes that are free again.

    Args:
        since: The job's start; older files are others'.
        folder: The job's snapshots, if they are to go as well.
    """
    freed = 0
    candidates = [path for pattern in THEIRS for path in _since(pattern, since)]
    if any(_since(pattern, time.time() - YOUNGEST) for pattern in THEIRS):
        time.sleep(YOUNGEST)
    candidates += _since(OURS, since)
    in_use = {*_mapped(), *_opened()} if candidates else set()
    for path in candidates:
        with contextlib.suppress(OSError):
            if str(path) not in in_use:
                freed += path.lstat().st_blocks * 512
                path.unlink()
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def _since(pattern: str, since: float) -> list[Path]:
    """The user's files of a name that are not older."""
    found = []
    for path in MEMORY.glob(pattern):
        with contextlib.suppress(OSError):
            known = path.lstat()
            if known.st_uid == os.geteuid() and known.st_mtime >= since:
                found.append(path)
    return found


def _opened() -> Iterator[str]:
    """What processes have open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            yield os.readlink(descriptor)


def _mapped() -> Iterator[str]:
    """The files of ``MEMORY`` that processes have mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError), maps.open() as lines:
            yield from (line.split(maxsplit=5)[5].strip() for line in lines if f" {MEMORY}/" in line)


def end_daemons(jobs: Collection[str]) -> None:
    """End this user's daemons of jobs whose launchers have ended: one that was just starting may not notice that.

    Args:
        jobs: What Open MPI 5 calls them, such as ``prterun-node1-4711``.
    """
    wanted = {f"{job}@0".encode() for job in jobs}
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = arguments.read_bytes().split(b"\0")
            is_daemon = NAMES_JOB in words and words[words.index(NAMES_JOB) + 1] in wanted
            if is_daemon and arguments.stat().st_uid == os.geteuid():
                os.kill(int(arguments.parent.name), signal.SIGKILL)


if __name__ == "__main__":
    since, jobs, *folder = sys.argv[1:]
    end_daemons(jobs.split(","))
    remove(float(since), *folder)
