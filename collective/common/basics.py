"""Questions about a running job under Horovod's names, and the object that its own wrappers ask them of."""

from __future__ import annotations

import sys

from collective import timeline, world
from collective.common import util


def is_homogeneous() -> bool:
    """Tell whether all hosts have the same number of ranks.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``; a ValueError.
    """
    return world.topology().homogeneous


def mpi_enabled() -> bool:
    """Tell whether MPI carries the job; False: it is one process without MPI, or Horovod's core carries it."""
    return world.is_initialized() and world.backend().name == "mpi"


def gloo_enabled() -> bool:
    """Tell whether Gloo carries the job: never."""
    return False


def mpi_threads_supported() -> bool:
    """Tell whether a program may call MPI from other threads beside this library.

    ``init`` starts MPI so; a program that has started it differently gets a warning. A job of one process without MPI
    leaves MPI to the program.

    Raises:
        NotInitializedError: before ``init`` or after ``shutdown``; a ValueError.
    """
    world.backend("mpi_threads_supported")
    module = sys.modules.get("mpi4py.MPI")
    if module is None or not module.Is_initialized():
        return util.mpi_built()
    return bool(module.Query_thread() == module.THREAD_MULTIPLE)


class HorovodBasics:
    """Horovod's object of a front end's questions; all of them are this library's functions.

    Args:
        where: The files of Horovod's extension; there is none.
    """

    def __init__(self, *where: str) -> None:
        pass

    init = staticmethod(world.init)
    shutdown = staticmethod(world.shutdown)
    is_initialized = staticmethod(world.is_initialized)
    start_timeline = staticmethod(timeline.start_timeline)
    stop_timeline = staticmethod(timeline.stop_timeline)
    size = staticmethod(world.size)
    local_size = staticmethod(world.local_size)
    cross_size = staticmethod(world.cross_size)
    rank = staticmethod(world.rank)
    local_rank = staticmethod(world.local_rank)
    cross_rank = staticmethod(world.cross_rank)
    is_homogeneous = staticmethod(is_homogeneous)
    mpi_threads_supported = staticmethod(mpi_threads_supported)
    mpi_enabled = staticmethod(mpi_enabled)
    mpi_built = staticmethod(util.mpi_built)
    gloo_enabled = staticmethod(gloo_enabled)
    gloo_built = staticmethod(util.gloo_built)
    nccl_built = staticmethod(util.nccl_built)
    ddl_built = staticmethod(util.ddl_built)
    ccl_built = staticmethod(util.ccl_built)
    cuda_built = staticmethod(util.cuda_built)
    rocm_built = staticmethod(util.rocm_built)

    @staticmethod
    def _get_process_set_ids_and_ranks() -> dict[int, list[int]]:
        """The ranks of every registered process set, by its number."""
        return {number: list(process_set.ranks or ()) for number, process_set in world.process_sets().items()}
