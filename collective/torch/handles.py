"""Operations under way, as the ``..._async`` functions return them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from collective import handles, world
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet

Result = TypeVar("Result")
Key = tuple[str, str | None, int | None]

# How long a name is in flight at least, unless its result is asked for. Operations may be over in microseconds; whether
# the second one of a name is refused mustn't depend on that. Horovod's ranks look for new ones once a millisecond.
LEAST_SECONDS = 0.005


class Handle(Generic[Result]):
    """One operation under way; waited for by ``synchronize``, or by calling the handle.

    Args:
        begun: What it waits for, one or several operations on arrays.
        deliver: Makes its result of theirs.
        key: Its kind, name and process set, which are in flight until the result is asked for.
    """

    def __init__(
        self,
        begun: handles.Handle[Any] | list[Any],
        deliver: Callable[[Any], Result],
        key: Key | None = None,
    ) -> None:
        self._begun, self._deliver, self._key = begun, deliver, key
        self._results: list[Result] = []

    def wait(self) -> Result:
        """Return its result once it is there; again, if asked again.

        Raises:
            MismatchError: on every rank, when names, shapes, dtypes or operations differ.
        """
        if not self._results:
            begun = self._begun
            _in_flight.pop(self._key, None)
            arrived = [one.wait() for one in begun] if isinstance(begun, list) else begun.wait()
            self._results.append(self._deliver(arrived))
        return self._results[0]

    __call__ = wait

    def done(self) -> bool:
        """Tell whether ``wait`` would return at once."""
        begun = self._begun if isinstance(self._begun, list) else [self._begun]
        done = all(one.done() for one in begun)
        if done:
            _in_flight.pop(self._key, None)
        return done


# The operations that nobody has asked for yet, and when they were begun; the oldest first.
_in_flight: dict[Key | None, tuple[float, handles.Handle[Any]]] = {}


def begin(
    function: Callable[..., handles.Handle[Any]],
    deliver: Callable[[Any], Result],
    values: Any,
    *details: Any,
    name: str | None,
    process_set: ProcessSet,
    **options: Any,
) -> Handle[Result]:
    """Begin an operation on arrays.

    Args:
        function: One of the ``..._async`` functions on arrays.
        deliver: Makes the result of that on arrays.
        values: The arrays, or the only one.
        details: More positional arguments of ``function``.
        name: Its name.
        process_set: The ranks that take part.
        options: More arguments of ``function``.

    Raises:
        ArgumentError: when an operation of this name is in flight.
    """
    key = (function.__name__, name, process_set.process_set_id)
    _forget_what_is_over()
    if name and key in _in_flight:
        raise ArgumentError(
            "a name is given to one pending operation at a time",
            received=f"{function.__name__} {name!r} while that name is in flight",
            fix="Wait for the first one, or give the second another name",
            where=world.topology().where,
        )
    begun = function(values, *details, name=name, process_set=process_set, **options)
    if name:
        _in_flight[key] = time.monotonic(), begun
    return Handle(begun, deliver, key)


def _forget_what_is_over() -> None:
    latest = time.monotonic() - LEAST_SECONDS
    for key, (start, begun) in list(_in_flight.items()):
        if start > latest or not begun.done():
            return
        del _in_flight[key]


def synchronize(handle: Handle[Result]) -> Result:
    """Return the result of an operation once it is there: a tensor, or a list or tuple of them.

    Raises:
        MismatchError: on every rank, when names, shapes, dtypes or operations differ.
    """
    return handle.wait()


def poll(handle: Handle[Any]) -> bool:
    """Tell whether ``synchronize`` would return at once."""
    return handle.done()
