"""How it is told: a line a case, a table at the end, and JSON."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from collective import __version__
from collective.chaos.faults import FAULTS
from collective.chaos.judge import Judgement

# Of a level: what is measured, by the judgement's names.
MEASURED = {"L0": {"ended": "ended"}} | {
    level: {"resumed": "resumed", "steps_lost": "steps"} for level in ("L1", "L2", "L3")
}


def line(number: int, total: int, found: Judgement) -> str:
    """One case."""
    result = f"not tried: {found.not_tried}" if found.not_tried else "; ".join(found.complaints) or "as promised"
    return f"{number} of {total}: {found.case}: {result}{_figures(found)}"


def _figures(found: Judgement) -> str:
    figures = {"ended": found.ended, "resumed": found.resumed}
    told = [f"{name} after {value:.1f} s" for name, value in figures.items() if value is not None]
    if found.steps_lost is not None:
        told.append(f"{found.steps_lost} steps again")
    return f" ({', '.join(told)})" if told else ""


def table(all_found: Iterable[Judgement]) -> str:
    """All cases, a row for each fault: seconds, and steps lost; the median, and the worst in brackets."""
    tried = [found for found in all_found if not found.not_tried]
    columns = [
        (level, name, told)
        for level in sorted({found.level for found in tried})
        for name, told in MEASURED[level].items()
    ]
    headings = [
        "fault",
        "network",
        "as promised",
        "left",
        "detected",
        *(f"{level} {told}" for level, _, told in columns),
    ]
    lines = [_row(headings), f"|:---|:---|{'---:|' * (len(headings) - 2)}"]
    groups: dict[tuple[str, str], list[Judgement]] = {}
    for found in tried:
        groups.setdefault((found.fault, found.network), []).append(found)
    for (fault, network), group in groups.items():
        promised = f"{sum(not found.complaints for found in group)} of {len(group)}"
        left = sum(len(found.left) for found in group)
        cells = [FAULTS[fault].about, network, promised, str(left), _spread(group, "detected")]
        cells += [_spread([each for each in group if each.level == level], name) for level, name, _ in columns]
        lines.append(_row(cells))
    return "\n".join(lines)


def _spread(group: Iterable[Judgement], name: str) -> str:
    """Median and maximum of a figure; empty: none has it."""
    values = [value for each in group if (value := getattr(each, name)) is not None]
    if not values:
        return ""
    digits = 0 if isinstance(values[0], int) else 1
    return f"{statistics.median(values):.{digits}f} ({max(values):.{digits}f})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(path: Path, all_found: Sequence[Judgement]) -> None:
    """Write all that was found as JSON."""
    content = {
        "command": shlex.join(["collective", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": {"system": platform.platform(), "python": platform.python_version(), "collective": __version__},
        "cases": [dataclasses.asdict(found) for found in all_found],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
