"""Why a job failed: the rank that was the first, and what it and the others were at."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collective.errors import MismatchError, TransportError
from collective.launch.monitor import Rank

# A shell's, and every launcher's, way to say that a signal has ended a program.
SIGNALLED = 128

Verdict = dict[str, Any]


def judge(ranks: Sequence[Rank], status: int | None, expected: int, out_of_memory: bool = False) -> Verdict:
    """Find the rank that the job has failed for.

    Args:
        ranks: What the ranks have said.
        status: The launcher's exit status; None: not its own.
        expected: Number of ranks that were started.
        out_of_memory: Whether the kernel has ended processes of this host for lack of memory meanwhile.

    Returns:
        ``cause`` in words, empty where nothing has failed; ``rank``, ``host``, ``process``, ``operation``, ``step`` and
        so on of the rank that was the first (None: not known); ``others``: what the other ranks were at.
    """
    # A rank that ends its part in peace says so first. Of those that don't, the first has taken the others along.
    failures = [(rank.failed, rank) for rank in ranks if rank.failure]
    deaths = [(rank.ended, rank) for rank in ranks if rank.ended and not rank.left and not rank.failure]
    # A mismatch comes to all ranks at once; one of them may have said more, such as that it came to its end too early.
    events = sorted([*failures, *deaths], key=lambda event: (_is(MismatchError, event[1]), event[0]))
    # Those that wait in init for ranks that never come there are ended for that.
    if not failures and not any(rank.rank is not None for rank in ranks) and (missing := absent(ranks, expected)):
        return of(None, f"{missing} never came to init()", ranks)
    if not events:
        return of(None, _ended(status) if status else "", ranks)
    at, first = events[0]
    cause = first.failure["cause"] if first.failure else _ended(status)
    if not first.failure and out_of_memory:
        cause += ", for lack of memory (the kernel counts such a kill)"
    late = awaited_in_vain(first, ranks)
    if late:
        cause = f"it was late or had stopped, and {first.label} has given up waiting for it: {cause}"
        first = late
    return of(first, cause, ranks, at)


def awaited_in_vain(first: Rank, ranks: Sequence[Rank]) -> Rank | None:
    """The rank that ``first`` waited for, if that is why it failed; be it by way of others that wait, too."""
    if not _is(TransportError, first):
        return None
    at = first.failed
    alive = [rank for rank in ranks if not rank.left and (rank.ended is None or rank.ended > at)]
    # When a launcher wakes them to end them, these wait and give up like any other.
    stopped = [rank for rank in alive if rank is not first and rank.is_silent(at)]
    gave_up = [rank for rank in alive if rank.failure and rank not in stopped]
    chain = [first]
    while chain[-1] not in stopped:
        numbers = set(map(int, re.findall(r"\d+", _seen(chain[-1], at)["waits_for"])))
        awaited = [rank for rank in alive if rank not in chain and rank.rank in numbers]
        if not awaited:
            break
        chain.append(min(awaited, key=lambda rank: (rank in gave_up, rank.waited(at) > 0)))
    if chain[-1] is not first and chain[-1] not in gave_up:
        return chain[-1]
    return next((rank for rank in alive if rank not in gave_up and not rank.waited(at)), None)


def absent(ranks: Sequence[Rank], expected: int) -> str:
    """Which of the processes that were started have not come to ``init``; empty: none of them."""
    numbers = sorted(set(range(expected)) - {rank.number for rank in ranks})
    if not numbers:
        return ""
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {expected}"


def has_failed(ranks: Sequence[Rank]) -> bool:
    """Whether a rank has told of a failure from which no others have recovered since."""
    return max(rank.failed for rank in ranks) > max(rank.joined for rank in ranks)


def of(blamed: Rank | None, cause: str, ranks: Sequence[Rank] = (), at: float = float("inf")) -> Verdict:
    """The verdict that a rank is to blame, or no single one; see ``judge``. It tells what ranks were at by ``at``."""
    own = {"rank": None} if blamed is None else _seen(blamed, at)
    return {**own, "cause": cause, "others": [_seen(rank, at) for rank in ranks if rank is not blamed]}


def host_lost(ranks: Sequence[Rank]) -> Verdict:
    """The verdict where a launcher tells of success, but ranks never came to their end.

    The launcher has ended the ranks that it could reach, so the first to end is not to blame; one that hasn't ended, as
    far as can be seen from here, is on the host that was lost. Where there is only one host it wasn't that.
    """
    cause = "the launcher tells of success, but ranks never came to their end"
    if len({rank.host for rank in ranks}) == 1:
        return of(min(ranks, key=lambda rank: (rank.left, rank.ended or 0)), f"ended without a word: {cause}", ranks)
    cause += ", as when a host is lost"
    unreached = [rank for rank in ranks if rank.ended is None]
    return of(unreached[0] if len({rank.host for rank in unreached}) == 1 else None, cause, ranks)


def sentence(verdict: Verdict) -> str:
    """The verdict as a line for people."""
    if verdict["rank"] is None and "launched_as" not in verdict:
        return f"{verdict['cause']}."
    number = verdict["launched_as"] if verdict["rank"] is None else f"rank {verdict['rank']}"
    parts = [f"{number} on host {verdict['host']} (process {verdict['process']}): {verdict['cause'].rstrip('.')}"]
    if verdict["operation"]:
        parts.append(f"in {verdict['operation']}" if verdict["waited_seconds"] else f"last in {verdict['operation']}")
    if verdict["step"] is not None:
        parts.append(f"at step {verdict['step']}")
    if verdict["memory_high_water"]:
        parts.append(f"memory at most {verdict['memory_high_water'] / 2**20:.0f} MiB")
    waits = [other for other in verdict["others"] if other["waited_seconds"] and other["rank"] is not None]
    if waits:
        longest = max(waits, key=lambda other: other["waited_seconds"])
        parts.append(f"rank {longest['rank']} waited for {longest['waits_for']} in {longest['operation']}")
    return ", ".join(parts) + "."


def write(content: Verdict, file: str) -> Path | None:
    """Write the report that programs read.

    Args:
        content: What it says.
        file: Where; empty: a new file among the temporary ones, readable by this user only.

    Returns:
        Where it is; None: it can't be written.
    """
    text = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **content}, indent=1)
    try:
        if file:
            Path(file).write_text(text)
            return Path(file)
        handle, name = tempfile.mkstemp(prefix="collective-report-", suffix=".json")
        with os.fdopen(handle, "w") as new:
            new.write(text)
        return Path(name)
    except OSError:
        return None


def _is(kind: type[Exception], rank: Rank) -> bool:
    """Whether a rank has failed with this error."""
    return rank.failure is not None and rank.failure["error"] == kind.__name__


def _seen(rank: Rank, at: float) -> Verdict:
    """What is known of a rank: what it said when it failed, or else its last status by ``at``."""
    said: Verdict = {
        "operation": "",
        "step": None,
        "memory_high_water": 0,
        "waited_seconds": 0,
        "waits_for": "",
        "error": "",
        "traceback": "",
        **rank.status(at)[1],
        **(rank.failure or {}),
    }
    own = {name: getattr(rank, name) for name in ("rank", "size", "host", "process", "launched_as", "stacks")}
    return {**said, **own}


def _ended(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "ended without a word"
    if status > SIGNALLED:
        try:
            return f"ended by {signal.Signals(status - SIGNALLED).name}"
        except ValueError:
            pass
    return f"ended without a word, and the job with status {status}"
