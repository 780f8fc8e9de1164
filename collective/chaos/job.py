"""Run a disturbed job, and note when it said what."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from collective.chaos.scene import MARK

# The launcher may print before and behind what a rank says.
EVENT = re.compile(re.escape(MARK) + r"(\{.*?\})")
POLL = 0.02
# Until the ends of its pipes are read; a process that is left over holds them open.
LAST_WORDS_SECONDS = 1.0

Event = dict[str, Any]


@dataclasses.dataclass
class Job:
    """What there is to know of a job that has ended, or was ended.

    Attributes:
        status: Its exit status; None: it had to be killed.
        ended: When, in seconds from its start; so are all times.
        events: What the victims told, with ``at``.
        record: Their starts and ends as they wrote them down, in order.
        said: The lines on stderr and the other ones on stdout, with when.
    """

    status: int | None = None
    ended: float = 0.0
    events: list[Event] = dataclasses.field(default_factory=list)
    record: list[Event] = dataclasses.field(default_factory=list)
    said: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    def all(self, kind: str) -> list[Event]:
        """The events of a kind."""
        return [event for event in list(self.events) if event["event"] == kind]

    @property
    def text(self) -> str:
        """What was said, as text."""
        return "\n".join(line for _, line in self.said)


def run(command: Sequence[str], environment: Mapping[str, str], deadline: Callable[[Job], float]) -> Job:
    """Run a command to its end, or kill it when the time is ``deadline(job)``, which may change with what was told."""
    began = time.monotonic()
    job = Job()
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read(stream: IO[str]) -> None:
        with stream:
            for line in stream:
                _note(job, line.rstrip("\n"), time.monotonic() - began)

    readers = [
        threading.Thread(target=read, args=(stream,), daemon=True) for stream in (process.stdout, process.stderr)
    ]
    for reader in readers:
        reader.start()
    while (status := process.poll()) is None and time.monotonic() - began < deadline(job):
        time.sleep(POLL)
    job.ended = time.monotonic() - began
    if status is None:
        _kill(process)
    job.status = status
    for reader in readers:
        reader.join(LAST_WORDS_SECONDS)
    return job


def launcher(*options: str) -> list[str]:
    """The command that starts jobs."""
    return [sys.executable, "-m", "collective", "run", *options]


def _note(job: Job, line: str, at: float) -> None:
    for found in EVENT.finditer(line):
        try:
            job.events.append({**json.loads(found[1]), "at": at})
        except ValueError:
            job.said.append((at, line))
    rest = EVENT.sub("", line).strip()
    if rest:
        job.said.append((at, rest))


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
