"""``collective chaos``: disturb a small training in every way there is, and tell how it came out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import shlex
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from collective.chaos import cases, emulated, report, surroundings, trigger
from collective.chaos.cases import Case
from collective.chaos.faults import FAULTS
from collective.chaos.judge import Judgement, judge
from collective.chaos.surroundings import Network
from collective.errors import LaunchError

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is tried, and where."""
    parser.usage = "collective chaos [--faults NAME,...] [--moments MOMENT,...] [--levels L0,...] [options]"
    parser.epilog = "Faults: " + "; ".join(f"{name}: {fault.about}" for name, fault in FAULTS.items())
    parser.add_argument("--faults", type=_names(FAULTS), default=list(FAULTS), metavar="NAME,...", help="default: all")
    parser.add_argument(
        "--moments", type=_names(trigger.MOMENTS), default=list(trigger.MOMENTS), metavar="MOMENT,...",
        help=f"of {', '.join(trigger.MOMENTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--levels", type=_names(cases.LEVELS), default=list(cases.LEVELS), metavar="LEVEL,...",
        help="L0: the job ends; L1, L2: it starts again from a checkpoint, a snapshot; L3: it goes on (default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws victims and steps (default: 0)")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="each case with so many draws (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time (default: 1)")
    parser.add_argument("--patience", type=float, default=1.0, metavar="X", help="a factor for all bounds (default: 1)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all that was found as JSON")
    parser.add_argument("--list", action="store_true", help="name the cases, and run none")
    where = parser.add_argument_group("where the ranks run; by default on this machine")
    where.add_argument(
        "-np", "-n", dest="ranks", type=int, default=2, metavar="N", help="number of processes (default: 2)"
    )
    where.add_argument("-H", "--hosts", metavar="HOST:N,...", help="as for 'collective run'")
    where.add_argument("--hostfile", metavar="FILE", help="as for 'collective run'")
    where.add_argument("--run-args", default="", metavar="ARGS", help='its other options, as in --run-args="-x NAME"')
    where.add_argument("--folder", type=Path, metavar="DIR", help="for checkpoints; all hosts have to see it")
    where.add_argument("--emulate", type=int, metavar="N", help="N hosts in namespaces of this machine, as root")


def run(arguments: argparse.Namespace) -> int:
    """Try all cases, and return 0 if all came out as promised.

    Raises:
        LaunchError: when hosts can't be emulated.
    """
    with _network(arguments) as network:
        kinds = (cases.HOSTS,) if network.options else (cases.SHARED_MEMORY,)
        tried = list(
            cases.draw(
                arguments.faults, arguments.moments, arguments.levels, kinds,
                arguments.ranks, arguments.seed, arguments.repeats,
            )
        )  # fmt: skip
        if arguments.list:
            print("\n".join(map(str, tried)))
            return 0
        found = []
        with pool(arguments.jobs) as workers:
            judged = functools.partial(judge, network=network, folder=arguments.folder, patience=arguments.patience)
            for number, each in enumerate(_as_done(workers, judged, tried), start=1):
                print(report.line(number, len(tried), each), flush=True)
                found.append(each)
                if arguments.report:
                    report.write(arguments.report, found)
    print(f"\n{report.table(found)}")
    return FAILED if any(each.complaints for each in found) else 0


def pool(jobs: int) -> ProcessPoolExecutor:
    """Processes in which to judge: each has its own mounts if it may, and adopts what its cases leave over."""
    fresh = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(jobs, mp_context=fresh, initializer=surroundings.own_mounts)


def _as_done(
    workers: ProcessPoolExecutor, judged: Callable[[Case], Judgement], tried: Sequence[Case]
) -> Iterator[Judgement]:
    futures: list[Future[Judgement]] = [workers.submit(judged, case) for case in tried]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        workers.shutdown(wait=False, cancel_futures=True)
        raise


@contextlib.contextmanager
def _network(arguments: argparse.Namespace) -> Iterator[Network]:
    """Where the ranks run: here, on the user's hosts, or on emulated ones."""
    own = shlex.split(arguments.run_args)
    if arguments.hosts is not None:
        yield Network(("-H", arguments.hosts, *own))
    elif arguments.hostfile is not None:
        yield Network(("--hostfile", arguments.hostfile, *own))
    elif arguments.emulate:
        obstacle = emulated.obstacle()
        if obstacle:
            raise LaunchError("--emulate brings up hosts in network namespaces", received=obstacle)
        with tempfile.TemporaryDirectory() as folder, emulated.hosts(arguments.emulate, Path(folder)) as up:
            slots = -(-arguments.ranks // arguments.emulate)
            yield Network((*emulated_options(up, slots), *own), up.names)
    else:
        yield Network(tuple(own))


def emulated_options(up: emulated.Hosts, slots: int) -> tuple[str, ...]:
    """The options of ``collective run`` for emulated hosts."""
    hosts = ",".join(f"{address}:{slots}" for address in up.addresses)
    # The hosts share their cores, which no MPI knows.
    return ("-H", hosts, "--launch-agent", str(up.agent), "-x", "OMPI_MCA_mpi_yield_when_idle=1")


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    """A function that splits names at commas, for argparse."""

    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return names

    return split
