"""The supervisor's side of a job: what it hears from its ranks, and when it last heard from each.

All connections are one thread's, which sleeps until something comes. The kernel hands over the ends of connections in
the order in which they came, and a process's connections end with it: so the first that ends without a word is the
rank that took the others along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from collective.errors import TransportError
from collective.monitor.channel import Channel, Message, new_key
from collective.monitor.link import HELLO, NEWCOMER, VARIABLE, WELCOME

# How long a connection may take to prove that it has the key, and a message to arrive once it has begun.
SECONDS = 5.0
CONNECTIONS_AT_ONCE = 16
# A rank tells its status every second; after so long it isn't just late with that.
SILENT_SECONDS = 3.0
# How many of a rank's statuses are kept: what it was at when another failed is asked once the job has ended.
STATUSES = 60


@dataclasses.dataclass(eq=False)
class Rank:
    """What is known of a process of the job.

    Attributes:
        name: Its own, by which it is known again when it connects anew.
        channel: The connection to it.
        host: Its host's name.
        process: Its process number there.
        launched_as: What the launcher calls it.
        number: Its number there.
        rank: Its number; None: it has not come to ``init``'s end.
        size: The number of ranks that it knows of.
        statuses: What it said last of how it is, and when.
        heard: When it last said something, by ``time.monotonic``.
        came: When it said hello.
        joined: When it took that place, in an elastic job for the last time.
        left: Whether it has said that it leaves the job.
        ended: When its connection ended; None: it hasn't, or was made anew since.
        failure: What it said before it failed.
        failed: When.
        stacks: Where its threads are, if that was asked.
    """

    name: str
    channel: Channel
    host: str
    process: int
    launched_as: str
    number: int | None = None
    rank: int | None = None
    size: int | None = None
    statuses: deque[tuple[float, Message]] = dataclasses.field(default_factory=lambda: deque(maxlen=STATUSES))
    heard: float = 0.0
    joined: float = 0.0
    came: float = dataclasses.field(default_factory=time.monotonic)
    left: bool = False
    ended: float | None = None
    failure: Message | None = None
    failed: float = 0.0
    stacks: str = ""

    @property
    def label(self) -> str:
        """Such as ``rank 1 on host node3 (process 4711)``."""
        number = self.launched_as if self.rank is None else f"rank {self.rank}"
        return f"{number} on host {self.host} (process {self.process})"

    @property
    def said(self) -> Message:
        """Its last status; empty: it has said none."""
        return self.status(float("inf"))[1]

    def status(self, at: float) -> tuple[float, Message]:
        """The last status it had said at a time, and when; later ones are also of ranks that are woken to be ended."""
        return next((status for status in reversed(self.statuses) if status[0] <= at), (0.0, {}))

    def is_silent(self, at: float) -> bool:
        """Whether it had said nothing for long at a time, although it said something before."""
        when, said = self.status(at)
        return bool(said) and at - when >= SILENT_SECONDS

    def waited(self, at: float) -> float:
        """Seconds that it had waited for others at a time, by what it said last; 0 if it said nothing any more."""
        return 0 if self.is_silent(at) else self.status(at)[1].get("waited_seconds", 0)


class Monitor:
    """Listens to the ranks of a job.

    Args:
        address: Of this machine, as the ranks' hosts see it; loopback where all ranks run here.
        environment: Variables for ranks that are started by others.
    """

    def __init__(self, address: str = "127.0.0.1", environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}
        self._key = new_key()
        self._listener = socket.create_server((address, 0), backlog=1024)
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake, self._bell = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._pool = ThreadPoolExecutor(CONNECTIONS_AT_ONCE)
        self._lock = threading.Lock()
        self.ranks: list[Rank] = []
        self._thread = threading.Thread(target=self._serve, name="collective-monitor", daemon=True)
        self._thread.start()

    @property
    def variables(self) -> dict[str, str]:
        """What the ranks' environment has to say."""
        return {VARIABLE: f"{self._address}:{self._listener.getsockname()[1]}:{self._key.hex()}"}

    def tell(self, kind: str, to: Rank | None = None, **fields: Any) -> None:
        """Send a message to a rank, or to all that are there."""
        with self._lock:
            present = [to] if to else [rank for rank in self.ranks if rank.ended is None]
        for rank in present:
            with contextlib.suppress(OSError):
                rank.channel.send(kind, **fields)

    def hear_out(self, seconds: float) -> None:
        """Wait until all connections have ended: the last words come after the processes' end."""
        deadline = time.monotonic() + seconds
        while any(rank.ended is None for rank in self.ranks) and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """Listen no more."""
        self._bell.close()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        self._listener.close()
        self._selector.close()
        self._wake.close()
        for rank in self.ranks:
            rank.channel.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake:
                    return
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._pool.submit(self._welcome, connection)
                else:
                    self._hear(*key.data)

    def _welcome(self, connection: socket.socket) -> None:
        """Make sure that a connection is a rank's."""
        connection.settimeout(SECONDS)
        late = threading.Timer(SECONDS, connection.shutdown, (socket.SHUT_RDWR,))  # all of it, not each byte
        late.start()
        try:
            channel = Channel(connection, self._key, is_supervisor=True)
            hello = channel.receive()
            if hello and hello["kind"] == NEWCOMER:
                channel.send(WELCOME, environment={**self._environment, **self.variables})
            if hello is None or hello["kind"] != HELLO:
                channel.close()
                return
        except (OSError, TransportError, ValueError):
            connection.close()
            return
        finally:
            late.cancel()
        with self._lock:
            rank = self._known(channel, hello)
            rank.heard, rank.ended = time.monotonic(), None
            self._selector.register(channel, selectors.EVENT_READ, (channel, rank))
        with contextlib.suppress(OSError):
            channel.send(WELCOME)

    def _known(self, channel: Channel, hello: Message) -> Rank:
        """The rank that says hello: a new one, or one whose connection broke."""
        for rank in self.ranks:
            if rank.name == hello["name"]:
                rank.channel.end()  # which the thread that listens to it will notice
                rank.channel = channel
                return rank
        told = {field: hello[field] for field in ("name", "host", "process", "launched_as", "number")}
        rank = Rank(channel=channel, **told)
        self.ranks.append(rank)
        return rank

    def _hear(self, channel: Channel, rank: Rank) -> None:
        try:
            message = channel.receive()
        except (OSError, TransportError, ValueError):
            message = None
        if message is None:
            self._forget(channel, rank)
            return
        rank.heard = time.monotonic()
        kind = message.pop("kind")
        if kind == "joined":
            rank.rank, rank.size = message["rank"], message["size"]
            if not message.get("again"):
                rank.joined, rank.left = rank.heard, False
        elif kind == "left":
            rank.left = True
        elif kind == "failure":
            rank.failure, rank.failed = rank.failure or message, rank.failed or rank.heard
        else:
            rank.stacks = message.pop("stacks", rank.stacks)
            rank.statuses.append((rank.heard, message))

    def _forget(self, channel: Channel, rank: Rank) -> None:
        """Note that a connection has ended, and with it the rank, unless it has another by now."""
        with self._lock:
            self._selector.unregister(channel)
            channel.close()
            if channel is rank.channel:
                rank.ended = time.monotonic()
