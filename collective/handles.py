"""Operations under way, and how to wait for one or for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from collective.backends.base import Operation
from collective.errors import CollectiveError

Result = TypeVar("Result")


class Handle(Generic[Result]):
    """An operation under way, as the ``..._async`` functions return it."""

    __slots__ = ("_deliver", "_operation")

    def __init__(self, operation: Operation, deliver: Callable[[Any], Result] | None = None) -> None:
        self._operation, self._deliver = operation, deliver

    def wait(self) -> Result:
        """Return the result of the operation once it is there; the arrays given belong to the caller again.

        Raises:
            MismatchError: on every rank, when names, shapes, dtypes or operations differ.
        """
        result = self._operation.wait()
        return self._deliver(result) if self._deliver else result

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""
        return self._operation.done()

    def started(self) -> Handle[Result]:
        """Begin it and return the handle; once, before anything else."""
        self._operation.start()
        return self


def wait_for_all(handles: Sequence[Handle[Result]]) -> list[Result]:
    """Wait for several operations, also when one fails, so that none is left under way; then return their results.

    Raises:
        CollectiveError: the first one's that failed.
    """
    results: list[Result] = []
    errors: list[CollectiveError] = []
    for handle in handles:
        try:
            results.append(handle.wait())
        except CollectiveError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results
