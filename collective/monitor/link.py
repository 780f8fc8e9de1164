"""A rank's side: a thread that tells the supervisor how the rank is, and answers what it asks."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

from collective.errors import TransportError
from collective.log import logger
from collective.monitor import activity
from collective.monitor.channel import Channel, Message

# Where the supervisor listens and the job's key, as ``address:port:key``.
VARIABLE = "COLLECTIVE_MONITOR"
# The kind of a message that tells which hosts there are for a job that is started now, as ``hosts=["a:2", "b:1"]``, and
# by ``others`` whether its ranks would have other places.
HOSTS_UPDATED = "hosts_updated"
THREAD_NAME = "collective-monitor"
STATUS_SECONDS = 1.0
# How long a connection or a message may take.
SECONDS = 10.0
# Of what is told of a failure: a message that is too long would be none.
LONGEST_CAUSE = 20_000

# Called with a message of this kind, in the link's thread, when the supervisor sends one.
handlers: dict[str, Callable[[Message], None]] = {}
_link: Link | None = None
_told = ""


class Link:
    """A connection to the supervisor.

    Args:
        address: Where it listens.
        port: Its port there.
        key: The job's.
    """

    def __init__(self, address: str, port: int, key: bytes) -> None:
        connection = socket.create_connection((address, port), SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel = Channel(connection, key, is_supervisor=False)
        threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True).start()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message, unless the supervisor is gone."""
        try:
            self._channel.send(kind, **fields)
        except OSError as error:
            logger.debug("the supervisor doesn't hear: %s", error)

    def abandon(self) -> None:
        """Forget the connection; in a forked process."""
        self._channel.abandon()

    def _serve(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self._channel], [], [], STATUS_SECONDS)
                if not ready:
                    self._channel.send("status", **activity.now())
                    continue
                message = self._channel.receive()
                if message is None:
                    return _end_orphan()
                self._answer(message)
        except (OSError, ValueError, TransportError) as error:  # the job goes on without
            logger.debug("no supervisor any more: %s", error)

    def _answer(self, message: Message) -> None:
        if message["kind"] == "stacks":
            self._channel.send("stacks", stacks=activity.stacks(), **activity.now())
        elif message["kind"] in handlers:
            handlers[message["kind"]](message)


def _end_orphan() -> None:
    """End this rank, and so the job: who has ended its supervisor for good wants no job that nobody can stop."""
    logger.error("collective run has ended, and so does this rank")
    os.kill(os.getpid(), signal.SIGTERM)


def connect(told: str, launched_as: str, number: int | None) -> None:
    """Connect to the supervisor, once in a process; before MPI is started, so that it hears if that goes wrong.

    Args:
        told: The variable's value; empty: there is no supervisor.
        launched_as: What the launcher calls this process, such as ``process 2 of 4``.
        number: Its number there.
    """
    global _link, _told
    os.environ.pop(VARIABLE, None)  # children have no business with the key
    told = _told = told or _told
    if not told or _link:
        return
    address, port, key = told.rsplit(":", 2)
    try:
        _link = Link(address, int(port), bytes.fromhex(key))
    except (OSError, ValueError) as error:
        logger.warning("The supervisor of this job can't be reached, so nobody watches this rank: %s", error)
        return
    tell("hello", launched_as=launched_as, number=number, **activity.place())


def _become_child() -> None:
    """Let go of the connection in a forked process: it has to end together with the rank."""
    global _link, _told
    if _link:
        _link.abandon()
    _link, _told = None, ""


os.register_at_fork(after_in_child=_become_child)


def tell(kind: str, **fields: Any) -> None:
    """Send a message to the supervisor, if there is one."""
    if _link:
        _link.tell(kind, **fields)


def tell_failure(cause: str, error: BaseException | None = None, trace: str = "") -> None:
    """Tell that this rank fails, and why; the job is about to end.

    Args:
        cause: In words.
        error: The exception, if it is one; the library's own know their operation.
        trace: Its traceback.
    """
    fields = activity.now()
    operation = (getattr(error, "operation", "") or fields["operation"])[: activity.LONGEST_TEXT]
    told = {"error": type(error).__name__ if error else "", "cause": cause[:LONGEST_CAUSE], "operation": operation}
    tell("failure", **{**fields, **told, "traceback": trace[-LONGEST_CAUSE:]})
