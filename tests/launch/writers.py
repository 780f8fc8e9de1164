"""Host files in each MPI's notation, for tests to read back and to start jobs from."""

from collections.abc import Iterable

from collective.launch.hostfile import Host


def write_slots(hosts: Iterable[Host]) -> str:
    """Write a host file for Open MPI: ``HOST slots=N [max-slots=M]``."""
    lines = (
        f"{host.name} slots={host.slots}" + (f" max-slots={host.max_slots}" if host.max_slots else "") for host in hosts
    )
    return "".join(f"{line}\n" for line in lines)


def write_colons(hosts: Iterable[Host]) -> str:
    """Write a host file for MPICH and Intel MPI: ``HOST:N``; these know no ``max-slots``."""
    return "".join(f"{host.name}:{host.slots}\n" for host in hosts)
