"""State that training can go back to, and a loop that does so when an operation fails, by Horovod's names.

A state holds what a step changes: ``commit`` remembers it, ``restore`` goes back to what was remembered, ``sync`` gives
all ranks that of rank 0. All of it lies in the memory of the ranks: what outlives a job is ``collective.checkpoint``.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

from collective import objects, world
from collective.common import keeping
from collective.common.exceptions import HostsUpdatedInterrupt
from collective.errors import MismatchError, NonFiniteError, TransportError

# What going back can help against. A wrong argument stays wrong.
FAILURES = (MismatchError, TransportError, NonFiniteError)
# How often a job goes back to the same commit: what fails every time is a fault of the program's.
MOST_RETRIES = 3


class State:
    """What training can go back to; subclasses know how to save, restore and sync it.

    Args:
        bcast_object: Gives all ranks an object of rank 0; None: by pickle, over the job.
        get_rank: Tells this rank's number.

    Attributes:
        commits: How often it was committed.
    """

    def __init__(
        self, bcast_object: Callable[..., Any] | None = None, get_rank: Callable[[], int] | None = None
    ) -> None:
        self._bcast_object = bcast_object or functools.partial(objects.broadcast_object, allow_pickle=True)
        self._rank = get_rank or world.rank
        self._reset_callbacks: list[Callable[[], None]] = []
        self.commits = 0

    def register_reset_callbacks(self, callbacks: Iterable[Callable[[], None]]) -> None:
        """Add functions to be called after a reset, such as one that sets the learning rate for the number of ranks."""
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        """Called when the job has begun anew."""
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def on_hosts_updated(self, timestamp: float, update_res: Any) -> None:
        """Called when hosts have come or gone; nothing tells of such in a job of a fixed size."""

    def commit(self) -> None:
        """Remember the state as it is now."""
        self.save()
        self.commits += 1
        keeping.persist(self)
        self.check_host_updates()

    def check_host_updates(self) -> None:
        """Raise ``HostsUpdatedInterrupt`` if hosts have come or gone; in a job of a fixed size none do."""

    def save(self) -> None:
        """Remember the state."""
        raise NotImplementedError

    def restore(self) -> None:
        """Go back to what was remembered."""
        raise NotImplementedError

    def sync(self) -> None:
        """Give all ranks the state of rank 0, and remember it; called by all ranks."""
        raise NotImplementedError

    def reset(self) -> None:
        """Make ready for other ranks; called before ``sync``."""

    def stored(self) -> Any:
        """What was remembered, for a snapshot: arrays, plain values and objects, nested; None: it can't be kept."""
        return None

    def own(self) -> Any:
        """What was remembered and differs from rank to rank; plain values and arrays."""
        return None

    def adopt(self, stored: Any, own: list[Any]) -> None:
        """Go back to what ``stored`` has given in a process that is no more, and ``own`` on each of its ranks."""
        raise NotImplementedError


class ObjectState(State):
    """A state of plain objects, which are its attributes.

    Args:
        bcast_object: As in ``State``.
        get_rank: As in ``State``.
        kwargs: The attributes, with their first values.
    """

    def __init__(
        self,
        bcast_object: Callable[..., Any] | None = None,
        get_rank: Callable[[], int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(bcast_object, get_rank)
        self._saved: dict[str, Any] = {}
        self._names = list(kwargs)
        for name, value in kwargs.items():
            setattr(self, name, value)
        ObjectState.save(self)

    def save(self) -> None:
        """See ``State``."""
        self._saved = {name: copy.deepcopy(getattr(self, name)) for name in self._names}

    def restore(self) -> None:
        """See ``State``."""
        for name, value in copy.deepcopy(self._saved).items():
            setattr(self, name, value)

    def stored(self) -> Any:
        """See ``State``."""
        return self._saved

    def adopt(self, stored: Any, own: list[Any]) -> None:  # noqa: ARG002
        """See ``State``."""
        self._saved = stored
        self.restore()

    def sync(self) -> None:
        """See ``State``. Cost: a broadcast of the objects."""
        if self._names:
            mine = {name: getattr(self, name) for name in self._names}
            for name, value in self._bcast_object(mine).items():
                setattr(self, name, value)
        ObjectState.save(self)


def run_fn(func: Callable[..., Any], reset: Callable[[], None]) -> Callable[..., Any]:
    """Make a training function go back to the last commit, and on from there, when an operation fails.

    Args:
        func: ``func(state, ...)``, called by all ranks.
        reset: Begins the job anew.

    Returns:
        A function with the same arguments, which returns what ``func`` does.
    """

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> Any:
        retries, commits, skip_sync = 0, -1, False
        keeping.resume(state)
        while True:
            if not skip_sync:
                state.sync()
            try:
                return func(state, *args, **kwargs)
            except FAILURES:
                retries = retries + 1 if state.commits == commits else 1
                commits = state.commits
                if retries > MOST_RETRIES:
                    raise
                state.restore()
                skip_sync = False
            except HostsUpdatedInterrupt as interrupt:
                skip_sync = interrupt.skip_sync
            reset()
            state.on_reset()

    return wrapper


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """``run_fn`` for the job that this process is in; for use as a decorator. Source: Horovod's elastic training.

    What a process's death needs is ``collective run --restarts N``: MPI ends a job that has lost a rank.
    """
    return run_fn(func, _reset)


def _reset() -> None:
    world.shutdown()
    world.init()
