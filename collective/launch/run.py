"""``collective run``: start a program on many processes, with the launcher of the MPI that its Python has."""

from __future__ import annotations

import argparse
import functools
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from collective import launched
from collective.errors import LaunchError
from collective.launch import dialects, discovery, environment, hostfile, library, machines
from collective.launch.attempt import Attempt, address
from collective.launch.cooldown import Cooldown
from collective.launch.fleet import Fleet, Sizes
from collective.launch.memory import Memory
from collective.launch.plan import Plan, place
from collective.launch.supervisor import supervise
from collective.settings import from_environment

# What a message carries beside its segment: the MPI's own header, and a little.
HEADER_BYTES = 4096
# Host files that a cluster has already set, as Kubernetes' MPI operator does; the MPIs read them by themselves.
DEFAULT_HOST_FILES = (
    "OMPI_MCA_orte_default_hostfile",
    "PRTE_MCA_prte_default_hostfile",
    "I_MPI_HYDRA_HOST_FILE",
    "HYDRA_HOST_FILE",
)
# Tell the ranks of --elastic (``Settings.elastic``), and with how many they may go on (``min_ranks``).
ELASTIC, FEWEST = "COLLECTIVE_ELASTIC", "COLLECTIVE_MIN_RANKS"
# How often a job with a discovery script is started again unless the user says otherwise.
RESTARTS_WITH_DISCOVERY = 10
# More than any job has.
MOST_RANKS = 2**20
EXAMPLE = "collective run -np 4 python train.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``collective run``."""
    parser.usage = "collective run -np N [-H HOST:N,... | --hostfile FILE] [options] [--] COMMAND ..."
    parser.add_argument("-np", "-n", dest="ranks", metavar="N", help="number of processes")
    parser.add_argument("-H", "--hosts", metavar="HOST:N,...", help="hosts and their slots; default: this machine")
    parser.add_argument("--hostfile", type=Path, metavar="FILE", help="hosts and their slots, in any MPI's notation")
    parser.add_argument("--oversubscribe", action="store_true", help="allow more ranks than the hosts have slots")
    parser.add_argument(
        *("-x", "--env"),
        action="append",
        default=[],
        dest="variables",
        metavar="NAME[=VALUE]",
        help="pass an environment variable to all ranks (COLLECTIVE_*, PYTHON*, OMP_* and their like go by themselves)",
    )
    parser.add_argument(
        "--interface", default="", metavar="NET", help="network to use: eth0, or 10.0.0.0/24 (Open MPI)"
    )
    parser.add_argument(
        "--launch-agent", default="", metavar="PATH", help="program to start ranks with, in place of ssh"
    )
    parser.add_argument(
        "--mpi-args", default="", metavar="ARGS", help='for the MPI\'s launcher, as in --mpi-args="-v --tag-output"'
    )
    parser.add_argument(
        *("--restarts", "--reset-limit"),
        metavar="N",
        help=f"start the job again if it fails, at most N times, on the hosts that answer (default: 0, or "
        f"{RESTARTS_WITH_DISCOVERY} with a discovery script)",
    )
    _add_elastic_arguments(parser)
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="let the ranks that are left go on when one has died: with another in its place, or without one as long "
        "as there are --min-np (Open MPI 5)",
    )
    parser.add_argument(
        "--report",
        default="",
        metavar="FILE",
        help="say there, as JSON, how the job ended and why (default: a temporary file, if it fails)",
    )
    parser.add_argument("--verbose", action="store_true", help="print the launcher's command line, then run it")
    parser.add_argument("--dry-run", action="store_true", help="print the launcher's command line and stop")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def _add_elastic_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options, by Horovod's names, of jobs whose hosts come and go."""
    parser.add_argument(
        "--host-discovery-script",
        metavar="PATH",
        help="a program that prints the hosts there are now, as lines of HOST:SLOTS or HOST; asked every second",
    )
    parser.add_argument(
        *("--min-np", "--min-num-proc"),
        metavar="N",
        help="fewest processes of a restart (default: 1, or -np with a discovery script)",
    )
    parser.add_argument(
        *("--max-np", "--max-num-proc"),
        metavar="N",
        help="most processes (default: -np, or as many as there are slots with a discovery script)",
    )
    parser.add_argument(
        *("--slots", "--slots-per-host"),
        default="1",
        metavar="N",
        help="slots of a host that the discovery script prints without a number (default: 1)",
    )
    parser.add_argument(
        "--elastic-timeout",
        default="600",
        metavar="SECONDS",
        help="how long a start or restart waits for hosts (default: 600)",
    )
    parser.add_argument(
        "--blacklist-cooldown-range",
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="leave a host out on which the job has failed: LOW seconds, then twice as long each time, at most HIGH",
    )


