"""Where a rank stands: in the job, on its host, and across hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Topology:
    """The six numbers of a rank, as Horovod names them.

    Attributes:
        rank: Number of this process in the job, from 0.
        size: Number of processes in the job.
        local_rank: Number of this process among those on its host.
        local_size: Number of processes on its host.
        cross_rank: Number of this process's host among the hosts that have a process with this local rank.
        cross_size: Number of those hosts.
        members: For some ranks of a job, a process set: the number that each has in the job.
        homogeneous: Whether all hosts have the same number of processes.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    members: tuple[int, ...] | None = None
    homogeneous: bool = True

    @property
    def where(self) -> str:
        """The rank as errors name it."""
        if self.members is None:
            return f"rank {self.rank} of {self.size}"
        return f"rank {self.members[self.rank]} ({self.rank} of {self.size} in its process set)"


def from_hosts(rank: int, hosts: Sequence[str], members: Sequence[int] | None = None) -> Topology:
    """Work out the topology of ``rank`` from the host name of every rank (``hosts[r]`` is the host of rank r)."""
    local_ranks = [hosts[:r].count(host) for r, host in enumerate(hosts)]
    peers = [r for r, local in enumerate(local_ranks) if local == local_ranks[rank]]
    return Topology(
        rank=rank,
        size=len(hosts),
        local_rank=local_ranks[rank],
        local_size=list(hosts).count(hosts[rank]),
        cross_rank=peers.index(rank),
        cross_size=len(peers),
        members=None if members is None else tuple(members),
        homogeneous=len({list(hosts).count(host) for host in hosts}) == 1,
    )
