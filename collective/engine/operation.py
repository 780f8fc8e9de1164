"""One collective operation on one rank, from its call to its result; also the handle by which it is waited for."""

from __future__ import annotations

import abc
import threading
from typing import TYPE_CHECKING, Any

from collective.engine.calls import Call
from collective.transport.shared import Watch

if TYPE_CHECKING:
    from collective.engine.engine import Engine


class Operation(abc.ABC):
    """What all kinds of operations share: they are begun once, by ``start`` or by ``wait``, and end once.

    Attributes:
        shows: Whether ``publish`` has something to show.
        watch: Is told again and again which ranks have come, until it says that all have; None: nobody asks.

    Args:
        engine: Carries it out.
        call: What has to be the same on every rank.
        name: What matches it with the calls of other ranks.
    """

    __slots__ = ("_ended", "_engine", "call", "error", "name", "result")

    shows: bool = False
    watch: Watch | None = None

    def __init__(self, engine: Engine, call: Call, name: str) -> None:
        self._engine, self.call, self.name = engine, call, name
        # A lock that is held until the end: half the price of an Event. None: not started, or carried out at once.
        self._ended: threading.Lock | None = None
        self.result: Any
        self.error: BaseException | None

    def __str__(self) -> str:
        return self.call.describe(self.name)

    @property
    def label(self) -> str:
        """The operation as errors name it."""
        return self.call.label(self.name)

    def start(self) -> None:
        """Hand it to the engine and return; other threads, this one included, go on meanwhile."""
        self._engine.start(self)

    def wait(self) -> Any:
        """Return its result once it is there; begins the operation if it wasn't started.

        Raises:
            CollectiveError: what went wrong; for a mismatch the same on all ranks.
        """
        if self._ended is None:
            return self._engine.run(self)
        if self._ended.locked():
            self._engine.wait(self.name, self._ended)
        if self.error:
            raise self.error
        return self.result

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""
        return self._ended is not None and not self._ended.locked()

    def begin(self) -> None:
        """Note that it is under way; for the engine."""
        self._ended = threading.Lock()
        self._ended.acquire()

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """Note how it ended and wake who waits; for the engine."""
        assert self._ended is not None  # noqa: S101  # it was begun
        self.result, self.error = result, error
        self._ended.release()

    def publish(self) -> bool:
        """Show this rank's data before the others are known to come; again, if they come with something else first.

        Returns:
            Whether this rank is busy: ``run`` is told on all ranks whether any was.
        """
        return False

    @abc.abstractmethod
    def run(self, busy: bool) -> Any:
        """Carry it out, together with all other ranks, and return its result."""
