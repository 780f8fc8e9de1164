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
        use_mpi: What is done in any case.
        disable_cache: What is done in any case.
        min_num_proc, max_num_proc, slots, reset_limit, cooldown_range, host_discovery_script, min_np, max_np, use_gloo:
            For jobs that change their size or go by Gloo; refused.

    Returns:
        What the function returned, by rank.

    Raises:
        ArgumentError: a ValueError, for an argument that can't be followed.
        LaunchError: when the job can't start as asked.
        RankError: a RuntimeError, when the function raised an exception on a rank, which is its ``__cause__``; its text
            has that rank's traceback. The other ranks have been ended.
    """
    _refuse(
        min_num_proc=min_num_proc,
        max_num_proc=max_num_proc,
        slots=slots,
        reset_limit=reset_limit,
        cooldown_range=cooldown_range,
        host_discovery_script=host_discovery_script,
        min_np=min_np,
        max_np=max_np,
        use_gloo=use_gloo or None,
    )
    if use_mpi is False:
        raise ArgumentError("ranks talk over MPI", received="use_mpi=False", fix="Leave it out")
    if hosts is not None and hostfile is not None:
        raise ArgumentError("hosts or hostfile say where ranks run", received=f"hosts={hosts!r}, hostfile={hostfile!r}")
    if np is not None:
        warnings.warn("np= is deprecated: say num_proc=", DeprecationWarning, stacklevel=2)
        num_proc = np
    if network_interface:
        warnings.warn("network_interface= is deprecated: say network_interfaces=", DeprecationWarning, stacklevel=2)
    interfaces = ",".join(network_interfaces or ()) or network_interface
    options = {"--hosts": hosts, "--hostfile": hostfile, "--interface": interfaces, "--mpi-args": mpi_args}
    words = [f"{option}={value}" for option, value in options.items() if value]
    # Imported here because few programs call it, and importing the library is to stay light.
    from collective.launch.call import Job

    job = Job(
        ranks=num_proc,
        options=(*words, *(["--verbose"] if verbose else [])),
        hosts=hosts,
        hostfile=hostfile,
        start_seconds=start_timeout,
        output=output_filename,
        python=executable or sys.executable,
        ssh_port=ssh_port,
        ssh_key=ssh_identity_file,
    )
    return job.call(functools.partial(func, *args, **(kwargs or {})))


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ArgumentError(
                "a job of collective.run has the ranks it starts with, over MPI",
                received=f"{name}={value!r}",
                fix="Leave it out",
                operation="collective.run",
            )
