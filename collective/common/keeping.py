"""States that outlive their processes: every commit is also a snapshot, with which a job that starts again begins.

Arrays and plain values are kept as such. Other objects are pickled: a state's ``sync`` does the same with them.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from collective import relaunch, settings
from collective.common import trees
from collective.common.exceptions import HostsUpdatedInterrupt
from collective.log import logger
from collective.snapshots import Snapshots


class Lasting(Protocol):
    """What a state has to know of itself to be kept; see ``elastic.State``."""

    commits: int

    def save(self) -> None:
        """Remember the state."""

    def stored(self) -> Any:
        """What was remembered; None: it can't be kept."""

    def own(self) -> Any:
        """What of it differs from rank to rank."""

    def adopt(self, stored: Any, own: list[Any]) -> None:
        """Go back to what was remembered in another process."""


# The state of the loop that runs: others that are committed meanwhile are not those that a new job begins with.
_running: weakref.ref[Lasting] | None = None
# Whether the ranks have agreed to leave, because there are other hosts now.
_leaving = False


def resume(state: Lasting, from_newest: bool = True) -> None:
    """Let a state begin with what was kept last, if anything was, and keep its commits from now on.

    Called by all ranks. Cost: see ``Snapshots.newest``; nothing where nobody would start the job again. Without
    ``from_newest`` it begins as it is: on a rank that joins others, which are under way.
    """
    global _running
    _running = None
    if not settings.from_environment(os.environ).snapshot_folder:
        return
    if state.stored() is None:
        logger.warning(
            "a %s doesn't say how it is kept (stored, own, adopt): a job that is started again begins without it",
            type(state).__name__,
        )
        return
    _running = weakref.ref(state)
    found = Snapshots().newest() if from_newest else None
    if found:
        state.adopt(trees.join(found.values, found.arrays), found.own)
        state.commits = found.step


def persist(state: Lasting) -> None:
    """Keep what a state has just remembered, if somebody would start the job again; called by all ranks.

    Cost: see ``Snapshots.save``.
    """
    if _running and _running() is state:
        arrays, rest = trees.split(state.stored())
        Snapshots().save(state.commits, arrays, rest, state.own())


def check_hosts(state: Lasting) -> None:
    """Raise ``HostsUpdatedInterrupt`` if the job would have other hosts if it were started now; called by all ranks.

    Cost: see ``relaunch.is_wanted``.
    """
    global _leaving
    if _running and _running() is state and relaunch.is_wanted():
        _leaving = True
        raise HostsUpdatedInterrupt(skip_sync=False)


def leave_if_agreed(state: Lasting) -> None:
    """Keep the state and leave the job, which is started again on other hosts, if ``check_hosts`` found it so."""
    if _leaving:
        state.save()
        state.commits += 1
        persist(state)
        relaunch.leave()
