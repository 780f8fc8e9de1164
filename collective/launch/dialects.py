"""One function per MPI that turns a `Plan` into that MPI's command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from collective.errors import LaunchError
from collective.launch.library import Library
from collective.launch.plan import Plan


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line of an MPI's launcher.

    Attributes:
        arguments: The launcher and its arguments, then the job's command.
        environment: Variables for the launcher. They are defaults: what the user has set stays.
    """

    arguments: tuple[str, ...]
    environment: dict[str, str]


# The collective operations left out hang, or return garbage, once a rank has died; nor is the agreement that survives
# that every version's default.
FAULT_TOLERANCE = (
    *("--with-ft", "ulfm", "--mca", "coll", "^hcoll,portals4,han,adapt"),
    *("--mca", "coll_ftagree_agreement", "1"),
)


def build(plan: Plan, library: Library) -> Line:
    """Build the command line of ``plan`` for the launcher of ``library``.

    What an elastic job asks for only Open MPI has, from version 5 on; the ranks of others say so when they start.
    """
    return DIALECTS[library.vendor](plan, library)


def open_mpi(plan: Plan, library: Library) -> Line:
    """Open MPI: 5 and later start ranks through PRRTE, 4 through ORTE, which have other names for the same things."""
    prrte = library.version[0] >= 5
    daemon_parameter = "--prtemca" if prrte else "--mca"
    arguments = [library.launcher, "-np", str(plan.ranks)]
    if plan.hosts:
        arguments += ["--host", plan.host_list]
    # Binding, the default, would hold all threads of a rank on one core.
    arguments += ["--bind-to", "none"]
    if plan.oversubscribe or not plan.scheduled:
        arguments += ["--map-by", "slot:OVERSUBSCRIBE"] if prrte else ["--map-by", "slot", "--oversubscribe"]
    if plan.launch_agent:
        arguments += [daemon_parameter, "plm_ssh_agent" if prrte else "plm_rsh_agent", plan.launch_agent]
    if plan.interface:
        arguments += [daemon_parameter, "prte_if_include" if prrte else "oob_tcp_if_include", plan.interface]
        arguments += ["--mca", "btl_tcp_if_include", plan.interface]
    if plan.elastic and prrte:
        arguments += FAULT_TOLERANCE
    if plan.remote or plan.scheduled:
        arguments += ["--prefix", library.prefix]
        arguments += [word for name in _forwarded(plan, _threads(plan)) for word in ("-x", name)]
    variables = _threads(plan) | _open_mpi_environment(plan)
    if plan.elastic and prrte and not (plan.remote or plan.scheduled or plan.interface):
        # Ranks that are started later reach the others by TCP; networks other than this one may be gone by then.
        variables["OMPI_MCA_btl_tcp_if_include"] = "127.0.0.0/8"
    return Line((*arguments, *plan.mpi_args, *plan.command), variables)


def _open_mpi_environment(plan: Plan) -> dict[str, str]:
    """Open MPI's parameters as variables: it passes these to every rank, and a user's ``--mca`` wins over them."""
    variables: dict[str, str] = {}
    if plan.as_root:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if plan.crowded:
        # Open MPI compares ranks with slots, not with cores, before it lets waiting ranks give up their core.
        variables["OMPI_MCA_mpi_yield_when_idle"] = "1"
    if plan.remote or plan.scheduled:
        # Above the limit a message first asks its receiver, and that question queues behind the data already sent.
        limit = str(plan.eager_bytes)
        variables |= {"OMPI_MCA_btl_tcp_eager_limit": limit, "OMPI_MCA_btl_tcp_rndv_eager_limit": limit}
    elif not plan.infiniband:
        # Without InfiniBand, UCX calls it an error, on every rank, that it is of no use for one-sided communication.
        variables["OMPI_MCA_opal_common_ucx_verbose"] = "-1"
    return variables


def mpich(plan: Plan, library: Library) -> Line:
    """MPICH's Hydra: it neither binds nor minds oversubscription; places, variables and network are left to say."""
    variables = _threads(plan)
    if plan.interface:
        # One for each of the network layers that an MPICH may be built on.
        variables |= {"UCX_NET_DEVICES": _interface_name(plan), "FI_TCP_IFACE": _interface_name(plan)}
    places = ["-hosts", plan.host_list] if plan.hosts else []
    if plan.head:
        # The daemons call back by this machine's name otherwise, which many systems look up as 127.0.1.1.
        places += ["-localhost", plan.head]
    line = _hydra(plan, library, places, variables)
    # Of what -genvlist names, Hydra 5.0.2 loses the last variable of its own environment: let it lose this one.
    return dataclasses.replace(line, environment=line.environment | {"LAUNCHED_BY": "collective"})


def intel_mpi(plan: Plan, library: Library) -> Line:
    """Intel MPI: a Hydra that pins ranks unless told not to, and reads no slots in its list of hosts."""
    variables = _threads(plan) | {"I_MPI_PIN": "0"}
    if plan.crowded:
        variables["I_MPI_WAIT_MODE"] = "1"
    if plan.interface:
        variables["FI_TCP_IFACE"] = _interface_name(plan)
    places = []
    if plan.hosts:
        host_of_each_rank = (name for host in plan.hosts for name in [host.name] * host.slots)
        places += ["-hosts", ",".join(host_of_each_rank), "-ppn", "1"]
    if plan.head_interface:
        # As for MPICH; this Hydra heeds no -localhost.
        places += ["-iface", plan.head_interface]
    return _hydra(plan, library, places, variables)


def _hydra(plan: Plan, library: Library, places: list[str], variables: dict[str, str]) -> Line:
    arguments = [library.launcher, *places]
    if plan.launch_agent:
        arguments += ["-launcher", "ssh", "-launcher-exec", plan.launch_agent]
    if plan.remote or plan.scheduled:
        arguments += ["-genvlist", ",".join(_forwarded(plan, variables))]
    return Line((*arguments, *plan.mpi_args, "-n", str(plan.ranks), *plan.command), variables)


def _threads(plan: Plan) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(plan.threads)} if plan.threads else {}


def _forwarded(plan: Plan, chosen: dict[str, str]) -> list[str]:
    return sorted({*plan.forward, *chosen})


def _interface_name(plan: Plan) -> str:
    if "/" in plan.interface:
        raise LaunchError(
            "this MPI takes its network as an interface's name, such as eth0",
            received=f"--interface {plan.interface}",
            fix="Give the name the interface has on the hosts (see 'ip address')",
        )
    return plan.interface


# By the name mpi4py.MPI.get_vendor() says.
DIALECTS: dict[str, Callable[[Plan, Library], Line]] = {
    "Open MPI": open_mpi,
    "MPICH": mpich,
    "Intel MPI": intel_mpi,
}
