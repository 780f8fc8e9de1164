"""Threads as ranks of one process: the transport that tests every algorithm without MPI.

It is stricter than MPI may be. A message is copied at the first instant at which both its send and its receive are
known, straight from buffer to buffer, and a send completes only then; so an algorithm that relies on buffering, or
touches a buffer too early, fails here.
"""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from collective.dtypes import byte_view
from collective.errors import TransportError
from collective.transport.base import Hierarchy
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory, flag_bytes

T = TypeVar("T")


class MemoryRequest:
    """One half of a message: the buffer to read or to fill, and whether it has been."""

    def __init__(self, buffer: np.ndarray, timeout: float) -> None:
        self.buffer = byte_view(buffer)
        self.failure = ""
        self._timeout = timeout
        self._done = threading.Event()

    def wait(self) -> None:
        """Return once the message was copied.

        Raises:
            TransportError: when the other half is of another size, or doesn't come in time.
        """
        if not self._done.wait(self._timeout):
            raise TransportError("a message arrives in time", received=f"nothing in {self._timeout} s")
        if self.failure:
            raise TransportError("a receive is exactly as long as the message", received=self.failure)

    def done(self) -> bool:
        """Tell whether the message was copied."""
        return self._done.is_set()

    def complete(self, failure: str) -> None:
        """Wake the waiting thread."""
        self.failure = failure
        self._done.set()


class Channel:
    """The messages from one rank to another, matched in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sends: collections.deque[MemoryRequest] = collections.deque()
        self._receives: collections.deque[MemoryRequest] = collections.deque()

    def post(self, send: MemoryRequest | None = None, receive: MemoryRequest | None = None) -> None:
        """Add one half of a message and deliver what is complete."""
        with self._lock:
            if send:
                self._sends.append(send)
            if receive:
                self._receives.append(receive)
            while self._sends and self._receives:
                sent, received = self._sends.popleft(), self._receives.popleft()
                failure = ""
                if sent.buffer.size == received.buffer.size:
                    received.buffer[:] = sent.buffer
                else:
                    failure = f"sent={sent.buffer.size} bytes, receive={received.buffer.size} bytes"
                sent.complete(failure)
                received.complete(failure)


class MemoryTransport:
    """One thread's end of the channels."""

    native: None = None
    hierarchy: Hierarchy | None = None

    def __init__(
        self, rank: int, channels: dict[tuple[int, int], Channel], size: int, timeout: float, shared: bytearray | None
    ) -> None:
        self.rank, self.size, self.members = rank, size, range(size)
        self.shared = None if shared is None else SharedMemory(rank, size, shared, Patience(0))
        self._channels, self._timeout = channels, timeout

    def send(self, buffer: np.ndarray, to: int) -> MemoryRequest:
        """Start to send; see ``collective.transport.base``."""
        request = MemoryRequest(buffer, self._timeout)
        self._channels[self.rank, to].post(send=request)
        return request

    def receive(self, buffer: np.ndarray, source: int) -> MemoryRequest:
        """Start to receive; see ``collective.transport.base``."""
        request = MemoryRequest(buffer, self._timeout)
        self._channels[source, self.rank].post(receive=request)
        return request


def run_ranks(
    size: int, function: Callable[[MemoryTransport], T], timeout: float = 20.0, shared_bytes: int = 0
) -> list[T]:
    """Call ``function(transport)`` in ``size`` threads, each a rank, and return their results in rank order.

    Args:
        size: Number of ranks.
        function: What each rank does.
        timeout: Seconds one message may take.
        shared_bytes: Bytes of memory that they share; 0: none, and no ``shared``.

    Raises:
        Exception: the first rank's that failed.
    """
    channels = {(source, to): Channel() for source in range(size) for to in range(size)}
    shared = bytearray(flag_bytes(size) + shared_bytes) if shared_bytes else None
    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        tasks = [pool.submit(function, MemoryTransport(rank, channels, size, timeout, shared)) for rank in range(size)]
        return [task.result() for task in tasks]
