"""One start of a job: its launcher runs, its ranks are watched, and what went wrong is found out."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NamedTuple

from collective.launch import verdict
from collective.launch.dialects import Line
from collective.launch.hostfile import Host
from collective.launch.monitor import Monitor
from collective.launch.watch import GivenUp, Watch
from collective.monitor import activity
from collective.monitor.link import HOSTS_UPDATED
from collective.settings import Settings

# How often a running job is looked at, in seconds.
LOOK_SECONDS = 1.0
# How long a launcher may take to end its ranks when it is told to.
END_SECONDS = 5.0
# The last messages of ranks may come after the launcher has ended.
LAST_WORDS_SECONDS = 2.0
STATUS_OF_AN_INCOMPLETE_JOB = 1

# Tells Open MPI 5 where its files go on this machine; others ignore it.
SCRATCH = "PRTE_MCA_prte_local_tmpdir_base"

Listener = Callable[[tuple[Host, ...], bool], None]


class Attempt(NamedTuple):
    """What is started.

    Attributes:
        line: The launcher's command line.
        environment: The launcher's whole environment.
        ranks: Number of processes.
        address: This machine's, as the ranks see it; empty: not known, so that nobody watches them.
        settings: The ranks'.
        forwarded: Names of variables that ranks on other hosts are given.
        hosts: Where they run, with the number of ranks as slots; empty: this machine, or a scheduler says where.
    """

    line: Line
    environment: Mapping[str, str]
    ranks: int
    address: str
    settings: Settings
    forwarded: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()


class Ending(NamedTuple):
    """How it ended.

    Attributes:
        status: The launcher's, as a shell tells it.
        stopped: Whether this process was told to stop.
        seconds: How long it ran.
        verdict: See ``verdict.judge``.
        launcher: The launcher's process number; 0: there was none.
    """

    status: int
    stopped: bool
    seconds: float
    verdict: dict[str, Any]
    launcher: int = 0


def run(attempt: Attempt, watched: Callable[[Listener], contextlib.AbstractContextManager[None]]) -> Ending:
    """Run a job once, to its end.

    Args:
        attempt: What is started.
        watched: ``with watched(listener)`` looks for hosts that come and go, and tells the listener.
    """
    theirs = {name: value for name, value in attempt.environment.items() if name in attempt.forwarded}
    monitor = Monitor(attempt.address, theirs) if attempt.address else None
    watch = Watch(monitor, attempt.ranks, attempt.settings, say) if monitor else None
    kills, began = activity.out_of_memory_kills(), time.monotonic()
    try:
        variables = monitor.variables if monitor else {}
        with watched(functools.partial(_tell, monitor)), _scratch() as scratch:
            environment = {SCRATCH: scratch, **attempt.environment, **variables}
            launcher, status, stopped, given_up = _run(attempt.line, environment, watch)
        seconds = time.monotonic() - began
        if monitor:
            monitor.hear_out(LAST_WORDS_SECONDS)
    finally:
        if monitor:
            monitor.close()
    ranks = monitor.ranks if monitor else []
    if not status and ranks and not any(rank.left for rank in ranks if rank.rank == 0):
        # Launchers have been seen to end with 0 when a host was lost, and when all ranks of an elastic job have failed.
        found = verdict.judge(ranks, None, attempt.ranks) if verdict.has_failed(ranks) else verdict.host_lost(ranks)
        return Ending(STATUS_OF_AN_INCOMPLETE_JOB, stopped, seconds, found, launcher)
    if given_up and given_up.rank:
        return Ending(status, stopped, seconds, verdict.of(given_up.rank, given_up.cause, ranks, given_up.at), launcher)
    # The status of a launcher that was ended from here says nothing.
    told = None if given_up else status
    found = verdict.judge(ranks, told, attempt.ranks, activity.out_of_memory_kills() != kills)
    if given_up:
        found["cause"] = f"{found['cause']}; {given_up}"
    return Ending(status, stopped, seconds, found, launcher)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for the launcher's own files, which stay behind when it crashes or has to be killed."""
    return tempfile.TemporaryDirectory(prefix="collective-launcher-", ignore_cleanup_errors=True)


def _tell(monitor: Monitor | None, hosts: tuple[Host, ...], others: bool) -> None:
    """Tell the ranks which hosts there are for a job that is started now, and whether it would have other places."""
    if monitor:
        monitor.tell(HOSTS_UPDATED, hosts=[f"{host.name}:{host.slots}" for host in hosts], others=others)


def say(text: str) -> None:
    """Print a line to stderr."""
    print(f"collective run: {text}", file=sys.stderr, flush=True)


def address(remote: bool, head: str, scheduled: bool) -> str:
    """By which address the ranks reach this machine; empty: not known.

    Args:
        remote: Whether some run on other hosts that the user has named.
        head: This machine's address as those see it.
        scheduled: Whether a scheduler has them run where it likes.
    """
    if remote:
        return head
    if not scheduled:
        return "127.0.0.1"
    try:
        found = socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
    return "" if ipaddress.ip_address(found).is_loopback else found


def _run(line: Line, environment: Mapping[str, str], watch: Watch | None) -> tuple[int, int, bool, GivenUp | None]:
    """Run the launcher; its number and status, whether this process was told to stop, and why it was given up."""
    told: list[int] = []
    launcher = subprocess.Popen(line.arguments, env=dict(environment))

    def pass_on(number: int, _: FrameType | None) -> None:
        told.append(number)
        if not (number == signal.SIGINT and _from_terminal()):
            launcher.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    given_up: GivenUp | None = None
    try:
        while (status := _status(launcher, LOOK_SECONDS)) is None and not told:
            if watch and (given_up := watch.look()):
                say(f"{given_up}; the job is ended")
                launcher.terminate()
                break
        if status is None and (status := _status(launcher, END_SECONDS)) is None:
            # A launcher waits for ranks that are stopped, and for daemons that it can't reach.
            if watch:
                watch.kill_ranks_here()
            if (status := _status(launcher, LOOK_SECONDS)) is None:
                launcher.kill()
                status = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = status if status >= 0 else verdict.SIGNALLED - status
    if told and status:  # launchers tell of a signal in ways of their own
        status = verdict.SIGNALLED + told[0]
    if given_up:
        status = status or STATUS_OF_AN_INCOMPLETE_JOB
    return launcher.pid, status, bool(told), given_up


def _status(launcher: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Wait for the launcher's end; None: it takes longer."""
    try:
        return launcher.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _from_terminal() -> bool:
    """Whether a terminal sends its interrupt to the launcher as well: it is in the same group."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False
