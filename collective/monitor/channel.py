"""Messages between a rank and its supervisor: JSON objects over TCP, each of which proves that its sender has the key.

Both sides send a number of their own first. From the key and the two numbers each direction gets a key of its own, with
which its messages are signed together with their count: none can be forged, repeated, or sent back.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import secrets
import socket
import struct
import threading
from typing import Any

from collective.errors import TransportError

KEY_BYTES = 32
NONCE_BYTES = 32
# Of a message; looked at before it is read. Stacks of many threads are the longest.
LONGEST = 2**20
HEAD = struct.Struct("!I32s")

Message = dict[str, Any]


def new_key() -> bytes:
    """A key for one job."""
    return secrets.token_bytes(KEY_BYTES)


class Channel:
    """One end of a connection.

    Args:
        connection: Connected. Its time-out is how long a message may take.
        key: The job's.
        is_supervisor: Which end this is.

    Raises:
        OSError: when the other end doesn't answer in time.
    """

    def __init__(self, connection: socket.socket, key: bytes, is_supervisor: bool) -> None:
        self._connection = connection
        own = secrets.token_bytes(NONCE_BYTES)
        connection.sendall(own)
        theirs = self._read(NONCE_BYTES)
        nonces = own + theirs if is_supervisor else theirs + own
        to_rank, to_supervisor = (_sign(key, direction + nonces) for direction in (b"to rank", b"to supervisor"))
        self._sending, self._receiving = (to_rank, to_supervisor) if is_supervisor else (to_supervisor, to_rank)
        self._sent = self._received = 0
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Lets selectors wait for a message."""
        return self._connection.fileno()

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message; from any thread.

        Raises:
            OSError: when the other end is gone.
        """
        body = json.dumps({"kind": kind, **fields}).encode()
        if len(body) > LONGEST:
            raise TransportError(f"a message has at most {LONGEST} bytes", received=f"{kind} of {len(body)} bytes")
        with self._lock:
            head = HEAD.pack(len(body), _sign(self._sending, _counted(self._sent, body)))
            self._sent += 1
            self._connection.sendall(head + body)

    def receive(self) -> Message | None:
        """The next message; None: the other end has closed.

        Raises:
            OSError: when it is gone, or stops in the middle.
            TransportError: when a message is too long, or not signed by who has the key.
        """
        head = self._read(HEAD.size, may_end=True)
        if not head:
            return None
        length, signature = HEAD.unpack(head)
        if length > LONGEST:
            raise TransportError(f"a message has at most {LONGEST} bytes", received=f"{length} bytes announced")
        body = self._read(length)
        if not hmac.compare_digest(signature, _sign(self._receiving, _counted(self._received, body))):
            raise TransportError("messages between ranks and their supervisor are signed", received="a wrong signature")
        self._received += 1
        message: Message = json.loads(body)
        return message

    def end(self) -> None:
        """End the connection; a thread that waits for a message gets None."""
        with contextlib.suppress(OSError):  # the other end was faster
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection, and let go of it."""
        self.end()
        self._connection.close()

    def abandon(self) -> None:
        """Close this process's own copy of the connection, which stays that of the process it was forked from."""
        self._connection.close()

    def _read(self, length: int, may_end: bool = False) -> bytes:
        content = bytearray()
        while len(content) < length:
            part = self._connection.recv(length - len(content))
            if not part:
                if may_end and not content:
                    return b""
                raise ConnectionResetError("the other end closed in the middle of a message")
            content += part
        return bytes(content)


def _sign(key: bytes, content: bytes) -> bytes:
    return hmac.digest(key, content, hashlib.sha256)


def _counted(number: int, body: bytes) -> bytes:
    return number.to_bytes(8, "big") + body
