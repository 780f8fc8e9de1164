"""A Python for each MPI library, and emulated hosts, for tests that start real jobs."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import venv
from pathlib import Path

import emulated
import pytest

from collective.errors import LaunchError
from collective.launch import library

# What is installed beside mpi4py; "system" is whatever MPI the system has.
FLAVOURS = {"this": None, "mpich": "mpich", "impi": "impi-rt", "system": ""}
PIP_SECONDS = 200


@pytest.fixture(scope="session", params=FLAVOURS)
def mpi_python(request: pytest.FixtureRequest) -> str:
    """An interpreter whose mpi4py loads one of the MPI libraries; made once and kept in pytest's cache."""
    packages = FLAVOURS[request.param]
    if packages is None:
        return sys.executable
    python = _made(request.config.cache.mkdir(f"mpi-{request.param}"), packages)
    try:
        library.find(python)
    except LaunchError as error:
        pytest.skip(f"{request.param}: {error}")
    return python


def _made(folder: Path, package: str) -> str:
    python = folder / "bin" / "python"
    ready = folder / "ready"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            venv.create(folder, with_pip=False, symlinks=True)
            packages = [
                "mpi4py",
                "numpy",
                "ml_dtypes",
                "numkong",
                "pytest",
                "pytest-timeout",
                "hypothesis",
                *package.split(),
            ]
            install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *packages]
            try:
                done = subprocess.run(install, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                pytest.skip(f"pip did not install mpi4py {package} within {PIP_SECONDS} s")
            if done.returncode:
                pytest.skip(f"pip can't install mpi4py {package}: {done.stderr.strip().splitlines()[-1:]}")
            ready.touch()
    return str(python)


@pytest.fixture(scope="session")
def four_hosts(tmp_path_factory):
    """Four emulated hosts behind links of 1 Gbit/s."""
    obstacle = emulated.obstacle()
    if obstacle:
        pytest.skip(f"hosts can't be emulated: {obstacle}")
    with emulated.hosts(4, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts
