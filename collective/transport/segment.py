"""Make the memory that the ranks of one host share.

A file in /dev/shm, readable by its owner only and unlinked as soon as all have opened it, so that nothing is left
behind however the job ends; then reserved in full (a full /dev/shm is an error then, not a crash later).
"""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
from collections.abc import Callable

import numpy as np

from collective.errors import SharedMemoryError
from collective.transport.base import Request, Transport
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory, flag_bytes

FOLDER = "/dev/shm"  # noqa: S108  # mkstemp makes the name: unpredictable, exclusive, 0600
LONGEST_TEXT = 256


def create(transport: Transport, data_bytes: int, patience: Patience) -> SharedMemory:
    """Make a segment for all ranks of ``transport``, which are on one host; called by all of them.

    Args:
        transport: Messages between the ranks, to tell the file's name.
        data_bytes: Size of ``data``.
        patience: How to wait for flags.

    Raises:
        SharedMemoryError: on every rank, when one can't map the memory: /dev/shm is too small or absent, the ranks are
            in containers that don't share it, or the processor may reorder stores.
    """
    total = flag_bytes(transport.size) + data_bytes
    maps: list[mmap.mmap] = []
    descriptor, failure = _same_file(transport)
    try:
        # When the name is gone: this may take long, and the process may be ended meanwhile.
        if not failure:
            mine = _refusal(total, lambda: os.posix_fallocate(descriptor, 0, total)) if transport.rank == 0 else ""
            failure = _first_failure(transport, mine)
        if not failure:
            failure = _first_failure(transport, _refusal(total, lambda: maps.append(_map(descriptor, total))))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    if failure:
        raise SharedMemoryError("the ranks of one host share memory", received=failure)
    return SharedMemory(transport.rank, transport.size, maps[0], patience, transport.members)


def _same_file(transport: Transport) -> tuple[int, str]:
    """An empty file without a name that all ranks have open, on each of them; and what has gone wrong on one."""
    descriptor, name, mine = -1, "", ""
    path = np.zeros(LONGEST_TEXT, np.uint8)
    try:
        if transport.rank == 0:
            descriptor, name = _make()
            path[: len(name)] = np.frombuffer(name.encode(), np.uint8)
    except OSError as error:
        mine = f"{error.strerror or error} in {FOLDER}"
    for request in _from_first(transport, path):
        request.wait()
    told = path.tobytes().rstrip(b"\0").decode()
    if transport.rank != 0 and told:
        try:
            descriptor = os.open(told, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            mine = f"{error.strerror or error}: rank {transport.rank} can't open what rank 0 made"
    # Everyone hears of everyone before the name goes: used by all, or by none.
    return descriptor, _first_failure(transport, mine, lambda: os.unlink(name) if name else None)


def _make() -> tuple[int, str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        raise OSError(f"{platform.machine()} processors may reorder stores")
    return tempfile.mkstemp(prefix="collective-", dir=FOLDER)


def _refusal(total: int, action: Callable[[], object]) -> str:
    """What the system says against ``action``; empty: it has done it."""
    try:
        action()
    except OSError as error:
        return f"{error.strerror or error} in {FOLDER} ({total / 2**20:.1f} MiB wanted)"
    return ""


def _map(descriptor: int, total: int) -> mmap.mmap:
    # Populated at once: the page faults come here and not in the first all-reduce.
    return mmap.mmap(descriptor, total, mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _from_first(transport: Transport, buffer: np.ndarray) -> list[Request]:
    """Send rank 0's buffer to all."""
    if transport.rank == 0:
        return [transport.send(buffer, to) for to in range(1, transport.size)]
    return [transport.receive(buffer, 0)]


def _first_failure(transport: Transport, mine: str, then: Callable[[], object] = bool) -> str:
    """What went wrong on the first rank on which something did; known to all, ``then`` being done on rank 0."""
    everyone = np.zeros((transport.size, LONGEST_TEXT), np.uint8)
    text = mine.encode()[:LONGEST_TEXT]
    everyone[transport.rank, : len(text)] = np.frombuffer(text, np.uint8)
    if transport.rank == 0:
        for request in [transport.receive(everyone[rank], rank) for rank in range(1, transport.size)]:
            request.wait()
        then()
    else:
        transport.send(everyone[transport.rank], 0).wait()
    for request in _from_first(transport, everyone):
        request.wait()
    texts = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in everyone]
    return next(filter(None, texts), "")
