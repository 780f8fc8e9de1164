"""The picture: time over size, and how many times ours the peers take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collective.bench.contenders import MEMCPY, OURS
from collective.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, rows: Sequence[Row], names: Sequence[str], title: str) -> None:
    """Draw a column for each table: above the times, below the ratios to ours, both over the size.

    Args:
        path: Where the picture goes; its suffix says the format.
        rows: With ``bytes`` among their details.
        names: Of the contenders, ours first.
        title: Stands above.
    """
    from matplotlib.figure import Figure

    tables = list(dict.fromkeys(row.table for row in rows))
    figure = Figure(figsize=(1.5 + 6.5 * len(tables), 9), layout="constrained")
    panels = figure.subplots(2, len(tables), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 2))
    for place, table in enumerate(tables):
        shown = [row for row in rows if row.table == table]
        times, ratios = panels[:, place]
        for number, name in enumerate(names):
            _lines(times, ratios, shown, name, _style(name, number))
        _label(times, ratios, shown, table)
    panels[0, 0].set_ylabel("time, µs (median, quartiles shaded)")
    panels[1, 0].set_ylabel("peer's time / ours\n(above 1: ours is faster)")
    figure.suptitle(title)
    # Each name once: not every dtype has every contender.
    handles = {line.get_label(): line for panel in panels[0] for line in panel.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)))
    figure.savefig(path, dpi=120)


def _style(name: str, number: int) -> dict[str, Any]:
    if name == OURS:
        return {"color": "black", "linewidth": 2.5, "marker": "o", "zorder": 3}
    if name == MEMCPY:
        return {"color": "grey", "linestyle": "--"}
    return {"color": f"C{(number - 1) % 10}", "marker": ".", "linestyle": "-" if number <= 10 else ":"}


def _lines(times: Axes, ratios: Axes, rows: Sequence[Row], name: str, style: dict[str, Any]) -> None:
    rows = [row for row in rows if name in row.values]
    if not rows:
        return
    sizes = [row.details["bytes"] for row in rows]
    spreads = [row.values[name] for row in rows]
    times.plot(sizes, [spread.median * 1e6 for spread in spreads], label=name, **style)
    lower, upper = [spread.lower * 1e6 for spread in spreads], [spread.upper * 1e6 for spread in spreads]
    times.fill_between(sizes, lower, upper, color=style["color"], alpha=0.12, linewidth=0)
    if name == MEMCPY:
        return  # no peer
    ours = [row.values[OURS].median for row in rows]
    ratios.plot(sizes, [spread.median / own for spread, own in zip(spreads, ours, strict=True)], **style)


def _label(times: Axes, ratios: Axes, rows: Sequence[Row], table: str) -> None:
    times.set_title(table)
    times.set_xscale("log", base=2)
    times.set_yscale("log")
    ratios.set_yscale("log", base=2)
    ratios.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    ratios.set_xlabel("bytes of one rank's array")
    ratios.set_xticks([row.details["bytes"] for row in rows], [row.label for row in rows], rotation=45, ha="right")
    ratios.minorticks_off()
    for panel in (times, ratios):
        panel.grid(alpha=0.3)
