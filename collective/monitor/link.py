"""A rank's side: a thread that tells the supervisor how the rank is, and answers what it asks."""

from __future__ import annotations

import functools
import os
import secrets
import select
import signal
import socket
import threading
import time
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
# How long a connection or a message may take, and to hear that what was sent has arrived.
SECONDS = 10.0
# A connection that breaks is made again: how long to wait between tries; how long nobody may listen there until the
# supervisor counts as gone; how long what must not be lost waits for a new connection.
AGAIN_SECONDS, GONE_SECONDS, LAST_WORDS_SECONDS = 0.5, 2.0, 3.0
# What a new connection is told again; this rank is judged by it.
FACTS = ("joined", "left", "failure")
# How a connection begins: with a rank's hello, or the question of who is to become one; and the answer to both.
HELLO, NEWCOMER, WELCOME = "hello", "newcomer", "welcome"
# Of what is told of a failure: a message that is too long would be none.
LONGEST_CAUSE = 20_000

# Called with a message of this kind, in the link's thread, when the supervisor sends one.
handlers: dict[str, Callable[[Message], None]] = {}
_link: Link | None = None
_told = ""


class Link:
    """A connection to the supervisor, made again when the network breaks it.

    Args:
        address: Where it listens.
        port: Its port there.
        key: The job's.
        hello: Who this rank is.

    Raises:
        OSError: when the supervisor can't be reached.
    """

    def __init__(self, address: str, port: int, key: bytes, **hello: Any) -> None:
        # By its name the supervisor knows the rank again.
        self._greet = functools.partial(_greet, (address, port), key, HELLO, name=secrets.token_hex(8), **hello)
        self._facts: dict[str, Message] = {}
        self._channel, _ = self._greet()
        threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True).start()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send a message, unless the supervisor is gone."""
        if kind in FACTS:
            self._facts[kind] = fields
        if kind == "joined":
            self._facts.pop("left", None)
        deadline = time.monotonic() + (LAST_WORDS_SECONDS if kind in FACTS else 0)
        while True:
            channel = self._channel
            try:
                return channel.send(kind, **fields)
            except OSError as error:
                logger.debug("the supervisor doesn't hear: %s", error)
            while channel is self._channel:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.01)

    def interrupt(self) -> None:
        """End the connection, which is made again."""
        self._channel.end()

    def abandon(self) -> None:
        """Forget the connection; in a forked process."""
        self._channel.abandon()

    def _serve(self) -> None:
        while True:
            try:
                self._converse()
            except Exception as error:
                logger.debug("no connection to the supervisor: %r", error)
            self._channel.close()
            if not self._connect_again():
                return _end_orphan()

    def _converse(self) -> None:
        """Tell how this rank is, and answer, until the connection ends."""
        while True:
            ready, _, _ = select.select([self._channel], [], [], STATUS_SECONDS)
            if not ready:
                self._channel.send("status", **activity.now())
                continue
            message = self._channel.receive()
            if message is None:
                return
            self._answer(message)

    def _connect_again(self) -> bool:
        """Connect as soon as it can be done; False: there is no supervisor any more."""
        refused: float | None = None
        while refused is None or time.monotonic() - refused < GONE_SECONDS:
            try:
                channel, _ = self._greet()
                for kind in [kind for kind in FACTS if kind in self._facts]:
                    channel.send(kind, again=True, **self._facts[kind])
                self._channel = channel
                return True
            except ConnectionRefusedError:
                refused = refused or time.monotonic()
            except (OSError, ValueError, TransportError) as error:
                refused = None
                logger.debug("the supervisor can't be reached: %s", error)
            time.sleep(AGAIN_SECONDS)
        return False

    def _answer(self, message: Message) -> None:
        if message["kind"] == "stacks":
            self._channel.send("stacks", stacks=activity.stacks(), **activity.now())
        elif message["kind"] in handlers:
            handlers[message["kind"]](message)


def _greet(where: tuple[str, int], key: bytes, kind: str, **fields: Any) -> tuple[Channel, Message]:
    """Connect, and be known by the supervisor; the connection and its answer."""
    connection = socket.create_connection(where, SECONDS)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # else what a firewall swallows is sent for a quarter of an hour
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * SECONDS))
        channel = Channel(connection, key, is_supervisor=False)
        channel.send(kind, **fields)
        answer = channel.receive()
        if answer is None or answer["kind"] != WELCOME:
            raise ConnectionAbortedError("who listens there doesn't know this job")
    except BaseException:
        connection.close()
        raise
    return channel, answer


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
    try:
        _link = Link(*_parsed(told), launched_as=launched_as, number=number, **activity.place())
    except (OSError, ValueError, TransportError) as error:
        logger.warning("The supervisor of this job can't be reached, so nobody watches this rank: %s", error)


def environment() -> dict[str, str]:
    """The variables with which a rank's program is started, from the supervisor; for who is about to become one.

    Raises:
        OSError: when the supervisor can't be reached.
    """
    address, port, key = _parsed(os.environ[VARIABLE])
    channel, answer = _greet((address, port), key, NEWCOMER)
    channel.close()
    variables: dict[str, str] = answer["environment"]
    return variables


def told() -> str:
    """The variable's value, for ranks that this one starts; empty: there is no supervisor."""
    return _told


def _parsed(told: str) -> tuple[str, int, bytes]:
    address, port, key = told.rsplit(":", 2)
    return address, int(port), bytes.fromhex(key)


def _become_child() -> None:
    """Let go of the connection in a forked process: it has to end together with the rank."""
    global _link, _told
    if _link:
        _link.abandon()
    _link, _told = None, ""


os.register_at_fork(after_in_child=_become_child)


def interrupt() -> None:
    """End the connection as a network may that forgets it; for trying what comes of it."""
    if _link:
        _link.interrupt()


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
    told = {
        "error": type(error).__name__ if error else "",
        "cause": cause[:LONGEST_CAUSE],
        "operation": operation,
        "waits_for": getattr(error, "whom", "") or fields["waits_for"],
        "traceback": trace[-LONGEST_CAUSE:],
    }
    tell("failure", **{**fields, **told})
