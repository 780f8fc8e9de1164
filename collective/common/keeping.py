"""States that outlive their processes: every commit is also a snapshot, with which a job that starts again begins."""

from __future__ import annotations

from typing import Any, Protocol


class Lasting(Protocol):
    """What a state has to know of itself to be kept; see ``elastic.State``."""

    commits: int

    def stored(self) -> Any: ...

    def own(self) -> Any: ...

    def adopt(self, stored: Any, own: list[Any]) -> None: ...


def persist(state: Lasting) -> None:
    """Keep what a state has just remembered, if the job is under a supervisor that may start it again."""


def resume(state: Lasting) -> None:
    """Let a state begin with what was kept last, if anything was."""
