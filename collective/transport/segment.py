"""Make the memory that the ranks of one host share.

A file in /dev/shm, reserved in full at the start (a full /dev/shm is an error then, not a crash later), readable by its
owner only, and unlinked as soon as all have mapped it, so that nothing is left behind however the job ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import tempfile
from collections.abc import Callable

import numpy as np

from collective.errors import TransportError
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
        TransportError: on every rank, when one can't map the memory: /dev/shm is too small or absent, the ranks are in
            containers that don't share it, or the processor may reorder stores.
    """
    total = flag_bytes(transport.size) + data_bytes
    path = np.zeros(LONGEST_TEXT, np.uint8)
    memory: mmap.mmap | None = None
    failure = ""
    with contextlib.ExitStack() as undo:
        try:
            if transport.rank == 0:
                memory, name = _make(total, undo)
                path[: len(name)] = np.frombuffer(name.encode(), np.uint8)
        except OSError as error:
            failure = f"{error.strerror or error} in {FOLDER} ({total / 2**20:.1f} MiB wanted)"
        for request in _from_first(transport, path):
            request.wait()
        name = path.tobytes().rstrip(b"\0").decode()
        if transport.rank != 0:
            try:
                memory = _open(name, total) if name else None
            except OSError as error:
                failure = f"{error.strerror or error}: rank {transport.rank} can't open what rank 0 made"
        # Everyone hears of everyone before the name goes: mapped by all, or used by none.
        failure = _first_failure(transport, failure, undo.close)
    if memory is None or failure:
        raise TransportError("the ranks of one host share memory", received=failure)
    return SharedMemory(transport.rank, transport.size, memory, patience, transport.members)


def _make(total: int, undo: contextlib.ExitStack) -> tuple[mmap.mmap, str]:
    if platform.machine() not in ("x86_64", "AMD64"):
        raise OSError(f"{platform.machine()} processors may reorder stores")
    descriptor, name = tempfile.mkstemp(prefix="collective-", dir=FOLDER)
    undo.callback(os.unlink, name)
    try:
        os.posix_fallocate(descriptor, 0, total)
        return _map(descriptor, total), name
    finally:
        os.close(descriptor)


def _open(name: str, total: int) -> mmap.mmap:
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _map(descriptor, total)
    finally:
        os.close(descriptor)


def _map(descriptor: int, total: int) -> mmap.mmap:
    # Populated at once: the page faults come here and not in the first all-reduce.
    return mmap.mmap(descriptor, total, mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _from_first(transport: Transport, buffer: np.ndarray) -> list[Request]:
    """Send rank 0's buffer to all."""
    if transport.rank == 0:
        return [transport.send(buffer, to) for to in range(1, transport.size)]
    return [transport.receive(buffer, 0)]


def _first_failure(transport: Transport, mine: str, then: Callable[[], None]) -> str:
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