def run(arguments: argparse.Namespace) -> int:
    """Start the job and watch it until its end, as often as ``--restarts`` allows; returns the last exit status."""
    asked_for = environment.assigned(arguments.variables, os.environ)
    variables = {**os.environ, **asked_for}
    fleet = _fleet(arguments, variables)
    default = RESTARTS_WITH_DISCOVERY if arguments.host_discovery_script else 0
    restarts = _whole_number("--restarts", arguments.restarts or str(default), least=0)
    if arguments.dry_run:
        _attempt(arguments, {}, *fleet.gather(again=False))
        return 0
    scheduled = machines.allocated(variables) and not fleet.is_known
    memory = Memory(fleet.used, arguments.launch_agent, keeps=(restarts > 0 or fleet.is_discovered) and not scheduled)
    return supervise(functools.partial(_attempt, arguments), fleet, restarts, memory, arguments.report)


def _fleet(arguments: argparse.Namespace, variables: Mapping[str, str]) -> Fleet:
    """Where the job may run, and how large it may be."""
    ranks, script = _ranks(arguments.ranks), arguments.host_discovery_script
    fewest = _whole_number("--min-np", arguments.min_np or (str(ranks) if script else "1"), least=1)
    most = _whole_number("--max-np", arguments.max_np or (str(MOST_RANKS) if script else str(ranks)), least=1)
    if not fewest <= ranks <= most:
        received = f"--min-np {fewest} -np {ranks} --max-np {most}"
        raise LaunchError("-np lies between --min-np and --max-np", received=received)
    seconds = _whole_number("--elastic-timeout", arguments.elastic_timeout, least=0)
    sizes = Sizes(ranks, fewest, most, seconds, arguments.oversubscribe)
    low, high = (
        _whole_number("--blacklist-cooldown-range", text, least=1)
        for text in arguments.blacklist_cooldown_range or ("1", "1")
    )
    if low > high:
        raise LaunchError("--blacklist-cooldown-range takes LOW, then HIGH", received=f"{low} {high}")
    cooldown = Cooldown(low, high) if arguments.blacklist_cooldown_range else Cooldown()
    named = () if script else _hosts(arguments, variables)
    listed = _discovery(arguments, script) if script else (lambda: named) if named else None
    return Fleet(listed, sizes, arguments.launch_agent, cooldown, bool(script))


def _discovery(arguments: argparse.Namespace, script: str) -> Callable[[], tuple[hostfile.Host, ...]]:
    if arguments.hosts is not None or arguments.hostfile is not None:
        raise LaunchError(
            "the hosts come from -H, from --hostfile, or from --host-discovery-script",
            received=f"--host-discovery-script {script} and one of the others",
            fix="Leave one of them out",
        )
    program = shutil.which(script)
    if program is None:
        raise LaunchError("--host-discovery-script is a program", received=f"--host-discovery-script {script}")
    slots = _whole_number("--slots", arguments.slots, least=1)
    return functools.partial(discovery.ask, os.path.abspath(program), slots)


def _attempt(
    arguments: argparse.Namespace, variables: Mapping[str, str], ranks: int, named: tuple[hostfile.Host, ...]
) -> Attempt:
    """Plan one start of the job.

    Args:
        arguments: What the user asked for.
        variables: Variables for the ranks beside the user's.
        ranks: Their number.
        named: Hosts that have room for them; none: this machine, or a scheduler's choice.
    """
    asked_for = environment.assigned(arguments.variables, os.environ)
    theirs = {**os.environ, **asked_for, **variables, **_in_place(arguments)}
    plan = _plan(arguments, theirs, asked_for, ranks, named)
    program = plan.command[0]
    line = dialects.build(plan, library.find(program if _is_python(program) else sys.executable))
    defaults = {name: value for name, value in line.environment.items() if name not in theirs}
    if arguments.verbose or arguments.dry_run:
        # Only values chosen here are shown: the user's own may be secrets.
        shown = [f"{name}={value}" for name, value in defaults.items()]
        text = shlex.join(["env", *shown, *line.arguments])
        print(text, file=sys.stdout if arguments.dry_run else sys.stderr, flush=True)
    where = address(plan.remote, plan.head, plan.scheduled)
    forwarded = (*plan.forward, *line.environment)
    return Attempt(line, theirs | defaults, plan.ranks, where, from_environment(theirs), forwarded, plan.hosts)


