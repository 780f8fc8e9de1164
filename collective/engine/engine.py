"""The order of operations: which one runs next, the same on all ranks, whatever order threads and ranks call them in.

There is no clock. A thread that waits for its operation carries it out itself; only what is started without being
waited for is left to a thread of the engine's own, which sleeps until then. Each rank proposes one of its pending
operations by a word (``matching``); as long as the ranks propose the same, which they do whenever they call in the same
order, that is all there is to it. Else they tell each other what is pending (``negotiation``).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from collective import timeline
from collective.engine.bell import Bell, ask_for_short_turns
from collective.engine.calls import Call, Title, digest, mismatch
from collective.engine.matching import BUSY, compare, teller
from collective.engine.negotiation import Outcome, negotiate
from collective.engine.operation import Operation
from collective.engine.recorded import Recorded
from collective.errors import ArgumentError, MismatchError, NonFiniteError
from collective.monitor import link
from collective.transport.base import Request, Transport
from collective.transport.patience import Patience

# Names whose order is remembered; programs have some hundreds.
MOST_NAMES = 10_000


THREAD_NAME = "collective-engine"
# Threads of the library's that call no operations.
OWN_THREADS = (THREAD_NAME, link.THREAD_NAME)


# Tell how many threads of a pool have nothing to do: until they get work, they call nothing.
idle_threads: list[Callable[[], int]] = []


def count_threads() -> int:
    """The process's threads that could call something: Python's own, without engines', idle ones and foreign code's."""
    threads = sum(
        not isinstance(thread, threading._DummyThread) and thread.name not in OWN_THREADS
        for thread in threading.enumerate()
    )
    return threads - sum(idle() for idle in idle_threads)


class Engine:
    """The operations of one group of ranks, one at a time, in the same order on all of them.

    Args:
        transport: The messages between the ranks of the group.
        patience: How the transport waits; it is told the operation.
        stand_in: Makes an operation of a call and its name, with which a rank that has joined takes part.
        where: This rank, as errors name it.
        count_threads: Tells how many threads could call something; when as many wait, nothing new can come.
        explain: Makes of what went wrong in the middle of an operation the error to raise, then and from then on.
    """

    def __init__(
        self,
        transport: Transport,
        patience: Patience,
        stand_in: Callable[[Call, str], Operation],
        where: str,
        count_threads: Callable[[], int] = count_threads,
        explain: Callable[[BaseException], BaseException] = lambda error: error,
    ) -> None:
        self._transport, self._patience = transport, patience
        self._stand_in, self.where, self._count_threads = stand_in, where, count_threads
        self._explain = explain
        self._tell = teller(transport)
        self._joined: frozenset[int] = frozenset()
        self._turn = threading.Lock()  # held by the thread that carries out
        self._pending: dict[str, Operation] = {}  # the oldest first
        self._agreed: deque[str] = deque()  # to be proposed next, on all ranks
        self._follows: dict[str, str] = {}  # in what order names were agreed on when they had to be
        self._last = ""
        self._changes = threading.Lock()
        self._news = 0
        self._waiting = 0
        self._waiters: dict[str, int] = {}  # how many of them wait for each pending operation
        self._bell: Bell | None = None  # the thread's
        self._thread: threading.Thread | None = None
        # What went wrong in the middle of an operation: ranks that have lost each other get nothing right any more.
        self._lost: BaseException | None = None

    def run(self, operation: Operation) -> Any:
        """Carry out an operation and return its result; in this thread, unless another one is at it."""
        if not self._turn.acquire(False):
            self.start(operation)
            return operation.wait()
        try:
            if timeline.recorder:
                operation = Recorded(operation, timeline.recorder)
            differ = False
            if not self._pending:
                busy = self._propose(operation)
                if busy >= 0:
                    self._last = operation.name
                    return operation.run(busy > 0)
                differ = True
            self._add(operation)
            self._work(operation, differ)
        except (ArgumentError, NonFiniteError):  # a name that is pending already; values that all ranks refuse alike
            raise
        except BaseException as error:
            lost = self._lose(error)
            if lost is error:
                raise
            raise lost from error
        finally:
            self._turn.release()
            if self._pending:
                self._ring()
        return operation.wait()

    def start(self, operation: Operation) -> None:
        """Leave an operation to the engine's thread."""
        self._add(Recorded(operation, timeline.recorder) if timeline.recorder else operation)
        self._ring()

    def wait(self, name: str, ended: threading.Lock) -> None:
        """Return once the pending operation of this name has ended, which releases ``ended``."""
        with self._changes:
            if not ended.locked():
                return
            self._waiters[name] = self._waiters.get(name, 0) + 1
            self._waiting += 1
            self._news += 1
        with ended:
            pass

    def last_to_join(self) -> int:
        """The rank that joined last, of several at once the highest; for the operation in which all have joined."""
        last = max(set(range(self._transport.size)) - self._joined)
        self._joined = frozenset()
        return last

    @property
    def is_lost(self) -> bool:
        """Whether an operation has ended in the middle: no other works any more."""
        return self._lost is not None

    def give_up(self, error: BaseException) -> None:
        """Let all that is pending, and all that comes, fail; the messages between the ranks have to fail already."""
        with self._turn:
            self._lost = self._lost or error
            self._end_all(self._lost)
        self.close()

    def close(self) -> None:
        """End the engine's thread; nothing is pending any more."""
        if self._thread and self._bell:
            self._bell.close()
            self._thread.join()
            self._thread = self._bell = None

    def _lose(self, error: BaseException) -> BaseException:
        """Note what went wrong first in the middle of an operation; the error to raise."""
        if self._lost is None:
            self._lost = error = self._explain(error)
        return error

    def _add(self, operation: Operation) -> None:
        name = operation.name
        with self._changes:
            if name in self._pending:
                raise ArgumentError(
                    "a name is given to one pending operation at a time",
                    received=f"{operation.label} while {self._pending[name]} is pending",
                    fix="Wait for the first one, or give the second another name",
                )
            operation.begin()
            self._pending[name] = operation
            self._news += 1

    def _ring(self) -> None:
        """Wake the engine's thread; made when it is first needed."""
        with self._changes:
            bell = self._bell
            if bell is None:
                bell = self._bell = Bell()
                self._thread = threading.Thread(target=self._attend, args=(bell,), name=THREAD_NAME, daemon=True)
                self._thread.start()
        bell.ring()  # not while it would have to wait for what this thread holds

    def _attend(self, bell: Bell) -> None:
        """What the engine's thread does: it sleeps, and when the bell rings carries out all that is pending."""
        ask_for_short_turns()
        while bell.wait():
            with self._turn:
                self._work()

    def _work(self, until: Operation | None = None, differ: bool = False) -> None:
        """Carry out what is pending, as far as ``until`` if given; ``differ``: the ranks have just proposed unlike."""
        self._count_waiting(until is not None)
        while self._pending and not (until and until.done()):
            try:
                if differ or not self._carry_out(self._next()):
                    self._sort_out()
            except BaseException as error:
                self._end_all(self._lose(error))
            differ = False
        self._count_waiting(-(until is not None))

    def _carry_out(self, operation: Operation) -> bool:
        """Propose an operation and run it; False: the others propose another."""
        busy = self._propose(operation)
        if busy >= 0:
            self._last = operation.name
            try:
                self._end(self._last, operation.run(bool(busy)))
            except NonFiniteError as error:
                self._end(self._last, error=error)
        return busy >= 0

    def _next(self) -> Operation:
        """What to propose: what is agreed on; what followed on the last operation earlier; or the oldest."""
        if self._agreed:
            return self._pending[self._agreed.popleft()]
        with self._changes:  # other threads add to what is pending
            expected = self._pending.get(self._follows.get(self._last, ""))
            return expected or next(iter(self._pending.values()))

    def _propose(self, operation: Operation) -> int:
        """Compare with what the other ranks propose: at least 0, and 1 or more if one is busy; -1: they differ."""
        if self._lost:
            raise self._lost
        self._patience.operation = Title(operation.call, operation.name)
        word = digest(operation.call, operation.name)
        shown = operation.shows and operation.publish()
        told = self._tell(word | BUSY if shown else word, operation.watch)
        # All alike and none busy is what there is nearly always.
        return 0 if told.count(word) == len(told) else compare(told)

    def _sort_out(self) -> None:
        """Find out what is pending on all ranks, and wait for news where that is nothing."""
        with self._changes:
            news, silent = self._news, self._waiting >= self._count_threads()
            pending = dict(self._pending)
        outcome = negotiate(self._transport, {name: operation.call for name, operation in pending.items()}, silent)
        if len(outcome.joined) < self._transport.size:
            self._joined = outcome.joined
        for name in outcome.different.keys() & pending.keys():
            self._end(name, error=self._mismatch(outcome.different[name], pending[name]))
        if outcome.agreed:
            for name in outcome.agreed.keys() - pending.keys():
                self._add(self._stand_in(outcome.agreed[name], name))
            self._agreed.extend(outcome.agreed)
            self._remember(list(outcome.agreed))
        elif outcome.hopeless:
            for name, operation in pending.items():
                self._end(name, error=self._mismatch(outcome.waiting, operation))
        elif not outcome.different:
            self._await_news(news, outcome)

    def _await_news(self, news: int, outcome: Outcome) -> None:
        """Return on all ranks once there is news on one: an operation was called, or a thread began to wait."""
        others = [rank for rank in range(self._transport.size) if rank != self._transport.rank]
        signals = np.zeros(self._transport.size, np.uint8)
        receives: list[Request] = [self._transport.receive(signals[rank : rank + 1], rank) for rank in others]
        self._patience.operation = outcome.missing
        self._patience.wait(lambda: self._news != news or any(request.done() for request in receives))
        # Everyone tells everyone, whether it has news or has heard of some: so all come back together.
        mine = signals[self._transport.rank : self._transport.rank + 1]
        for request in [*[self._transport.send(mine, rank) for rank in others], *receives]:
            request.wait()

    def _remember(self, names: list[str]) -> None:
        if len(self._follows) > MOST_NAMES:
            self._follows.clear()
        self._follows.update(zip([self._last, *names], names, strict=False))

    def _end(self, name: str, result: Any = None, error: BaseException | None = None) -> None:
        with self._changes:
            operation = self._pending.pop(name)
            # From here on, not when they wake up: a thread that is about to go on may call something.
            self._waiting -= self._waiters.pop(name, 0)
            operation.end(result, error)

    def _end_all(self, error: BaseException) -> None:
        for name in list(self._pending):
            self._end(name, error=error)

    def _count_waiting(self, change: int) -> None:
        with self._changes:
            self._waiting += change
            self._news += change > 0

    def _mismatch(self, texts: Sequence[str], operation: Operation) -> MismatchError:
        return mismatch(texts, operation.label, self.where, self._transport.members)
