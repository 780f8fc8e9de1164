"""The ways to start a job whose data Horovod carries, and what they need on a small machine."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import ROOT, run

needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None, reason="Horovod is not built: python -m collective install-horovod"
)

ENVIRONMENT = {
    "COLLECTIVE_BACKEND": "horovod",
    "PYTHONPATH": str(ROOT),
    # Open MPI refuses root without these.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
OPEN_MPI = ("--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1")
COMMANDS = {
    "mpirun": ["mpirun", "-np", "{}", *OPEN_MPI],
    "horovodrun --gloo": ["horovodrun", "--gloo", "-np", "{}"],
    # Horovod's own mapping options are those of Open MPI 4.
    "horovodrun --mpi": ["horovodrun", "--mpi", "-np", "{}", "--binding-args=--bind-to none --map-by slot"],
}


def launch(
    launcher: str, ranks: int, *command: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python command line on ``ranks`` ranks, by the launcher that is installed beside this Python."""
    program, *options = (word.format(ranks) for word in COMMANDS[launcher])
    beside = Path(sys.executable).parent
    found = shutil.which(program, path=str(beside)) or shutil.which(program)
    if found is None:
        pytest.skip(f"there is no {program}")
    path = f"{Path(found).parent}:{beside}"  # horovodrun starts mpirun by name
    settings = {**ENVIRONMENT, "PATH": f"{path}:/usr/bin:/bin", **environment}
    return run([found, *options, sys.executable, *command], timeout, **settings)
