"""A function that runs on many ranks, as the process that calls it sees it.

The function goes out, and the results come back, as pickles in a folder that only the user can read. Ranks on other
hosts get the function from a rank that sees the folder, and hand it their results: see ``serve``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collective.errors import LaunchError, RankError
from collective.launch import hostfile, machines
from collective.launch.run import DEFAULT_HOST_FILES
from collective.launch.serve import BY_MESSAGES, ERROR, FUNCTION, RESULT, STARTED, pickled

SERVE = "collective.launch.serve"
END_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """Ranks that run a function.

    Attributes:
        ranks: Their number.
        options: Options of ``collective run``, beside these.
        hosts: Hosts and their slots, as ``-H`` takes them.
        hostfile: A file of hosts instead.
        discovered: Whether a script tells the hosts instead.
        start_seconds: Seconds within which the ranks have to be running; None: no limit.
        output: Folder for each rank's output; None: it goes where the caller's goes.
        python: The ranks' Python.
        ssh_port: Port by which other hosts are reached; None: ssh's own.
        ssh_key: File of the key by which they are reached; None: ssh's own.
    """

    ranks: int
    options: tuple[str, ...]
    hosts: str | None
    hostfile: str | os.PathLike[str] | None
    discovered: bool
    start_seconds: float | None
    output: str | None
    python: str
    ssh_port: int | None
    ssh_key: str | None

    def call(self, function: Callable[[], Any]) -> list[Any]:
        """Run ``function`` on all ranks and return its results; see ``function.run``."""
        with tempfile.TemporaryDirectory(prefix="collective-run-") as name:  # readable by its owner only
            folder = Path(name)
            (folder / FUNCTION).write_bytes(pickled(function))
            options = list(self.options)
            if self.ssh_port is not None or self.ssh_key is not None:
                options.append(f"--launch-agent={_ssh(folder, self.ssh_port, self.ssh_key)}")
            way = [BY_MESSAGES] if self._elsewhere() else []
            rank = [self.python, "-m", SERVE, name, os.path.abspath(self.output or name), *way]
            starter = [sys.executable, "-m", "collective", "run", "-np", str(self.ranks), *options, "--", *rank]
            status = self._finish(starter, folder)
            if status:  # else an error is that of an earlier start, from which the job has recovered
                _raise_first(folder, status)
            return self._results(folder, status)

    def _elsewhere(self) -> bool:
        """Tell whether ranks may run on other hosts than this one."""
        if self.discovered:
            return True
        if self.hosts is None and self.hostfile is None:
            return machines.allocated(os.environ) or any(os.environ.get(name) for name in DEFAULT_HOST_FILES)
        given = hostfile.parse_list(self.hosts) if self.hosts else hostfile.read(Path(self.hostfile or ""))
        return not all(machines.is_local(host.name) for host in given)

    def _finish(self, starter: list[str], folder: Path) -> int:
        """Start the ranks, wait for their end, and return the exit status; they never outlive this."""
        # Ranks import what the caller can import, also from the folder of its script.
        path = os.pathsep.join(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
        process = subprocess.Popen(starter, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(self.start_seconds)
            if not (folder / STARTED).exists():
                raise LaunchError(
                    f"ranks run within {self.start_seconds:g} s, as start_timeout says",
                    received="none does",
                    operation="collective.run",
                )
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _results(self, folder: Path, status: int) -> list[Any]:
        results: dict[int, Any] = {}
        for file in folder.glob(f"{RESULT}.*"):
            results |= pickle.loads(file.read_bytes())  # noqa: S301  # what our own ranks wrote
        ranks = int((folder / STARTED).read_text()) if (folder / STARTED).exists() else self.ranks
        if status or not results.keys() >= set(range(ranks)):
            kind = RankError if (folder / STARTED).exists() else LaunchError
            raise kind(
                "a function returns on every rank",
                received=f"{len(results)} results of {ranks} ranks; mpirun failed with exit status {status}",
                fix="The lines above tell more",
                operation="collective.run",
            )
        return [results[rank] for rank in range(ranks)]


def _raise_first(folder: Path, status: int) -> None:
    """Raise the first exception that ranks have left: others fail because one has, and the first one knows why."""
    errors = [pickle.loads(file.read_bytes()) for file in folder.glob(f"{ERROR}.*")]  # noqa: S301
    if not errors:
        return
    _, where, text, trace, content = min(errors, key=lambda error: error[0])
    cause = None
    with contextlib.suppress(Exception):  # its class may be known on the rank only
        cause = pickle.loads(content)  # noqa: S301
    raise RankError(
        "a function returns on every rank",
        received=f"{text} on {where} (mpirun failed with exit status {status})",
        fix=f"The traceback of that rank:\n{trace}",
        operation="collective.run",
    ) from cause


def _ssh(folder: Path, port: int | None, key: str | None) -> Path:
    """A program that reaches hosts as the user said: every MPI takes one in place of ssh, but not its arguments."""
    words = ["ssh", *(["-p", str(port)] if port is not None else []), *(["-i", key] if key is not None else [])]
    program = folder / "ssh"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    program.chmod(0o700)
    return program
