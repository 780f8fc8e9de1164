"""What is around a disturbed job, and what that takes: folders of its own, small disks, little memory, other hosts."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from collective.chaos import emulated
from collective.chaos.cases import HOSTS, Case
from collective.chaos.leftovers import SHARED_MEMORY

CLONE_NEWNS = 0x00020000
SMALL_DISK, SMALL_SHARED_MEMORY, OWN_SHARED_MEMORY = "12m", "1m", "512m"
# Version 1 and 2 of control groups.
GROUPS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
    (Path("/sys/fs/cgroup"), "memory.max"),
)
GROUP_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Network:
    """Where the ranks of a case run, as options of ``collective run``.

    Attributes:
        options: Such as ``-H a:1,b:1``.
        emulated: The emulated hosts, which may be cut off.
    """

    options: tuple[str, ...] = ()
    emulated: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What was set up for a case.

    Attributes:
        folder: The case's own.
        temporary: Where its processes keep temporary files.
        group: The control group with little memory; empty: none.
    """

    folder: Path
    temporary: Path
    group: str


def own_mounts() -> bool:
    """Give this process mounts of its own, and a /dev/shm; False: it may not, and /dev/shm is everybody's."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        return False
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, check=False)
    return not private.returncode and _mount(SHARED_MEMORY, OWN_SHARED_MEMORY)


def obstacle(case: Case, network: Network) -> str:
    """Why a case can't be tried here; empty: it can."""
    needs = case.fault.needs
    if needs == "memory group":
        return "" if _group_root() else "needs to make a control group with little memory, as root may"
    if needs.startswith("small"):
        return "" if os.geteuid() == 0 else "needs root, to mount a small file system"
    if needs == "emulated hosts":
        return "" if network.emulated else "needs hosts that may be cut off: --emulate"
    return "" if network.options or case.network != HOSTS else "needs hosts: -H, --hostfile or --emulate"


@contextlib.contextmanager
def set_up(case: Case, network: Network, parent: Path | None) -> Iterator[Surroundings]:
    """Make what a case needs, and take it away again.

    Raises:
        OSError: when that can't be done.
    """
    needs = case.fault.needs
    with contextlib.ExitStack() as undo:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", dir=parent)))
        (folder / "checkpoints").mkdir()
        temporary = folder / "tmp"
        temporary.mkdir()
        group = ""
        for host in network.emulated:
            undo.callback(emulated.mend, host)
        if needs == "small disk":
            undo.enter_context(_mounted(folder / "checkpoints", SMALL_DISK))
        if needs == "small shared memory":
            undo.enter_context(_mounted(SHARED_MEMORY, SMALL_SHARED_MEMORY))
        if needs == "memory group":
            group = undo.enter_context(_group())
        yield Surroundings(folder, temporary, group)


@contextlib.contextmanager
def _mounted(folder: Path, size: str) -> Iterator[None]:
    if not _mount(folder, size):
        raise OSError(f"can't mount a file system of {size} on {folder}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _mount(folder: Path, size: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(folder)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def _group_root() -> tuple[Path, str] | None:
    for root, limit in GROUPS:
        made = root / f"collective-chaos-probe-{os.getpid()}"
        with contextlib.suppress(OSError):
            made.mkdir()
            can = (made / limit).exists()
            made.rmdir()
            if can:
                return root, limit
    return None


@contextlib.contextmanager
def _group() -> Iterator[str]:
    """A control group whose processes get little memory."""
    found = _group_root()
    if not found:
        raise OSError("no control group with a limit of memory can be made")
    root, limit = found
    folder = Path(tempfile.mkdtemp(prefix="collective-chaos-", dir=root))
    try:
        (folder / limit).write_text(str(GROUP_BYTES))
        yield str(folder)
    finally:
        folder.rmdir()
