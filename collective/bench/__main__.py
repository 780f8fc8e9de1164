"""One rank of the benchmark: ``collective run -np 2 -- python -m collective.bench``."""

from __future__ import annotations

import argparse
from pathlib import Path

import ml_dtypes
import numpy as np

import collective
from collective import world
from collective.bench import contenders, report
from collective.bench.measure import measure

SIZES = "1K,16K,64K,256K,1M,4M,25M,100M"
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16", "int32", "int64")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured and where it is told."""
    parser.add_argument("--sizes", default=SIZES, metavar="N,...", help=f"bytes, with K, M or G (default {SIZES})")
    parser.add_argument("--dtype", default="float32", choices=sorted(DTYPES), help="default: float32")
    parser.add_argument(
        "--beside", metavar="NAME,...", help=f"of {', '.join(contenders.PEERS)} (default: resident and installed peers)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")


def parse_size(text: str) -> int:
    """Bytes of ``text``, such as ``64K``."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    text = text.strip().upper()
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)


def main() -> None:
    """Measure; rank 0 tells."""
    parser = argparse.ArgumentParser(prog="python -m collective.bench", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    unknown = [name for name in (arguments.beside or "").split(",") if name and name not in contenders.PEERS]
    if unknown:
        parser.error(f"--beside takes {', '.join(contenders.PEERS)}; not {', '.join(unknown)}")
    collective.init()
    beside = arguments.beside.split(",") if arguments.beside else contenders.installed_peers()
    names = ["collective", *beside]
    taking_part = [contenders.ours(), *(contenders.PEERS[name][1]() for name in beside)]
    title = f"All-reduce of {arguments.dtype} on {world.size()} ranks, {world.cross_size()} host(s)"
    tells = world.rank() == 0
    if tells:
        print(f"{title}\n\n{report.heading(names)}", flush=True)
    rows = []
    for size in map(parse_size, arguments.sizes.split(",")):
        rows.append(measure(taking_part, size, DTYPES[arguments.dtype]))
        if tells:
            print(report.line(rows[-1], names), flush=True)
    if tells and arguments.json:
        report.write_json(arguments.json, rows, title)
    if tells and arguments.plot:
        report.write_plot(arguments.plot, rows, names, title)


if __name__ == "__main__":
    main()
