"""What can be known of hosts before a job starts: which are this machine, and which can't be found at all."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from collective.errors import LaunchError
from collective.launch.hostfile import Host

LOOKUPS_AT_ONCE = 32
SSH_SECONDS = 10
# Linux's SIOCGIFADDR.
INTERFACE_ADDRESS = 0x8915
INFINIBAND = Path("/sys/class/infiniband")
# Set inside an allocation; the MPI's launcher then asks the scheduler where the ranks go.
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_MCPU_HOSTS", "PE_HOSTFILE")


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allocated(environment: Mapping[str, str]) -> bool:
    """Tell whether a scheduler has given this process hosts to run on."""
    return any(name in environment for name in ALLOCATIONS)


def is_local(name: str) -> bool:
    """Tell whether the host ``name`` is this machine."""
    return name in ("localhost", "127.0.0.1", socket.gethostname(), socket.gethostname().partition(".")[0])


def address_towards(hosts: Sequence[Host]) -> str:
    """Find the IPv4 address by which the first of ``hosts`` that is another machine sees this one; empty: not found."""
    name = next((host.name for host in hosts if not is_local(host.name)), "")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket only asks for the route: nothing is sent, so any port will do.
            probe.connect((name, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def interface_of(address: str) -> str:
    """Name the network interface of this machine that has the IPv4 ``address``; empty: none is known."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, INTERFACE_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:
                continue
            # struct ifreq: 16 bytes of name, then a sockaddr_in, whose address follows its family and port.
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def has_infiniband() -> bool:
    """Tell whether this machine has InfiniBand or its like (RoCE, Omni-Path)."""
    return INFINIBAND.is_dir() and any(INFINIBAND.iterdir())


def check(hosts: Sequence[Host]) -> None:
    """See that ssh is there and that every host can be found.

    Raises:
        LaunchError: with all hosts that can't be found, and where they were named.
    """
    names = [host.name for host in hosts if not is_local(host.name)]
    if names and not shutil.which("ssh"):
        raise LaunchError(
            "ssh starts the ranks on other hosts",
            received="no ssh on PATH",
            fix="Install an ssh client, or name the program to use in its place by --launch-agent",
        )
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
        found = dict(zip(names, pool.map(_is_known, names), strict=True))
    _refuse(host for host in hosts if not found.get(host.name, True))


def answering(hosts: Sequence[Host], launch_agent: str) -> tuple[Host, ...]:
    """The hosts on which a command can be run, by ssh or the program in its place; this machine always is one.

    Cost: a command on every host, all at once; at most ``SSH_SECONDS``.
    """
    elsewhere = [host.name for host in hosts if not is_local(host.name)]
    answered = dict(zip(elsewhere, run_on(elsewhere, launch_agent, ["true"]), strict=True))
    return tuple(host for host in hosts if answered.get(host.name, True))


def run_on(names: Sequence[str], launch_agent: str, command: Sequence[str]) -> list[bool]:
    """Run a command on other hosts, by ssh or the program in its place; returns on which it ran well.

    Cost: all at once; at most ``SSH_SECONDS``.
    """
    agent = [launch_agent] if launch_agent else ["ssh", "-o", "BatchMode=yes", "--"]

    def ran_well(name: str) -> bool:
        try:
            # Whatever starts commands elsewhere gives them to a shell there.
            words = [*agent, name, shlex.join(command)]
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=SSH_SECONDS, check=False
            )
            return not done.returncode
        except (OSError, subprocess.TimeoutExpired):
            return False

    with ThreadPoolExecutor(LOOKUPS_AT_ONCE) as pool:
        return list(pool.map(ran_well, names))


def _refuse(unknown: Iterable[Host]) -> None:
    lines = [f"{host.name} ({host.where})" for host in unknown]
    if lines:
        raise LaunchError(
            "every host has a name that this machine can look up",
            received=", ".join(lines),
            fix="Correct the names, or wait until the hosts are up",
        )


def _is_known(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return _is_ssh_alias(name)
    return True


def _is_ssh_alias(name: str) -> bool:
    """Tell whether the user's ssh configuration knows how to reach ``name``, as an alias or by a jump."""
    try:
        command = ["ssh", "-G", "--", name]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SSH_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    settings = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines() if " " in line)
    return "proxyjump" in settings or settings.get("hostname", name).lower() != name.lower()
