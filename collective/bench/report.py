"""How it is told: tables that grow as rows come in, a line of progress, JSON, and a plot."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Sequence

from collective.bench.plot import draw
from collective.bench.rows import Event, Machine, Progress, Row
from collective.bench.subject import Subject

CLEAR = "\r\033[K"


class Report:
    """Takes what the ranks yield, one after another, and tells it.

    Args:
        subject: What is measured.
        arguments: The command line's.
        names: Of all contenders, ours first.
        progress: Whether stderr is a terminal that a line may be written to and overwritten.
    """

    def __init__(self, subject: Subject, arguments: argparse.Namespace, names: Sequence[str], progress: bool) -> None:
        self._subject, self._arguments, self._names, self._progress = subject, arguments, names, progress
        self._machine: Machine | None = None
        self._rows: list[Row] = []

    def take(self, event: Event) -> None:
        """Tell a row at once; remember the machine, which heads the first table."""
        if isinstance(event, Progress):
            self._line(f"{event.number} of {event.total}: {event.what}")
        elif isinstance(event, Machine):
            # Several jobs on one machine: what each has loaded took part.
            seen = self._machine.versions if self._machine else {}
            self._machine = dataclasses.replace(event, versions={**seen, **event.versions})
        else:
            self._line("")
            self._print(event)
            self._rows.append(event)

    def finish(self) -> None:
        """Write the files that were asked for."""
        self._line("")
        if self._arguments.json:
            self._arguments.json.write_text(json.dumps(self._contents(), indent=1) + "\n")
        if self._arguments.plot:
            draw(self._arguments.plot, self._rows, self._names, self._heading())

    def _contents(self) -> dict[str, object]:
        return {
            "command": shlex.join(["collective", "bench", *own_words()]),
            "date": datetime.date.today().isoformat(),
            "machine": dataclasses.asdict(self._machine) if self._machine else {},
            "rows": [dataclasses.asdict(row) for row in self._rows],
        }

    def _heading(self) -> str:
        machine = self._machine
        if not machine:
            return self._subject.title
        return (
            f"{self._subject.title}: {machine.ranks} ranks, {machine.hosts} host(s), {machine.cores} cores a host"
            f"{machine.mpi and f', {machine.mpi}'}"
        )

    def _print(self, row: Row) -> None:
        cells = self._subject.cells(row, self._arguments, self._names)
        if not self._rows:
            print(self._heading())
        if not self._rows or self._rows[-1].table != row.table:
            print(f"\n{row.table}\n\n{markdown(list(cells))}\n|:---|{'---:|' * (len(cells) - 1)}")
        print(markdown(list(cells.values())), flush=True)

    def _line(self, text: str) -> None:
        if self._progress:
            print(f"{CLEAR}{text}", end="", file=sys.stderr, flush=True)


def markdown(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def own_words() -> list[str]:
    """What was said behind ``collective bench`` or ``python -m collective.bench``."""
    words = sys.argv[1:]
    return words[words[:1] == ["bench"] :]
