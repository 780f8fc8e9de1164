"""``collective.run``: run a Python function on many processes and return what it returned on each."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from collective.errors import ArgumentError


def run(
    func: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    num_proc: int = 1,
    min_num_proc: int | None = None,
    max_num_proc: int | None = None,
    slots: int | None = None,
    reset_limit: int | None = None,
    cooldown_range: Sequence[int] | None = None,
    hosts: str | None = None,
    hostfile: str | os.PathLike[str] | None = None,
    host_discovery_script: str | None = None,
    start_timeout: float | None = None,
    ssh_port: int | None = None,
    ssh_identity_file: str | None = None,
    disable_cache: bool | None = None,  # noqa: ARG001  # nothing about hosts is kept from one job to the next
    output_filename: str | None = None,
    verbose: bool | int | None = None,
    use_gloo: bool | None = None,
    use_mpi: bool | None = None,
    mpi_args: str | None = None,
    network_interface: str | None = None,
    network_interfaces: Sequence[str] | None = None,
    executable: str | None = None,
    np: int | None = None,
    min_np: int | None = None,
    max_np: int | None = None,
) -> list[Any]:
    """Run ``func(*args, **kwargs)`` on many processes, as ``collective run`` starts them.

    Function and results are pickled: by cloudpickle where it is installed, which takes functions from a notebook as
    well, else by pickle, which takes those that processes can import.

    Args:
        func: The function; it calls ``init`` itself.
        args: Its positional arguments, the same on all ranks.
        kwargs: Its keyword arguments.
        num_proc: Number of processes.
        min_num_proc: Fewest processes of a restart; None: ``num_proc`` with a discovery script, else 1.
        max_num_proc: Most processes; None: as many as there are slots with a discovery script, else ``num_proc``.
        slots: Slots of a host that the discovery script prints without a number; None: 1.
        reset_limit: How often a job that fails is started again; None: 10 times with a discovery script, else never.
        cooldown_range: For how many seconds a host is left out on which the job has failed, at first and at most.
        host_discovery_script: Program that prints the hosts there are now, as lines of ``HOST:SLOTS`` or ``HOST``.
        hosts: Hosts and their slots, ``a:2,b:2``; None: this machine.
        hostfile: A file of hosts and slots instead.
        start_timeout: Seconds within which the ranks have to be running; None: no limit.
        ssh_port: Port by which other hosts are reached.
        ssh_identity_file: Key by which they are reached.
        output_filename: Folder where each rank's output goes, to ``rank.N/stdout`` and ``rank.N/stderr``.
        verbose: Whether to print the launcher's command line.
        mpi_args: Further arguments for the MPI's launcher, quoted as in a shell.
        network_interface: As the next, separated by commas.
        network_interfaces: Network to use.
        executable: The ranks' Python; None: the one that runs this.
        np: An older name of ``num_proc``.
        min_np: An older name of ``min_num_proc``.
        max_np: An older name of ``max_num_proc``.
        use_mpi: What is done in any case.
        disable_cache: What is done in any case.
        use_gloo: For jobs that go by Gloo; refused.

    Returns:
        What the function returned, by rank; of a job that was started again, in its last start.

    Raises:
        ArgumentError: a ValueError, for an argument that can't be followed.
        LaunchError: when the job can't start as asked.
        RankError: a RuntimeError, when the function raised an exception on a rank, which is its ``__cause__``; its text
            has that rank's traceback. The other ranks have been ended.
    """
    if use_gloo or use_mpi is False:
        received = "use_gloo=True" if use_gloo else "use_mpi=False"
        raise ArgumentError("ranks talk over MPI", received=received, fix="Leave it out", operation="collective.run")
    _refuse_several(hosts=hosts, hostfile=hostfile, host_discovery_script=host_discovery_script)
    num_proc = _newer(np, "np", num_proc, "num_proc")
    min_num_proc = _newer(min_np, "min_np", min_num_proc, "min_num_proc")
    max_num_proc = _newer(max_np, "max_np", max_num_proc, "max_num_proc")
    network_interface = _newer(network_interface, "network_interface", None, "network_interfaces")
    interfaces = ",".join(network_interfaces or ()) or network_interface
    options = {
        "--hosts": hosts,
        "--hostfile": hostfile,
        "--interface": interfaces,
        "--mpi-args": mpi_args,
        "--host-discovery-script": host_discovery_script,
        "--min-np": min_num_proc,
        "--max-np": max_num_proc,
        "--slots": slots,
        "--restarts": reset_limit,
    }
    words = [f"{option}={value}" for option, value in options.items() if value not in (None, "")]
    if cooldown_range:
        words += ["--blacklist-cooldown-range", *map(str, cooldown_range)]
    # Imported here because few programs call it, and importing the library is to stay light.
    from collective.launch.call import Job

    job = Job(
        ranks=num_proc,
        options=(*words, *(["--verbose"] if verbose else [])),
        hosts=hosts,
        hostfile=hostfile,
        discovered=host_discovery_script is not None,
        start_seconds=start_timeout,
        output=output_filename,
        python=executable or sys.executable,
        ssh_port=ssh_port,
        ssh_key=ssh_identity_file,
    )
    return job.call(functools.partial(func, *args, **(kwargs or {})))


def _refuse_several(**places: Any) -> None:
    """Refuse more than one of the ways to say where ranks run."""
    given = [f"{name}={value!r}" for name, value in places.items() if value is not None]
    if len(given) > 1:
        raise ArgumentError(
            "hosts, hostfile or host_discovery_script say where ranks run",
            received=", ".join(given),
            operation="collective.run",
        )


def _newer(value: Any, name: str, other: Any, newer: str) -> Any:
    """The value of an argument that has an older name."""
    if value is None:
        return other
    warnings.warn(f"{name}= is deprecated: say {newer}=", DeprecationWarning, stacklevel=3)
    return value