def _in_place(arguments: argparse.Namespace) -> dict[str, str]:
    """What the ranks have to know to go on when one has died: lost ones are replaced unless the user allows fewer."""
    fewest = {FEWEST: arguments.min_np} if arguments.min_np else {}
    return {ELASTIC: "1", **fewest} if arguments.elastic else {}


def _plan(
    arguments: argparse.Namespace,
    variables: Mapping[str, str],
    asked_for: Iterable[str],
    ranks: int,
    named: tuple[hostfile.Host, ...],
) -> Plan:
    """Check what the user asked for against this machine; ``variables`` includes the user's ``-x``, ``asked_for``."""
    above = launched.detect(variables)
    if above and above.size > 1:
        raise LaunchError(
            "a job is started once",
            received=f"'collective run' inside a job of {above.size} processes, started by {above.launcher.name}",
            fix="Leave one of the two launchers out",
        )
    command = _command(arguments.command)
    allocated = machines.allocated(variables)
    hosts = place(ranks, named, arguments.oversubscribe) if named else ()
    remote = not all(machines.is_local(host.name) for host in hosts)
    if arguments.launch_agent and not shutil.which(arguments.launch_agent):
        raise LaunchError("--launch-agent is a program", received=f"--launch-agent {arguments.launch_agent}")
    if remote and not arguments.launch_agent and not allocated:
        machines.check(hosts)
    # The other hosts are taken to be like this one; a scheduler has its own count of cores.
    cores, most = machines.cores(), max((host.slots for host in hosts), default=ranks)
    scheduled = allocated and not hosts
    head = machines.address_towards(hosts) if remote else ""
    return Plan(
        ranks=ranks,
        command=command,
        hosts=hosts,
        remote=remote,
        head=head,
        head_interface=machines.interface_of(head) if head else "",
        scheduled=scheduled,
        forward=environment.forwarded(variables, asked_for),
        threads=0 if scheduled else max(1, cores // most),
        crowded=not scheduled and most > cores,
        oversubscribe=arguments.oversubscribe,
        eager_bytes=from_environment(variables).segment_bytes + HEADER_BYTES,
        infiniband=machines.has_infiniband(),
        launch_agent=arguments.launch_agent and os.path.abspath(shutil.which(arguments.launch_agent) or ""),
        interface=arguments.interface,
        mpi_args=_words(arguments.mpi_args),
        as_root=hasattr(os, "geteuid") and os.geteuid() == 0,
        elastic=arguments.elastic,
    )


def _whole_number(option: str, text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise LaunchError(f"{option} takes a whole number from {least}", received=f"{option} {text}")
    return int(text)


def _ranks(text: str | None) -> int:
    if text is None or not (text.isascii() and text.isdigit() and int(text) > 0):
        raise LaunchError(
            "-np N says how many processes to start, a whole number from 1",
            received="no -np" if text is None else f"-np {text}",
        )
    return int(text)


def _hosts(arguments: argparse.Namespace, variables: Mapping[str, str]) -> tuple[hostfile.Host, ...]:
    if arguments.hosts is not None and arguments.hostfile is not None:
        raise LaunchError(
            "the hosts come from -H or from --hostfile",
            received=f"-H {arguments.hosts} --hostfile {arguments.hostfile}",
            fix="Leave one of them out",
        )
    if arguments.hostfile is not None:
        return hostfile.read(arguments.hostfile)
    if arguments.hosts is not None:
        return hostfile.parse_list(arguments.hosts)
    default = next((variables[name] for name in DEFAULT_HOST_FILES if variables.get(name)), "")
    return hostfile.read(Path(default)) if default else ()


def _command(words: list[str]) -> tuple[str, ...]:
    """Find the job's command; a bare ``python`` is the one that runs this, so that the ranks see the same packages."""
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        raise LaunchError("the command to run follows the options", received="no command", fix=EXAMPLE)
    if words[0] in ("python", "python3"):
        return (sys.executable, *words[1:])
    program = shutil.which(words[0])
    if program is None:
        fix = f"Put python before it: {EXAMPLE}" if words[0].endswith(".py") else ""
        raise LaunchError("the command is a program on PATH, or the path of one", received=words[0], fix=fix)
    return (os.path.abspath(program), *words[1:])


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise LaunchError("--mpi-args is quoted as in a shell", received=f"{text} ({error})") from None


def _is_python(program: str) -> bool:
    return re.fullmatch(r"python[0-9.]*", os.path.basename(program)) is not None
