"""State that training can go back to, and a loop that does so when an operation fails, by Horovod's names.

A state holds what a step changes: ``commit`` remembers it, ``restore`` goes back to what was remembered, ``sync`` gives
all ranks that of rank 0. All of it lies in the memory of the ranks: what outlives a job is ``collective.checkpoint``.

In an elastic job (``collective run --elastic``) the loop goes on when a rank has died, and when others join.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from collective import collectives, objects, world
from collective.common import keeping
from collective.common.exceptions import HostsUpdatedInterrupt
from collective.errors import MismatchError, NonFiniteError, TransportError
from collective.reduce_ops import Max

# What going back can help against. A wrong argument stays wrong.
FAILURES = (MismatchError, TransportError, NonFiniteError)
# How often a job goes back to the same commit: what fails every time is a fault of the program's.
MOST_RETRIES = 3

# With how many ranks somebody wants the job to go on; 0: nobody has said.
_wanted = 0


def ask_for_ranks(ranks: int) -> None:
    """Let an elastic job go on with more ranks, from the next commit on; called on any rank, in any thread.

    Args:
        ranks: How many, those that are there included; as many as there are, or fewer, change nothing.
    """
    global _wanted
    _wanted = ranks


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
        """Remember the state as it is now; in an elastic job called by all ranks.

        Raises:
            HostsUpdatedInterrupt: see ``check_host_updates``.

        Cost:
            The copy; in an elastic job an all-reduce of 8 bytes as well.
        """
        # First: once a rank has given up, what the others still got may be wrong, and must not be remembered.
        ranks = _agreed_ranks()
        self.save()
        self.commits += 1
        keeping.persist(self)
        keeping.check_hosts(self)
        if ranks:
            raise HostsUpdatedInterrupt(False, ranks)

    def check_host_updates(self) -> None:
        """Raise ``HostsUpdatedInterrupt`` on all ranks if more are to join (``ask_for_ranks``); called by all.

        A job that isn't elastic has a fixed size: nothing is asked there, unless a supervisor has found other hosts.
        Then the job ends, and is started again on them.
        """
        keeping.check_hosts(self)
        ranks = _agreed_ranks()
        if ranks:
            raise HostsUpdatedInterrupt(False, ranks)

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
        reset: Begins the job anew, after a failure and when ranks join; in an elastic job not called.

    Returns:
        A function with the same arguments, which returns what ``func`` does.
    """

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> Any:
        retries, commits, skip_sync, synced = 0, -1, False, False
        keeping.resume(state, from_newest=not world.backend().is_newcomer)
        while True:
            ranks, failed = None, False
            try:
                if not skip_sync:
                    _sync(state)
                synced = True
                return func(state, *args, **kwargs)
            except HostsUpdatedInterrupt as interrupt:
                keeping.leave_if_agreed(state)
                skip_sync, ranks = interrupt.skip_sync, interrupt.ranks
            except Exception as error:
                # Frameworks wrap errors in their own. Without memory a rank can't begin anew: threads may not start.
                if isinstance(error, MemoryError) or not (isinstance(error, FAILURES) or world.is_lost()):
                    raise
                # A newcomer that has nothing yet must not become the rank whose state all get.
                if world.backend().is_newcomer and not synced:
                    raise
                retries = retries + 1 if state.commits == commits else 1
                commits = state.commits
                if retries > MOST_RETRIES:
                    raise
                skip_sync, failed = False, True
            _begin_anew(reset, ranks)
            # Not before: what was under way may have written to it until then.
            if failed:
                state.restore()
            state.on_reset()

    return wrapper


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """``run_fn`` for the job that this process is in; for use as a decorator. Source: Horovod's elastic training.

    Under ``collective run --elastic`` it goes on without ranks that have died, or with others in their place. Without,
    MPI ends a job that has lost a rank, and ``collective run --restarts N`` starts it again.
    """
    return run_fn(func, _reset)


def _reset() -> None:
    world.shutdown()
    world.init()


def _begin_anew(reset: Callable[[], None], ranks: int | None) -> None:
    global _wanted
    if not world.backend().is_elastic:
        return reset()
    _wanted = 0
    return world.recover(ranks)


def _sync(state: State) -> None:
    """Let all ranks have the state of rank 0."""
    state.sync()
    if world.backend().is_elastic:  # ranks may have been a commit apart, and newcomers have none
        state.commits = int(collectives.broadcast(np.array(state.commits), 0, name="elastic.commits"))


def _agreed_ranks() -> int | None:
    """The number of ranks to go on with that any rank was asked for; None: this one."""
    if not world.backend().is_elastic:
        return None
    wanted = int(collectives.allreduce(np.array(_wanted), Max, name="elastic.ranks"))
    return wanted if wanted > world.size() else None
