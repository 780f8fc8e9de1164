"""The command line built for each MPI."""

import dataclasses

import pytest

from collective.errors import LaunchError
from collective.launch.dialects import build
from collective.launch.hostfile import Host
from collective.launch.library import Library
from collective.launch.plan import Plan

OPEN_MPI_4 = Library("Open MPI", (4, 1, 4), "/usr/lib/libmpi.so.40", "/usr/bin/mpirun")
OPEN_MPI_5 = Library("Open MPI", (5, 0, 11), "/v/lib/libmpi.so.40", "/v/bin/mpirun")
MPICH = Library("MPICH", (5, 0, 2), "/v/lib/libmpi.so.12", "/v/bin/mpiexec.hydra")
INTEL = Library("Intel MPI", (2021, 18, 1), "/v/lib/libmpi.so.12", "/v/bin/mpiexec.hydra")
ALL = [OPEN_MPI_4, OPEN_MPI_5, MPICH, INTEL]

HERE = Plan(ranks=4, command=("/py", "train.py", "-x"), threads=2)
AFAR = Plan(
    ranks=3,
    command=("/py", "train.py"),
    hosts=(Host("a", 2), Host("b", 1)),
    remote=True,
    head="10.0.0.9",
    head_interface="br0",
    forward=("MINE", "PATH"),
    threads=2,
    crowded=True,
    eager_bytes=1000,
    launch_agent="/agent",
    interface="eth0",
    mpi_args=("--extra", "two words"),
    as_root=True,
)


def line(plan, library):
    built = build(plan, library)
    return " ".join(built.arguments), built.environment


def test_open_mpi_5_here():
    arguments, environment = line(HERE, OPEN_MPI_5)
    assert arguments == "/v/bin/mpirun -np 4 --bind-to none --map-by slot:OVERSUBSCRIBE /py train.py -x"
    assert environment == {"OMP_NUM_THREADS": "2", "OMPI_MCA_opal_common_ucx_verbose": "-1"}


def test_open_mpi_5_afar():
    arguments, environment = line(AFAR, OPEN_MPI_5)
    assert arguments == (
        "/v/bin/mpirun -np 3 --host a:2,b:1 --bind-to none --map-by slot:OVERSUBSCRIBE"
        " --prtemca plm_ssh_agent /agent --prtemca prte_if_include eth0 --mca btl_tcp_if_include eth0"
        " --prefix /v -x MINE -x OMP_NUM_THREADS -x PATH --extra two words /py train.py"
    )
    assert environment == {
        "OMP_NUM_THREADS": "2",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "OMPI_MCA_btl_tcp_eager_limit": "1000",
        "OMPI_MCA_btl_tcp_rndv_eager_limit": "1000",
    }


def test_open_mpi_4_has_other_words_for_it():
    arguments, environment = line(AFAR, OPEN_MPI_4)
    assert arguments == (
        "/usr/bin/mpirun -np 3 --host a:2,b:1 --bind-to none --map-by slot --oversubscribe"
        " --mca plm_rsh_agent /agent --mca oob_tcp_if_include eth0 --mca btl_tcp_if_include eth0"
        " --prefix /usr -x MINE -x OMP_NUM_THREADS -x PATH --extra two words /py train.py"
    )
    assert environment == line(AFAR, OPEN_MPI_5)[1]


def test_mpich():
    assert line(HERE, MPICH)[0] == "/v/bin/mpiexec.hydra -n 4 /py train.py -x"
    arguments, environment = line(AFAR, MPICH)
    assert arguments == (
        "/v/bin/mpiexec.hydra -hosts a:2,b:1 -localhost 10.0.0.9 -launcher ssh -launcher-exec /agent"
        " -genvlist FI_TCP_IFACE,MINE,OMP_NUM_THREADS,PATH,UCX_NET_DEVICES --extra two words -n 3 /py train.py"
    )
    assert environment["UCX_NET_DEVICES"] == "eth0"
    assert list(environment)[-1] == "LAUNCHED_BY", "Hydra loses the last variable, so it must be one nobody needs"


def test_intel_mpi():
    assert line(HERE, INTEL) == (
        "/v/bin/mpiexec.hydra -n 4 /py train.py -x",
        {"OMP_NUM_THREADS": "2", "I_MPI_PIN": "0"},
    )
    arguments, environment = line(AFAR, INTEL)
    assert arguments == (
        "/v/bin/mpiexec.hydra -hosts a,a,b -ppn 1 -iface br0 -launcher ssh -launcher-exec /agent"
        " -genvlist FI_TCP_IFACE,I_MPI_PIN,I_MPI_WAIT_MODE,MINE,OMP_NUM_THREADS,PATH"
        " --extra two words -n 3 /py train.py"
    )
    assert environment == {"OMP_NUM_THREADS": "2", "I_MPI_PIN": "0", "I_MPI_WAIT_MODE": "1", "FI_TCP_IFACE": "eth0"}


@pytest.mark.parametrize("library", ALL, ids=lambda library: library.title)
def test_a_schedulers_allocation_is_left_to_the_launcher(library):
    plan = dataclasses.replace(HERE, scheduled=True, forward=("PATH",), threads=0)
    arguments, environment = line(plan, library)
    assert "host" not in arguments
    assert "versubscribe" not in arguments.lower()
    assert "PATH" in arguments
    assert "OMP_NUM_THREADS" not in environment


@pytest.mark.parametrize("library", [MPICH, INTEL], ids=lambda library: library.title)
def test_hydra_takes_a_network_by_name_only(library):
    with pytest.raises(LaunchError, match=r"--interface 10\.0\.0\.0/24"):
        build(dataclasses.replace(AFAR, interface="10.0.0.0/24"), library)


def test_ucx_keeps_its_voice_where_it_has_a_use():
    assert "OMPI_MCA_opal_common_ucx_verbose" not in line(dataclasses.replace(HERE, infiniband=True), OPEN_MPI_5)[1]
    assert "OMPI_MCA_opal_common_ucx_verbose" not in line(AFAR, OPEN_MPI_5)[1]


def test_an_elastic_job_asks_open_mpi_5_to_go_on_without_the_dead():
    elastic = dataclasses.replace(HERE, elastic=True)
    asked = "--with-ft ulfm --mca coll ^hcoll,portals4,han,adapt --mca coll_ftagree_agreement 1"
    arguments, environment = line(elastic, OPEN_MPI_5)
    assert asked in arguments
    assert environment["OMPI_MCA_btl_tcp_if_include"] == "127.0.0.0/8"
    assert "OMPI_MCA_btl_tcp_if_include" not in line(dataclasses.replace(AFAR, elastic=True), OPEN_MPI_5)[1]
    for library in (OPEN_MPI_4, MPICH, INTEL):
        assert line(elastic, library) == line(HERE, library)
