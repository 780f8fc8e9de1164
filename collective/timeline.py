"""A record of what every operation waited for and how long it took, as Chrome's trace viewer and Perfetto read it.

Rank 0 writes it: for each tensor a row, with the phases of its operations. It costs nothing while it is off: who may
have something to tell looks at ``recorder`` first.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from collective.errors import ArgumentError, NotInitializedError
from collective.log import logger

# In place of a path: begin when ``start_timeline`` is called.
DYNAMIC = "DYNAMIC"
# The file is JSON at any moment: each write ends with this, and the next one begins before it.
END = b"\n]\n"


class Recorder:
    """A timeline that is being written.

    Args:
        file_path: Where; an older file is overwritten.
        mark_cycles: Whether to mark each time at which the ranks compare what they call.

    Attributes:
        path: Where it is written.
    """

    def __init__(self, file_path: str, mark_cycles: bool = False) -> None:
        self.path = file_path
        self._file = open(file_path, "wb", buffering=0)  # noqa: SIM115  # closed by close
        self._mark_cycles = mark_cycles
        self._lock = threading.Lock()
        self._start = time.perf_counter_ns()
        self._rows: dict[str, int] = {}
        self._open: set[int] = set()  # rows with a phase that has begun
        epoch = {"start_time_since_epoch_in_micros": time.time_ns() // 1000}
        head = b"[\n" + json.dumps({"name": "process_name", "ph": "M", "pid": 0, "args": epoch}).encode()
        self._length = len(head)  # of the file without its end
        self._file.write(head + END)

    def phase(self, row: str, phase: str) -> None:
        """Begin a phase of an operation; ends the one before.

        Args:
            row: The operation; see ``row_of``.
            phase: Its name.
        """
        with self._lock:
            number, events = self._number(row)
            if number in self._open:
                events.append({"ph": "E", "pid": number})
            self._open.add(number)
            self._write([*events, {"ph": "B", "name": phase, "pid": number}])

    def came(self, row: str, rank: int) -> None:
        """Tell that a rank has come to an operation."""
        with self._lock:
            number, events = self._number(row)
            self._write([*events, {"ph": "X", "name": str(rank), "pid": number, "dur": 0}])

    def end(self, row: str, details: dict[str, Any]) -> None:
        """End an operation, if it has begun; ``details`` are shown with its last phase."""
        with self._lock:
            number, events = self._number(row)
            if number in self._open:
                self._open.discard(number)
                self._write([*events, {"ph": "E", "pid": number, "args": details}])

    def cycle(self) -> None:
        """Tell that the ranks compare what they call."""
        if self._mark_cycles:
            with self._lock:
                self._write([{"ph": "i", "name": "CYCLE_START", "pid": 0, "s": "g"}])

    def close(self) -> None:
        """Write nothing more; operations that are under way are told of no further."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()

    def _number(self, row: str) -> tuple[int, list[dict[str, Any]]]:
        """The number of a row, and the events that name it if it is new."""
        known = self._rows.get(row)
        if known is not None:
            return known, []
        number = self._rows[row] = len(self._rows) + 1
        heads: dict[str, Any] = {"process_name": {"name": row}, "process_sort_index": {"sort_index": number}}
        return number, [{"name": head, "ph": "M", "pid": number, "args": value} for head, value in heads.items()]

    def _write(self, events: list[dict[str, Any]]) -> None:
        if self._file.closed:
            return
        now = (time.perf_counter_ns() - self._start) // 1000
        stamped = [event if event["ph"] == "M" else {**event, "ts": now} for event in events]
        text = "".join(",\n" + json.dumps(event) for event in stamped).encode()
        try:
            self._file.seek(self._length)
            self._file.write(text + END)
        except OSError as error:  # a full disk is no reason to end a training
            logger.warning("the timeline ends here: %s", error)
            self._file.close()
        self._length += len(text)


def row_of(kind: str, name: str) -> str:
    """The row of an operation, such as ``allreduce.dense/kernel``."""
    return f"{kind}.noname.{name[1:]}" if name.startswith("#") else f"{kind}.{name}"


def details(arrays: Iterable[tuple[np.dtype, tuple[int, ...]]]) -> dict[str, Any]:
    """What is told of an operation on arrays of these dtypes and shapes."""
    arrays = list(arrays)
    return {
        "dtype": ", ".join(dict.fromkeys(str(dtype) for dtype, _ in arrays)),
        "shape": ", ".join(str(list(shape)) for _, shape in arrays),
        "bytes": sum(dtype.itemsize * math.prod(shape) for dtype, shape in arrays),
    }


# What is being written on this rank; None: nothing.
recorder: Recorder | None = None
_rank: int | None = None  # in the job this process is in; None: in none


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Begin to write a timeline; called by any ranks, does something on rank 0.

    Args:
        file_path: Where; an older file is overwritten.
        mark_cycles: Whether to mark each time at which the ranks compare what they call, as ``CYCLE_START``.

    Raises:
        ArgumentError: when another timeline is being written already, or this file can't be.
        NotInitializedError: before ``init`` or after ``shutdown``.

    Cost: none, but for two or three lines of the file an operation.
    """
    global recorder
    if _in_a_job("start_timeline") > 0:
        return
    if recorder and recorder.path == file_path:
        return
    if recorder:
        raise ArgumentError("one timeline is written at a time", received=file_path, fix="Call stop_timeline first")
    try:
        recorder = Recorder(file_path, mark_cycles)
    except OSError as error:
        raise ArgumentError("a timeline is a file that can be written", received=str(error)) from None


def stop_timeline() -> None:
    """End the timeline and close its file; without one, nothing.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``.
    """
    _in_a_job("stop_timeline")
    _stop()


def begin(rank: int, file_path: str, mark_cycles: bool) -> None:
    """Note that this process is ``rank`` of a job, and start the timeline that the settings name; for ``world``."""
    global _rank
    _rank = rank
    if file_path not in ("", DYNAMIC):
        start_timeline(file_path, mark_cycles)


def end() -> None:
    """Note that this process is in no job any more; for ``world``."""
    global _rank
    _rank = None
    _stop()


def _stop() -> None:
    global recorder
    ending, recorder = recorder, None
    if ending:
        ending.close()


def _in_a_job(operation: str) -> int:
    if _rank is None:
        raise NotInitializedError(
            "a process joins the job before it asks for a timeline",
            fix="Call collective.init() first, on all ranks",
            operation=operation,
        )
    return _rank
