"""Operations under way, as the ``..._async`` functions return them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from collective import handles

Result = TypeVar("Result")


class Handle(Generic[Result]):
    """One operation under way; waited for by ``synchronize``, or by calling the handle.

    Args:
        begun: What it waits for, one or several operations on arrays.
        deliver: Makes its result of theirs.
    """

    def __init__(self, begun: handles.Handle[Any] | list[Any], deliver: Callable[[Any], Result]) -> None:
        self._begun, self._deliver = begun, deliver
        self._results: list[Result] = []

    def wait(self) -> Result:
        """Return its result once it is there; again, if asked again.

        Raises:
            MismatchError: on every rank, when names, shapes, dtypes or operations differ.
        """
        if not self._results:
            begun = self._begun
            arrived = [one.wait() for one in begun] if isinstance(begun, list) else begun.wait()
            self._results.append(self._deliver(arrived))
        return self._results[0]

    __call__ = wait

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""
        return all(one.done() for one in self._begun) if isinstance(self._begun, list) else self._begun.done()


def synchronize(handle: Handle[Result]) -> Result:
    """Return the result of an operation once it is there: a tensor, or a list or tuple of them.

    Raises:
        MismatchError: on every rank, when names, shapes, dtypes or operations differ.
    """
    return handle.wait()


def poll(handle: Handle[Any]) -> bool:
    """Tell whether ``synchronize`` would return at once."""
    return handle.done()
