"""The all-reduce over sizes, dtypes and algorithms, beside its peers.

Horovod has processes of its own. Its thread never rests, not even between its calls: in its processes ours takes
several times as long for small arrays, which is measured there too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

import collective
from collective import world
from collective.bench.contenders import CONTENDERS, MEMCPY, OURS, PACKAGES, SAME_ELEMENTS, Contender
from collective.bench.measure import Call, Sums, measure
from collective.bench.rows import Progress, Row
from collective.bench.subject import Events, Subject
from collective.bench.units import microseconds, names_of, ratio, size_of, size_text
from collective.errors import ArgumentError, CollectiveError

SECONDS_A_SIZE = 2.0
SIZES = "1K,16K,64K,256K,1M,4M,25M,100M"
DTYPES = {name: np.dtype(name) for name in ("float32", "float64", "float16", "int32", "int64")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Declare what is measured, and what is told of it."""
    parser.add_argument(
        "--sizes", type=_sizes, default=SIZES, metavar="N,...", help=f"bytes, with K, M or G (default: {SIZES})"
    )
    parser.add_argument(
        "--dtype",
        type=names_of(DTYPES),
        default="float32",
        metavar="NAME,...",
        help=f"of {', '.join(DTYPES)} (default: float32)",
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="first measure for 5 s what to use at which size, and keep it for later jobs",
    )
    parser.add_argument("--cpu", action="store_true", help="tell the CPU time of a call on a rank, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw time over size (needs matplotlib)")


def _sizes(text: str) -> list[int]:
    try:
        return [size_of(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def measure_all(arguments: argparse.Namespace, names: Sequence[str]) -> Events:
    """Measure every dtype at every size; called by all ranks."""
    collective.init()
    if arguments.tune:
        yield Progress("tuning", 0, 1)
        _tune()
    taking_part = {name: CONTENDERS[name]() for name in names}
    if OURS not in names:
        taking_part[f"{OURS} beside {names[0]}"] = CONTENDERS[OURS]()
    plan = [(dtype, size) for dtype in arguments.dtype for size in arguments.sizes]
    for number, (dtype, size) in enumerate(plan, 1):
        yield Progress(f"{dtype}, {size_text(size)}", number, len(plan))
        yield measure_one(taking_part, size, DTYPES[dtype])


def _tune() -> None:
    from collective.backends.mpi import MpiBackend

    backend = world.backend()
    if not isinstance(backend, MpiBackend):
        raise ArgumentError("the MPI backend chooses among algorithms", received=f"--tune, backend={backend.name}")
    backend.tune()


def measure_one(taking_part: dict[str, Contender], size: int, dtype: np.dtype) -> Row:
    """Time all contenders that know ``dtype`` on arrays of ``size`` bytes; called by all ranks."""
    elements = max(1, size // dtype.itemsize)
    sums: dict[np.dtype, Sums] = {}
    calls = []
    for name, contender in taking_part.items():
        compares_with_itself = contender.dtype == dtype
        if compares_with_itself or (contender.dtypes and dtype.name not in contender.dtypes):
            continue
        own = contender.dtype or dtype
        sums[own] = sums.get(own) or Sums(elements, own)
        calls.append(_call(name, contender, elements, sums[own]))
    rounds, spreads = measure(calls, SECONDS_A_SIZE)
    size = elements * dtype.itemsize
    return Row(dtype.name, size_text(size), rounds, spreads, {"bytes": size, "elements": elements})


def _call(name: str, contender: Contender, elements: int, sums: Sums) -> Call:
    array = contender.make(elements, sums.own.dtype)

    def check(result: np.ndarray) -> None:
        wrong = sums.wrong(result) if contender.adds else 0
        if wrong:
            raise CollectiveError(
                "an all-reduce returns the sum over all ranks",
                received=f"{wrong} of {elements} elements wrong, {sums.own.dtype}",
                operation=name,
                where=world.topology().where,
            )

    return Call(name, lambda: contender.all_reduce(array), lambda: np.copyto(array, sums.own), check)


def cells(row: Row, arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    """Microseconds of each contender, how many times ours each peer takes, and CPU time if asked for."""
    values, ours = row.values, row.values[OURS].median
    told = {"size": row.label} | {f"{name}, us": microseconds(spread.median) for name, spread in values.items()}
    peers = [name for name in values if name in names and name not in (OURS, SAME_ELEMENTS)]
    told |= {f"{name} / {OURS}": ratio(values[name].median, ours) for name in peers}
    if SAME_ELEMENTS in values:
        # The other way round: the part of float32's time that this dtype takes.
        told[f"{OURS} / {SAME_ELEMENTS}"] = ratio(ours, values[SAME_ELEMENTS].median)
    if arguments.cpu:
        told |= {f"{name}, CPU us": microseconds(spread.cpu) for name, spread in values.items()}
    return told


SUBJECT = Subject(
    title="All-reduce",
    measure=measure_all,
    cells=cells,
    contenders={name: PACKAGES.get(name, "") for name in CONTENDERS},
    usual=(OURS, "resident", SAME_ELEMENTS, MEMCPY, "wire", "mpi", "mpi-in-place", *PACKAGES),
    job_of=lambda name: name if name == "horovod" else OURS,
)
