"""What a job leaves behind: processes and files.

The judge makes itself the parent of all orphans below it, so whoever is left over is found, whatever session it is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

# prctl's name for it.
PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # looked at only
# Seconds that processes get to end by themselves after their launcher.
GRACE = 3.0
POLL = 0.02


def adopt_orphans() -> None:
    """Make this process the parent of whatever below it loses its own."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(of: int) -> dict[int, str]:
    """The processes below one, that live, with their command lines."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything; behind it: state, parent.
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                parents[int(status.parent.name)] = int(parent)
    found = {}
    for process in parents:
        above = process
        while above in parents and above != of:
            above = parents[above]
        if above == of and process != of:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                found[process] = " ".join(word.decode(errors="replace") for word in words if word)[:200]
    return found


def end_all(known: Iterable[int] = ()) -> list[str]:
    """Wait a little for all processes below this one but those ``known``; end, and name, who is left then."""
    deadline = time.monotonic() + GRACE
    while (left := _others(known)) and time.monotonic() < deadline:
        time.sleep(POLL)
    named = list(left.values())
    while left:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(POLL)
        left = _others(known)
    return named


def _others(known: Iterable[int]) -> dict[int, str]:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return {process: words for process, words in descendants(os.getpid()).items() if process not in known}


def files(*folders: Path) -> set[str]:
    """The user's files in some folders, and in all below."""
    found = set()
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == os.getuid() and not path.is_dir():
                    found.add(str(path))
    return found
