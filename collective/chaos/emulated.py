"""Several hosts on one machine: network namespaces on a bridge, each link shaped, and a program in place of ssh.

By hand, as root: python -m collective.chaos.emulated 4:1 1gbit COMMAND... runs a command with 4 hosts of 1 slot each
(2:2: two of two; 2,1: one of two and one of one). {hosts}, {agent} and {network} in it become what launchers want.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collective.errors import LaunchError

# 198.18.0.0/15 is set aside for tests of networks, so it meets no real one.
NETWORKS = tuple(f"198.{second}.{third}" for second in (18, 19) for third in range(256))
BRIDGE = "clbr{}"
# What ssh gives a command: a fresh environment on a host with a name of its own, and with its share of the cores where
# there is one for each host. Options such as ssh's -x are dropped.
AGENT = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
number=${1##*.}
name={tag}h$number
shift
# ssh wouldn't reach a host whose link is down.
[ -n "$(ip -n "$name" link show dev eth0 up 2>&-)" ] || exit 255
[ {cores} -eq 0 ] || taskset -pc $(((number - 1) * {cores}))-$((number * {cores} - 1)) $$ > /dev/null
exec env -i HOME="$HOME" PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    ip netns exec "$name" unshare --uts sh -c 'hostname "$0"; exec sh -c "$*"' "$name" "$@"
"""


@dataclass(frozen=True)
class Hosts:
    """Emulated hosts that are up.

    Attributes:
        addresses: One IPv4 address a host.
        names: What ``hostname`` says on each.
        network: The network between them, as ``198.18.7.0/24``.
        agent: The program that starts commands there, called as ``agent ADDRESS COMMAND...``.
    """

    addresses: tuple[str, ...]
    names: tuple[str, ...]
    network: str
    agent: Path


def obstacle() -> str:
    """Say why hosts can't be emulated here; empty: they can."""
    missing = [tool for tool in ("ip", "tc", "unshare", "hostname", "taskset") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux, hostname)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    probe = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "type", "bridge"], capture_output=True, text=True, check=False
    )
    return f"this kernel makes no bridge in a network namespace: {probe.stderr.strip()}" if probe.returncode else ""


@contextlib.contextmanager
def hosts(count: int, folder: Path, rate: str = "1gbit") -> Iterator[Hosts]:
    """Bring ``count`` hosts up, each link shaped to ``rate``, and take them down again whatever happens.

    Several may be up at a time, of one process or many, none on another's network. Those of a killed one are removed.

    Raises:
        LaunchError: when all networks are taken.
    """
    _sweep()
    number = _bridge()
    network, bridge = NETWORKS[number], BRIDGE.format(number)
    # The process is in the names, so that others see when nobody is left who would remove them.
    tag = f"cl{os.getpid()}n{number}"
    up = Hosts(
        addresses=tuple(f"{network}.{k}" for k in range(1, count + 1)),
        names=tuple(f"{tag}h{k}" for k in range(1, count + 1)),
        network=f"{network}.0/24",
        agent=folder / "agent",
    )
    try:
        cores = (os.cpu_count() or 1) // count
        up.agent.write_text(AGENT.replace("{tag}", tag).replace("{cores}", str(cores)))
        up.agent.chmod(0o755)
        _sh(f"ip link set {bridge} up", f"ip addr add {network}.254/24 dev {bridge}")
        for name, address in zip(up.names, up.addresses, strict=True):
            _add(name, address, bridge, rate)
        yield up
    finally:
        for name in up.names:
            _remove(name)
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


def mend(name: str) -> None:
    """End what still runs on a host, and put its link up again."""
    _end_processes(name)
    _sh(f"ip -n {name} link set eth0 up")


def _bridge() -> int:
    """Take a network that nobody has, by adding its bridge: where two add the same, the kernel refuses one of them."""
    for number in range(len(NETWORKS)):
        command = ["ip", "link", "add", BRIDGE.format(number), "type", "bridge"]
        added = subprocess.run(command, capture_output=True, text=True, check=False)
        if added.returncode == 0:
            return number
    raise LaunchError(
        "emulated hosts need a bridge of their own",
        received=added.stderr.strip(),
        fix=f"End other emulations; up to {len(NETWORKS)} may be up",
    )


def _add(name: str, address: str, bridge: str, rate: str) -> None:
    shape = f"root tbf rate {rate} burst 256kb latency 50ms"
    _sh(
        f"ip netns add {name}",
        f"ip link add v{name} type veth peer name eth0 netns {name}",
        f"ip link set v{name} master {bridge} up",
        f"ip -n {name} link set lo up",
        f"ip -n {name} addr add {address}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"tc -n {name} qdisc add dev eth0 {shape}",
        f"tc qdisc add dev v{name} {shape}",
    )
    # CUBIC, Linux's default. A BBR that is set here would take the bursts that a shaped link lets through for the link
    # (26 Gbit/s, 11 us) and leave it idle now and then.
    with contextlib.suppress(subprocess.CalledProcessError):  # without CUBIC: what the machine has
        _sh(f"ip -n {name} route replace {address.rpartition('.')[0]}.0/24 dev eth0 src {address} congctl cubic")


def _end_processes(name: str) -> None:
    left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in left.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _remove(name: str) -> None:
    _end_processes(name)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    # A namespace outlives its name while a killed process ends; its link would outlive it too.
    subprocess.run(["ip", "link", "del", f"v{name}"], capture_output=True, check=False)


def _sweep() -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for match in re.finditer(r"^cl(\d+)n(\d+)h\d+", listed.stdout, re.MULTILINE):
        if not Path("/proc", match[1]).exists():
            _remove(match[0])
            subprocess.run(["ip", "link", "del", BRIDGE.format(match[2])], capture_output=True, check=False)


def _sh(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True, text=True)


def main(shape: str, rate: str, *command: str) -> int:
    """Run a command with hosts of ``shape`` up, and return its exit status."""
    count, _, slots = shape.partition(":")
    ranks = [int(slots)] * int(count) if slots else [int(word) for word in shape.split(",")]
    with tempfile.TemporaryDirectory() as folder, hosts(len(ranks), Path(folder), rate) as up:
        values = {
            "hosts": ",".join(f"{address}:{n}" for address, n in zip(up.addresses, ranks, strict=True)),
            "agent": up.agent,
            "network": up.network,
        }
        for name, value in values.items():
            command = tuple(word.replace(f"{{{name}}}", str(value)) for word in command)
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
