"""What was measured on: the machine, the MPI and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from collective import world
from collective.bench.rows import Machine
from collective.launch import machines

# Distribution by module; only those that are loaded count.
PACKAGES = {
    "collective": "collective-training",
    "numpy": "numpy",
    "ml_dtypes": "ml-dtypes",
    "numkong": "numkong",
    "mpi4py": "mpi4py",
    "tensorflow": "",
    "keras": "keras",
    "horovod": "horovod",
    "torch": "torch",
}
PREFIXES = ("COLLECTIVE_", "OMP_NUM_THREADS", "TF_NUM_", "OMPI_MCA_mpi_yield_when_idle", "OMPI_MCA_btl_tcp_")


def describe() -> Machine:
    """Describe the job of this rank, once it has joined."""
    return Machine(
        ranks=world.size(),
        hosts=world.cross_size(),
        cores=machines.cores(),
        processor=_processor(),
        mpi=_mpi(),
        versions={"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES if name in sys.modules},
        settings={name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)},
    )


def _mpi() -> str:
    if "collective.transport.mpi" not in sys.modules:
        return ""
    from collective.transport import mpi

    return mpi.library()


def _version(module: str) -> str:
    # TensorFlow comes under several names (tensorflow-cpu), and tells itself.
    own = getattr(sys.modules[module], "__version__", "")
    return own or importlib.metadata.version(PACKAGES[module])


def _processor() -> str:
    """The name of the processor, as Linux knows it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
