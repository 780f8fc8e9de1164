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

HEADINGS = (
    "fault",
    "level",
    "network",
    "cases",
    "as promised",
    "detected s",
    "ended s",
    "resumed s",
    "steps lost",
    "left",
)


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
    """All cases, a row for each fault at each level: the median, and the worst in brackets."""
    groups: dict[tuple[str, str, str], list[Judgement]] = {}
    for found in all_found:
        groups.setdefault((found.fault, found.level, found.network), []).append(found)
    lines = [_row(HEADINGS), f"|:---|:---|:---|{'---:|' * (len(HEADINGS) - 3)}"]
    for (fault, level, network), group in groups.items():
        tried = [found for found in group if not found.not_tried]
        cells = [FAULTS[fault].about, level, network, str(len(tried)), str(sum(not each.complaints for each in tried))]
        for name in ("detected", "ended", "resumed", "steps_lost"):
            cells.append(_spread([value for each in tried if (value := getattr(each, name)) is not None]))
        lines.append(_row([*cells, str(sum(len(each.left) for each in tried))]))
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
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
