"""What all subjects of the benchmark have in common, so that one command serves them all."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from collective.bench.rows import Progress, Row

Events = Iterator[Row | Progress]


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing that is measured.

    Attributes:
        title: What heads its tables.
        measure: Called on every rank of a job, before ``collective.init``, with the arguments and the contenders that
            take part in this job; yields progress and rows, on all ranks alike.
        cells: Makes of a row, the arguments and the names of all contenders the row's cells, by column name; the same
            columns for all rows of a table.
        contenders: The names it knows, ours first, each with the package that it needs; empty: none.
        usual: Those that take part unless others are named, if their packages are installed.
        job_of: What the processes are called that a contender takes part in. Contenders that would disturb each other
            have different ones, which run one after the other.
    """

    title: str
    measure: Callable[[argparse.Namespace, Sequence[str]], Events]
    cells: Callable[[Row, argparse.Namespace, Sequence[str]], dict[str, str]]
    contenders: Mapping[str, str]
    usual: Sequence[str]
    job_of: Callable[[str], str]
