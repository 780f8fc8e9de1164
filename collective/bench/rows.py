"""What a measurement yields: rows of medians with their spread, and word of how far it is; as objects and as JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Spread:
    """One contender's figure in one row: seconds, or bytes in the rows that say so.

    Attributes:
        median: Median of all rounds; of each round the slowest rank counts.
        lower: Lower quartile.
        upper: Upper quartile.
        cpu: Mean CPU seconds of one call on one rank, all its threads together.
    """

    median: float
    lower: float
    upper: float
    cpu: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """All contenders' figures for one thing measured, such as one size of array.

    Attributes:
        table: The table it belongs to, such as ``float32``.
        label: What the row is called there, such as ``1 MiB``.
        rounds: Number of timed calls of each contender.
        values: The figures, by contender.
        details: Whatever else a reader of the JSON may want, such as the number of bytes.
    """

    table: str
    label: str
    rounds: int
    values: dict[str, Spread]
    details: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Word of what is being measured: the ``number``-th of ``total`` rows."""

    what: str
    number: int
    total: int


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was measured on.

    Attributes:
        ranks: Number of processes.
        hosts: Number of hosts.
        cores: Cores that rank 0 may use.
        processor: Their name.
        mpi: The MPI library and its version; empty: none.
        versions: Versions of Python and the packages that took part.
        settings: The environment variables that change what is measured.
    """

    ranks: int
    hosts: int
    cores: int
    processor: str
    mpi: str
    versions: dict[str, str]
    settings: dict[str, str]


Event = Row | Progress | Machine
# Marks, at the start of a line of rank 0's output, what is meant for the process that started the ranks.
MARK = "collective-bench "
KINDS: dict[str, type[Row] | type[Progress] | type[Machine]] = {
    kind.__name__: kind for kind in (Row, Progress, Machine)
}


def to_line(event: Event) -> str:
    """Write an event as one line that ``from_line`` reads."""
    return MARK + json.dumps({type(event).__name__: dataclasses.asdict(event)})


def from_line(line: str) -> Event | None:
    """Read a line; None: it is something else that a rank had to say."""
    if not line.startswith(MARK):
        return None
    ((kind, fields),) = json.loads(line.removeprefix(MARK)).items()
    if kind == Row.__name__:
        fields["values"] = {name: Spread(**spread) for name, spread in fields["values"].items()}
    return KINDS[kind](**fields)


def merged(rows: Iterable[Row]) -> list[Row]:
    """Join the rows of several jobs: one for each table and label, with the contenders of all.

    A contender that several jobs have measured gets the median of their medians, between the least of their lower
    quartiles and the greatest of their upper ones.
    """
    same: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        same.setdefault((row.table, row.label), []).append(row)
    return [_joined(group) for group in same.values()]


def _joined(rows: Sequence[Row]) -> Row:
    names = dict.fromkeys(name for row in rows for name in row.values)
    spreads = {name: [row.values[name] for row in rows if name in row.values] for name in names}
    values = {name: _between(several) for name, several in spreads.items()}
    return dataclasses.replace(rows[0], values=values, rounds=min(row.rounds for row in rows))


def _between(spreads: Sequence[Spread]) -> Spread:
    return Spread(
        statistics.median(spread.median for spread in spreads),
        min(spread.lower for spread in spreads),
        max(spread.upper for spread in spreads),
        statistics.mean(spread.cpu for spread in spreads),
    )
