"""What the launcher has told this process in its environment."""

from __future__ import annotations

import os

from collective import launched
from collective.errors import LaunchError

# Horovod's own variables count first, then those of MPI's launchers.
PAIRS = (("HOROVOD_RANK", "HOROVOD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


def get_env_rank_and_size() -> tuple[int, int]:
    """Read what the launcher says: the rank of this process and the size of the job; (0, 1) without a launcher.

    Raises:
        LaunchError: a RuntimeError, when only one of the two is told.
    """
    for pair in PAIRS:
        values = [os.environ.get(name) for name in pair]
        if None not in values:
            return int(values[0] or 0), int(values[1] or 1)
        if any(value is not None for value in values):
            raise LaunchError("a launcher tells rank and size", received=f"{pair}={tuple(values)}")
    launch = launched.detect(os.environ)
    return (launch.rank, launch.size) if launch else (0, 1)
