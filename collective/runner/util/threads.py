"""Start a function in a thread, in one line."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from collective.errors import ArgumentError


def in_thread(
    target: Callable[..., Any],
    args: tuple = (),
    name: str | None = None,
    daemon: bool = True,
    silent: bool = False,
) -> threading.Thread:
    """Start ``target(*args)`` in a thread of its own.

    Args:
        target: The function.
        args: Its arguments.
        name: The thread's name.
        daemon: Whether the process may end before it.
        silent: Whether its exceptions are of no interest.

    Returns:
        The thread, started.

    Raises:
        ArgumentError: a ValueError, when ``args`` is no tuple.
    """
    if not isinstance(args, tuple):
        raise ArgumentError("args is a tuple", received=f"args={args!r}", fix="Write one argument as (argument,)")

    def quiet() -> None:
        with contextlib.suppress(Exception):
            target(*args)

    thread = threading.Thread(target=quiet if silent else target, args=() if silent else args, name=name, daemon=daemon)
    thread.start()
    return thread
