"""Every exception the library raises, and the one shape of their text.

A message names the operation and the rank, says the rule, repeats what was received and says what to do:

    broadcast 'weights' on rank 2 of 4: the root is a rank from 0 to 3. Received: root_rank=7. Pass the rank that ...
"""

from __future__ import annotations


class CollectiveError(RuntimeError):
    """Base of all errors of the library.

    Args:
        rule: What holds when all is well, as a sentence without its full stop; empty where a user raises it.
        received: What came instead, as ``name=value``.
        fix: What the user can do now, as a sentence without its full stop.
        operation: The operation that failed, with its tensor's name, such as ``allreduce 'dense/kernel'``.
        where: The rank that noticed, such as ``rank 2 of 4``; the errors of a running job always name it.
    """

    def __init__(
        self, rule: str = "", *, received: str = "", fix: str = "", operation: str = "", where: str = ""
    ) -> None:
        self.rule, self.received, self.fix, self.operation, self.where = rule, received, fix, operation, where
        super().__init__(str(self))

    def __str__(self) -> str:
        head = " on ".join(part for part in (self.operation, self.where) if part)
        sentences = [self.rule, f"Received: {self.received}" if self.received else "", self.fix]
        text = " ".join(
            sentence if sentence.endswith((".", "\n")) else f"{sentence}." for sentence in sentences if sentence
        )
        return f"{head}: {text}" if head else text


class NotInitializedError(CollectiveError, ValueError):
    """A rank, a size or an operation was asked for outside a job or in a process set that it doesn't know."""


class ArgumentError(CollectiveError, ValueError):
    """An argument that no rank could carry out: a root out of range, an object array, an unknown operation."""


class SettingError(CollectiveError, ValueError):
    """A setting (``COLLECTIVE_...``) that does not exist or has a value outside the allowed ones."""


class MismatchError(CollectiveError):
    """The ranks called different operations, or one operation with different shapes, dtypes or roots.

    Raised on every rank alike; the next operation works.
    """


class LaunchError(CollectiveError):
    """The job cannot start as asked: launcher and MPI library differ, a host file has a typo, no MPI is found."""


class DivergenceError(CollectiveError):
    """The ranks' replicas of a model have different values; raised on every rank alike."""


class NonFiniteError(CollectiveError):
    """A reduced value is infinite or not a number; raised on every rank alike, and the next operation works."""


class CheckpointError(CollectiveError):
    """A checkpoint could not be written or read; raised on every rank alike."""


class RankError(CollectiveError):
    """A function that was run on many ranks didn't return on all of them."""


class TransportError(CollectiveError):
    """A message did not arrive as announced, or not in time.

    Args:
        rule: See ``CollectiveError``, as for what isn't told here.
        whom: The ranks that were waited for in vain, such as ``rank 3``; empty: not known.
    """

    def __init__(self, rule: str = "", *, whom: str = "", **told: str) -> None:
        self.whom = whom
        super().__init__(rule, **told)


class SharedMemoryError(TransportError):
    """The ranks of one host can't share memory; they go by messages then, and only a warning tells of it."""


class RanksLostError(TransportError):
    """Ranks of an elastic job have died, or have given up; raised on all that are left, which can go on without them.

    ``collective.elastic.run`` does so, and ``world.recover``. Nothing else works before.
    """
