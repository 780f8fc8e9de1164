"""A job as the user asked for it, before any MPI's command line: how many ranks, where, with which environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from collective.errors import LaunchError
from collective.launch.hostfile import Host


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every MPI's dialect turns into its own command line.

    Attributes:
        ranks: Number of processes.
        command: The program and its arguments.
        hosts: Hosts with the ranks that each will run as ``slots``; empty: this machine, or the scheduler's allocation.
        remote: Whether a host is another machine than this one.
        head: This machine's address as the other hosts see it; empty: not known.
        head_interface: The network interface with that address; empty: not known.
        scheduled: Whether a scheduler's allocation says where the ranks go.
        forward: Names of the environment variables that remote ranks get.
        threads: Compute threads for each rank, unless the user says otherwise; 0: leave them alone.
        crowded: Whether a host has more ranks than cores.
        oversubscribe: Whether more ranks than slots are allowed.
        eager_bytes: Message size up to which a sender does not wait for its receiver.
        infiniband: Whether this machine has InfiniBand or its like.
        launch_agent: Program used in place of ssh; empty: the MPI's own.
        interface: Network to use, by interface name or address range (``10.0.0.0/24``); empty: the MPI's choice.
        mpi_args: Further arguments for the MPI's launcher.
        as_root: Whether the user is root.
        elastic: Whether ranks that are left when one has died are to go on (``--elastic``).
    """

    ranks: int
    command: tuple[str, ...]
    hosts: tuple[Host, ...] = ()
    remote: bool = False
    head: str = ""
    head_interface: str = ""
    scheduled: bool = False
    forward: tuple[str, ...] = ()
    threads: int = 0
    crowded: bool = False
    oversubscribe: bool = False
    eager_bytes: int = 0
    infiniband: bool = False
    launch_agent: str = ""
    interface: str = ""
    mpi_args: tuple[str, ...] = ()
    as_root: bool = False
    elastic: bool = False

    @property
    def host_list(self) -> str:
        """The hosts with their ranks as ``a:2,b:1``, which all but Intel MPI read."""
        return ",".join(f"{host.name}:{host.slots}" for host in self.hosts)


def place(ranks: int, hosts: Sequence[Host], oversubscribe: bool) -> tuple[Host, ...]:
    """Spread ``ranks`` over ``hosts``: each host's slots are filled in order, then all hosts in turn take one more.

    Args:
        ranks: Number of processes.
        hosts: The hosts the user named.
        oversubscribe: Whether a host may get more ranks than slots; ``max_slots`` holds in any case.

    Returns:
        The hosts that get ranks, with their number as ``slots``.

    Raises:
        LaunchError: if the hosts have too few slots.
    """
    limits = [(host.max_slots or ranks) if oversubscribe else host.slots for host in hosts]
    if sum(limits) < ranks:
        counts = ", ".join(f"{host.name}:{limit}" for host, limit in zip(hosts, limits, strict=True))
        raise LaunchError(
            f"the hosts take at most {sum(limits)} ranks, the sum of their {'max-slots' if oversubscribe else 'slots'}",
            received=f"-np {ranks} with {counts}",
            fix="Raise max-slots"
            if oversubscribe
            else "Name more slots, or allow more ranks than slots by --oversubscribe",
        )
    counts_by_host = [0] * len(hosts)
    left = ranks
    for index, host in enumerate(hosts):
        counts_by_host[index] = min(host.slots, left)
        left -= counts_by_host[index]
    while left:
        for index, limit in enumerate(limits):
            if left and counts_by_host[index] < limit:
                counts_by_host[index] += 1
                left -= 1
    placed = zip(hosts, counts_by_host, strict=True)
    return tuple(dataclasses.replace(host, slots=count) for host, count in placed if count)
