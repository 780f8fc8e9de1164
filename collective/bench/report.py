"""How it is told: a table as it grows, JSON, and a plot."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path

from collective import world
from collective.bench.measure import Row

UNITS = ("B", "KiB", "MiB", "GiB")


def heading(names: Sequence[str]) -> str:
    """The table's first two lines, in Markdown."""
    cells = ["size", *(f"{name}, us" for name in names), *(f"{name} / {names[0]}" for name in names[1:])]
    return f"| {' | '.join(cells)} |\n|{'---:|' * len(cells)}"


def line(row: Row, names: Sequence[str]) -> str:
    """One size's line: microseconds of each contender, and how many times ours they take."""
    ours = row.seconds[names[0]]
    microseconds = [f"{row.seconds[name] * 1e6:,.1f}" if name in row.seconds else "" for name in names]
    ratios = [f"{row.seconds[name] / ours:.2f}" if name in row.seconds else "" for name in names[1:]]
    return f"| {' | '.join([size_text(row.bytes), *microseconds, *ratios])} |"


def size_text(size: int) -> str:
    """A number of bytes in the largest unit that leaves it whole."""
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size, power = size // 1024, power + 1
    return f"{size} {UNITS[power]}"


def write_json(path: Path, rows: Sequence[Row], title: str) -> None:
    """Write all rows with what they were measured on."""
    what = {"title": title, "ranks": world.size(), "machine": platform.machine(), "python": platform.python_version()}
    path.write_text(json.dumps({**what, "rows": [dataclasses.asdict(row) for row in rows]}, indent=1) + "\n")


def write_plot(path: Path, rows: Sequence[Row], names: Sequence[str], title: str) -> None:
    """Draw time over size, both logarithmic, a line for each contender."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="bytes of one rank's array", ylabel="time, median, us")
    for name in names:
        points = [(row.bytes, row.seconds[name] * 1e6) for row in rows if name in row.seconds]
        width, marker = (2.5, "o") if name == names[0] else (1.2, ".")
        axes.plot(*zip(*points, strict=True), label=name, linewidth=width, marker=marker)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row.bytes for row in rows], [size_text(row.bytes) for row in rows], rotation=45, ha="right")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
