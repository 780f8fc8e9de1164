"""Which backend carries a job, and its start."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from collective import launched
from collective.backends.base import Backend
from collective.backends.solo import SoloBackend
from collective.errors import LaunchError, SettingError
from collective.settings import Settings


def start(chosen: Settings, launch: launched.Launched | None, environment: Mapping[str, str], comm: Any) -> Backend:
    """Start the backend of a job; called by all ranks.

    Args:
        chosen: What the user set.
        launch: The launcher that has started this process.
        environment: The process's environment.
        comm: See ``collective.init``.
    """
    name = chosen.backend
    if not name:
        name = "horovod" if launch and launch.launcher is launched.GLOO else "mpi" if launch or mpi_is_up() else "solo"
    if name == "solo":
        if launch and launch.size > 1:
            raise LaunchError(
                "the solo backend is one process",
                received=f"COLLECTIVE_BACKEND=solo, {launch.launcher.size}={launch.size}",
                fix=f"Unset COLLECTIVE_BACKEND, or start one process without {launch.launcher.name}",
                where=f"process {launch.rank} of {launch.size}",
            )
        return SoloBackend()
    # Imported here because either needs a library that the other user may not have.
    if name == "horovod":
        if chosen.check_finite == "raise":
            raise SettingError(
                "only the mpi backend looks whether values are finite",
                received="COLLECTIVE_CHECK_FINITE=raise with the horovod backend",
                fix="Unset one of COLLECTIVE_CHECK_FINITE and COLLECTIVE_BACKEND",
            )
        from collective.backends.horovod import HorovodBackend

        return HorovodBackend()
    if chosen.elastic:
        from collective.backends.elastic import ElasticBackend

        return ElasticBackend.connect(chosen, environment, comm)
    from collective.backends.mpi import MpiBackend

    return MpiBackend.connect(chosen, environment, comm)


def mpi_is_up() -> bool:
    """Tell whether MPI is started; before ``init`` by the user's own code, under a launcher that we may not know."""
    module = sys.modules.get("mpi4py.MPI")
    return module is not None and module.Is_initialized() and not module.Is_finalized()


def abort_mpi(status: int) -> None:
    """End all processes of the job, if MPI is started."""
    if mpi_is_up():
        sys.modules["mpi4py.MPI"].COMM_WORLD.Abort(status)
