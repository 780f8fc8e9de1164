"""What a fault finds in its victim, and may change there."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from collective.chaos import training
from collective.reduce_ops import ReduceOp, Sum

# Begins every line that the judge reads.
MARK = "chaos "
RECORD = "record"


@dataclasses.dataclass
class Scene:
    """One rank of the disturbed training.

    Attributes:
        folder: Of this case: checkpoints, what has fired, a full disk.
        group: Control group with little memory; empty: none could be made.
        rank: This rank, known before it joins the job.
        model: The state of training.
        gradient: What this rank gives to the sum of the step.
        name: What it calls the sum.
        op: How it reduces.
        ends_early: Whether it has no more batches.
    """

    folder: Path
    group: str
    rank: int
    model: training.Model = dataclasses.field(default_factory=training.initial)
    gradient: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(training.WIDTH))
    name: str = "gradient"
    op: ReduceOp = Sum
    ends_early: bool = False

    @property
    def record(self) -> Path:
        """Where the ranks write when they started and finished."""
        return self.folder / RECORD

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.folder / "checkpoints"


def say(event: str, record: Path | None = None, **fields: object) -> None:
    """Tell the judge something, in one piece, and before anything else happens.

    Args:
        event: What.
        record: A file to write it to as well: launchers that end a job lose what its ranks say meanwhile.
        fields: More about it.
    """
    line = json.dumps({"event": event, "host": socket.gethostname(), "process": os.getpid(), **fields}) + "\n"
    os.write(1, (MARK + line).encode())
    if record:
        with record.open("ab", buffering=0) as file:
            file.write(line.encode())


def in_main_thread(action: Callable[[], None]) -> None:
    """Run something in the main thread, in the middle of what it does, as soon as it runs Python code again."""
    signal.pthread_kill(threading.main_thread().ident or 0, arm(action))


def arm(action: Callable[[], None]) -> signal.Signals:
    """Make a signal run ``action`` in the main thread."""
    PENDING.append(action)
    return signal.SIGUSR1


def listen() -> None:
    """Let other threads act in this one, the main thread."""
    signal.signal(signal.SIGUSR1, lambda number, frame: PENDING.pop()())  # noqa: ARG005  # the signature is prescribed


PENDING: list[Callable[[], None]] = []
