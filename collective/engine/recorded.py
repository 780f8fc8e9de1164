"""An operation that tells the timeline what becomes of it; in every other respect the operation it is made of."""

from __future__ import annotations

from typing import Any

from collective import timeline
from collective.engine.operation import Operation


class Recorded(Operation):
    """An operation with a timeline.

    Args:
        operation: The operation.
        recorder: The timeline.
    """

    __slots__ = ("_came", "_inner", "_recorder", "_row")

    shows = True

    def __init__(self, operation: Operation, recorder: timeline.Recorder) -> None:
        super().__init__(operation._engine, operation.call, operation.name)
        self._inner, self._recorder = operation, recorder
        self._row = timeline.row_of(self.call.kind, self.name)
        self._came: set[int] = set()  # since the ranks began to compare what they call

    def wait(self) -> Any:
        """See ``Operation``."""
        return self._inner.wait()

    def done(self) -> bool:
        """See ``Operation``."""
        return self._inner.done()

    def begin(self) -> None:
        """See ``Operation``; from now on it waits for its turn."""
        self._recorder.phase(self._row, "QUEUE")
        self._inner.begin()

    def publish(self) -> bool:
        """See ``Operation``; from now on it waits for other ranks."""
        self._recorder.cycle()
        self._recorder.phase(self._row, f"NEGOTIATE_{self.call.kind.upper()}")
        self._came.clear()
        return self._inner.shows and self._inner.publish()

    def watch(self, here: list[bool]) -> bool:
        """Tell which ranks have come since this was asked last; returns whether all have."""
        present = {rank for rank, come in enumerate(here) if come}
        for rank in sorted(present - self._came):
            self._recorder.came(self._row, rank)
        self._came |= present
        return len(present) == len(here)

    def run(self, busy: bool) -> Any:
        """See ``Operation``."""
        self._recorder.phase(self._row, self.call.kind.upper())
        try:
            result = self._inner.run(busy)
        except BaseException as error:
            self._recorder.end(self._row, {"error": str(error)})
            raise
        self._recorder.end(self._row, timeline.details(self.call.arrays))
        return result

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        """See ``Operation``."""
        if error:
            self._recorder.end(self._row, {"error": str(error)})
        self._inner.end(result, error)
