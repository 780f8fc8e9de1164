"""Name tensors as the user knows them in errors of operations, which know only their places.

For ``COLLECTIVE_CHECK_FINITE=raise``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from collective.errors import NonFiniteError
from collective.handles import Handle, Result

PLACE = re.compile(r"array (\d+) of \d+")


@contextlib.contextmanager
def named(names: Sequence[str] | None) -> Iterator[None]:
    """Have an error about an array of an operation inside tell its name.

    Args:
        names: One for each array of the operation; None: they have none.

    Raises:
        NonFiniteError: the operation's, with a name in the place of a number.
    """
    try:
        yield
    except NonFiniteError as error:
        if names is not None:
            error.received = PLACE.sub(lambda found: names[int(found[1]) - 1], error.received, count=1)
        raise


class NamedHandle(Handle[Result]):
    """A handle of an operation on arrays that have names.

    Args:
        handle: The operation's.
        names: See ``named``.
    """

    __slots__ = ("_names",)

    def __init__(self, handle: Handle[Result], names: Sequence[str] | None) -> None:
        super().__init__(handle._operation, handle._deliver)
        self._names = names

    def wait(self) -> Result:
        """See ``Handle``."""
        with named(self._names):
            return super().wait()
