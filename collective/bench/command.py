"""``collective bench``: measure all-reduce, training step, control plane or memory, beside the peers installed here.

Started by hand it starts the ranks. Started by a launcher, as in ``mpirun -np 2 python -m collective.bench``, it is
one of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from collective import launched, world
from collective.bench import allreduce, control, memory, step
from collective.bench.jobs import JobFailed, launch
from collective.bench.machine import describe
from collective.bench.report import Report, own_words
from collective.bench.rows import Event, Row, merged, to_line
from collective.bench.subject import Subject
from collective.bench.units import count_of
from collective.errors import ArgumentError, CollectiveError

SUBJECTS: dict[str, Subject] = {
    "allreduce": allreduce.SUBJECT,
    "step": step.SUBJECT,
    "control": control.SUBJECT,
    "memory": memory.SUBJECT,
}
ERROR_STATUS = 2
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured, on how many ranks, and where it is told."""
    parser.usage = "collective bench [allreduce | step | control | memory] [-np N] [options]"
    parser.epilog = "Contenders: " + "; ".join(
        f"{name}: {', '.join(subject.contenders)}" for name, subject in SUBJECTS.items()
    )
    parser.add_argument(
        "subject", nargs="?", default="allreduce", choices=SUBJECTS, help="what is measured (default: allreduce)"
    )
    parser.add_argument("--beside", metavar="NAME,...", help="contenders beside ours; see below (default: the peers)")
    parser.add_argument(
        "--repeats", type=count_of, default=1, metavar="N", help="run the jobs N times, in turns (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, with quartiles and versions")
    # What this job of several measures: for the ranks, not for people.
    parser.add_argument("--only", help=argparse.SUPPRESS)
    allreduce.add_arguments(parser.add_argument_group("allreduce"))
    step.add_arguments(parser.add_argument_group("step"))
    ranks = parser.add_argument_group("ranks, as for 'collective run'")
    ranks.add_argument("-np", "-n", dest="ranks", metavar="N", help="number of processes (default: one a core)")
    ranks.add_argument("-H", "--hosts", metavar="HOST:N,...", help="hosts and their slots; default: this machine")
    ranks.add_argument("--hostfile", metavar="FILE", help="hosts and their slots, in any MPI's notation")
    ranks.add_argument(
        "--run-args", default="", metavar="ARGS", help='its other options, as in --run-args="--interface eth0 -x NAME"'
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, and return the exit status.

    Raises:
        ArgumentError: when a contender is not known or not installed, or there is nothing to draw with.
    """
    subject = SUBJECTS[arguments.subject]
    if arguments.only:
        return _measure(arguments, subject, arguments.only.split(","), lambda event: print(to_line(event), flush=True))
    _check_plot(arguments)
    jobs = _jobs(subject, _contenders(subject, arguments))
    if not launched.detect(os.environ):
        return _conduct(arguments, subject, jobs * arguments.repeats)
    # A job can't start another: contenders that would disturb each other share it only if the user names them.
    names = [name for job in jobs for name in job] if arguments.beside else jobs[0]
    report = Report(subject, arguments, names, progress=False)
    status = _measure(arguments, subject, names, report.take)
    if not status and world.rank() == 0:
        report.finish()
    return status


def _conduct(arguments: argparse.Namespace, subject: Subject, jobs: Sequence[Sequence[str]]) -> int:
    """Run one job after the other, and tell what they found."""
    report = Report(
        subject, arguments, list(dict.fromkeys(name for job in jobs for name in job)), progress=sys.stderr.isatty()
    )
    rows = []
    try:
        for names in jobs:
            for event in launch(arguments, ["collective.bench", *own_words(), "--only", ",".join(names)]):
                if isinstance(event, Row) and len(jobs) > 1:
                    rows.append(event)
                else:
                    report.take(event)
    except KeyboardInterrupt:
        return INTERRUPTED
    except JobFailed as failure:
        return failure.status
    for row in merged(rows):
        report.take(row)
    report.finish()
    return 0


def _measure(
    arguments: argparse.Namespace, subject: Subject, names: Sequence[str], take: Callable[[Event], None]
) -> int:
    """Measure on this rank; rank 0 hands on what there is to tell. Returns the exit status."""
    _prepare(waits_in_mpi=subject is not step.SUBJECT or "horovod" in map(subject.job_of, names))
    described = False
    try:
        for event in subject.measure(arguments, names):
            if world.rank() == 0:
                if not described:
                    take(describe())
                    described = True
                take(event)
    except CollectiveError as error:
        print(f"collective bench: {error}", file=sys.stderr, flush=True)
        if world.is_initialized():
            world.backend().abort(ERROR_STATUS)  # the others may be waiting for this rank
        return ERROR_STATUS
    return 0


def _prepare(waits_in_mpi: bool) -> None:
    """Set what libraries read when they start; what the user has set stays."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if waits_in_mpi:
        # Open MPI spins while it waits. Where ranks and their threads fill the cores, that takes the core from the one
        # who is waited for, and MPI and Horovod lose by it what they need not. But then it yields whenever it is only
        # asked, too, and that costs ours a millisecond or more beside threads that compute.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


def _contenders(subject: Subject, arguments: argparse.Namespace) -> list[str]:
    """The names of those that take part, ours first."""
    ours, *others = subject.contenders
    if arguments.beside is None:
        return [name for name in subject.usual if _is_installed(subject.contenders[name])]
    asked_for = [name.strip() for name in arguments.beside.split(",") if name.strip()]
    for name in asked_for:
        if name not in others:
            raise ArgumentError(f"--beside takes {', '.join(others)}", received=f"--beside {name}")
        if not _is_installed(subject.contenders[name]):
            raise ArgumentError(f"{name} needs {subject.contenders[name]}", received="not installed")
    return list(dict.fromkeys([ours, *asked_for]))


def _jobs(subject: Subject, names: Sequence[str]) -> list[list[str]]:
    """Those that share processes, together."""
    jobs: dict[str, list[str]] = {}
    for name in names:
        jobs.setdefault(subject.job_of(name), []).append(name)
    return list(jobs.values())


def _check_plot(arguments: argparse.Namespace) -> None:
    if arguments.plot and arguments.subject != "allreduce":
        raise ArgumentError("--plot draws all-reduce", received=f"{arguments.subject} --plot {arguments.plot}")
    if arguments.plot and not _is_installed("matplotlib"):
        raise ArgumentError("--plot needs matplotlib", received="not installed", fix="pip install matplotlib")


def _is_installed(package: str) -> bool:
    return not package or importlib.util.find_spec(package) is not None
