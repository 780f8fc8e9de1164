"""What this process is at, as far as others want to know when the job stands still or ends."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of an operation's description: a step's gradients may be thousands, and this is told every second.
LONGEST_TEXT = 2000
# Seconds within which a thread that waits looks again; it does so every millisecond, if it gets a core.
LOOKS_WITHIN = 2.0
# The library's own threads end with this; their stacks tell a user nothing.
OWN_THREADS = "collective-"


@dataclasses.dataclass(slots=True)
class Wait:
    """A thread that waits for other ranks.

    Attributes:
        operation: What for; made a text only when somebody asks.
        since: By ``time.perf_counter``.
        whom: Says which ranks.
        looked: When it last looked whether they have come. Whoever looks no more, as in a signal's handler, is late.
    """

    operation: object
    since: float
    whom: Callable[[], str]
    looked: float = float("inf")


# By thread. Only waits of more than a millisecond are noted: those that somebody may ask for.
waits: dict[int, Wait] = {}
# Tells the operation that was begun last; set by who carries operations out.
last_operation: Callable[[], object] = str
# The training step that this rank is at, as the program tells it or the front ends count.
step: int | None = None
_is_told = False


def report_step(number: int) -> None:
    """Tell which training step this rank is at, for reports of failures; costs nothing.

    Args:
        number: The step, from 0.
    """
    global step, _is_told
    step, _is_told = int(number), True


def count_step() -> None:
    """Note that a step is done, where the program doesn't tell its steps itself; for front ends."""
    global step
    if not _is_told:
        step = 1 if step is None else step + 1


def now() -> dict[str, Any]:
    """What a status message says."""
    present = time.perf_counter()
    waiting = [wait for wait in list(waits.values()) if present - wait.looked < LOOKS_WITHIN]
    longest = min(waiting, key=lambda wait: wait.since, default=None)
    return {
        "step": step,
        "operation": str(longest.operation if longest else last_operation())[:LONGEST_TEXT],
        "waited_seconds": round(present - longest.since, 3) if longest else 0,
        "waits_for": longest.whom() if longest else "",
        **memory(),
    }


def memory() -> dict[str, Any]:
    """The most memory this process has had, in bytes, and how often the kernel has killed one of its group for want."""
    fields: dict[str, Any] = {"memory_high_water": 0, "out_of_memory_kills": out_of_memory_kills()}
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return fields
    high = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return fields | {"memory_high_water": 1024 * int(high[0]) if high else 0}


def out_of_memory_kills() -> int | None:
    """How often the kernel has ended a process of this one's control group for lack of memory; None: not told."""
    try:
        group = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / group, Path("/sys/fs/cgroup")):
            for events in (folder / "memory.events", folder / "memory" / "memory.oom_control"):
                if events.exists():
                    counts = dict(line.split() for line in events.read_text().splitlines())
                    return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError):
        pass
    return None


def stacks() -> str:
    """Where every thread is, the main thread first, without the library's own."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    texts = []
    frames = sys._current_frames()
    for ident in sorted(frames, key=lambda ident: (ident != main, ident)):
        name = names.get(ident, "not Python's own")
        if not name.startswith(OWN_THREADS):
            texts.append(f"{name}:\n" + "".join(traceback.format_stack(frames[ident])))
    return "\n".join(texts)


def state(process: int) -> str:
    """What the kernel says of a process of this host: running, stopped, and so on; empty: there is none."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return ""
    return next((line.split("(")[1].rstrip(")") for line in text.splitlines() if line.startswith("State:")), "")


def place() -> dict[str, Any]:
    """Where this process is."""
    return {"host": os.uname().nodename, "process": os.getpid()}
