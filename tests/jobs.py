"""Start real jobs from tests. The pytest process itself never loads MPI: a child of an MPI process can't start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_job(
    ranks: int, *command: str, timeout: float = 120, options: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` on ``ranks`` ranks by ``collective run`` and wait; past ``timeout`` seconds the test fails."""
    return run([*launcher(ranks, *options), *command], timeout, **environment)


def launcher(ranks: int, *options: str) -> list[str]:
    """The words before a command that is to run on ``ranks`` ranks."""
    return [sys.executable, "-m", "collective", "run", "-np", str(ranks), *options, "--"]


def run(command: list[str], timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own, so that all it started can be ended with it."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{command} still ran after {timeout} s\n{out}\n{err}") from None
    return subprocess.CompletedProcess(command, process.returncode, out, err)
