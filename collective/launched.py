"""Which launcher started this process: one table of the variables that launchers set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# The exit status by which a job asks to be started again, with the hosts there are then: EX_TEMPFAIL of sysexits.h. To
# ``collective run`` it is no failure as long as the hosts have changed.
START_AGAIN = 75


@dataclasses.dataclass(frozen=True)
class Launcher:
    """The environment variables by which one launcher tells a process its place.

    Attributes:
        name: What users call it.
        size: Variable with the number of processes; its presence says that this launcher started the process.
        rank: Variable with the number of this process.
        library: The MPI library it can start, as ``mpi4py.MPI.get_vendor`` names it; empty: any.
        tell_tale: A further variable that has to be there, where ``size`` alone is ambiguous.
    """

    name: str
    size: str
    rank: str
    library: str = ""
    tell_tale: str = ""


# The first that fits counts: horovodrun --mpi and srun set the variables of what they start as well. A process that a
# Slurm batch script runs by itself also sees SLURM_NTASKS; only srun sets SLURM_STEP_NUM_TASKS for its own tasks.
LAUNCHERS = (
    Launcher("Open MPI's mpirun", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", library="Open MPI"),
    Launcher("horovodrun --gloo", "HOROVOD_SIZE", "HOROVOD_RANK", tell_tale="HOROVOD_GLOO_RENDEZVOUS_ADDR"),
    Launcher("Intel MPI's mpiexec", "PMI_SIZE", "PMI_RANK", library="Intel MPI", tell_tale="I_MPI_MPIRUN"),
    Launcher("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", tell_tale="SLURM_LOCALID"),
    Launcher("MVAPICH's mpirun", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", library="MVAPICH"),
    Launcher("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    Launcher("Flux", "FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    Launcher("MPICH's mpiexec", "PMI_SIZE", "PMI_RANK", library="MPICH"),
)
GLOO = LAUNCHERS[1]
# Variables with the number of processes on this host: of Open MPI, Horovod, MPICH and Intel MPI, MVAPICH, and jsrun.
LOCAL_SIZES = (
    *("OMPI_COMM_WORLD_LOCAL_SIZE", "HOROVOD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    *("MV2_COMM_WORLD_LOCAL_SIZE", "JSM_NAMESPACE_LOCAL_SIZE"),
)


@dataclasses.dataclass(frozen=True)
class Launched:
    """What the launcher says of this process.

    Attributes:
        launcher: Who it is.
        size: Number of the job's processes.
        rank: Number of this one.
        local_size: How many of them run on this host; 1 where the launcher doesn't say.
    """

    launcher: Launcher
    size: int
    rank: int
    local_size: int = 1


def detect(environment: Mapping[str, str]) -> Launched | None:
    """Find the launcher in ``environment`` (such as ``os.environ``); None: the process was started by hand."""
    for launcher in LAUNCHERS:
        size = environment.get(launcher.size, "")
        if size.isdigit() and (not launcher.tell_tale or launcher.tell_tale in environment):
            neighbours = next((told for name in LOCAL_SIZES if (told := environment.get(name, "")).isdecimal()), "1")
            return Launched(launcher, int(size), int(environment.get(launcher.rank, "0")), int(neighbours))
    return None
