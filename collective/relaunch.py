"""Leave a job on purpose, so that it is started again on the hosts there are now.

The supervisor (``collective run`` with a discovery script, or with ``--restarts`` on named hosts) tells the ranks when
hosts have come or gone. ``elastic.run`` looks at it after every commit; a loop of one's own does it like this::

    if step % 10 == 0:
        snapshots.save(step, arrays)
        if relaunch.is_wanted():
            relaunch.leave()
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import numpy as np

from collective import collectives, launched, settings, world
from collective.monitor import link
from collective.reduce_ops import Max

_told = False


def is_wanted() -> bool:
    """Tell whether other hosts are there than the job has, as far as any rank has heard; called by all ranks.

    Cost: an all-reduce of 8 bytes; nothing where nobody would start the job again.
    """
    if not settings.from_environment(os.environ).snapshot_folder:
        return False
    return bool(collectives.allreduce(np.array(int(_told)), Max, name="relaunch"))


def leave() -> NoReturn:
    """Leave the job and end this process with the status that asks for another start; called by all ranks.

    Raises:
        SystemExit: what ends the process.
    """
    world.shutdown()
    sys.stdout.flush()
    sys.exit(launched.START_AGAIN)


def _hear(message: dict[str, Any]) -> None:
    global _told
    _told = bool(message["others"])


link.handlers[link.HOSTS_UPDATED] = _hear
