"""Thread levels, containers, ranks that stop: a message and the slower path or an error, never a hang."""

import os
import shutil
import sys
import time

import pytest
from jobs import run, run_job

CORES = len(os.sched_getaffinity(0))
PROGRAM = """
import sys, os, signal, threading, time, numpy as np, mpi4py
level, what = sys.argv[1:]
if level: mpi4py.rc.thread_level = level; from mpi4py import MPI
import collective as c
c.init(); n, r = c.size(), c.rank()
def right():
    for size in (1, 5000, 500_000):
        assert (c.allreduce(np.full(size, r), c.Sum) == n * (n - 1) / 2).all()
        assert (c.allreduce_async(np.full(size, r), c.Sum, name="later").wait() == n * (n - 1) / 2).all()
right()
exec(what)
print("right")
"""


def job(what="", level="", ranks=2, options=(), before=(), **environment):
    command = [*before, sys.executable, "-c", PROGRAM, level, what]
    return run_job(ranks, *command, timeout=60, options=options, **environment)


def test_mpi_started_for_the_main_thread_only_is_refused_with_what_to_do():
    result = job(level="funneled")
    assert result.returncode != 0
    assert "MPI allows calls from any thread of a process. Received: MPI_THREAD_FUNNELED (Open MPI" in result.stderr
    assert "Call collective.init() before MPI is started" in result.stderr


def test_mpi_started_for_one_thread_at_a_time_works_and_says_what_to_avoid():
    result = job(level="serialized")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right") == 2
    assert result.stderr.count("don't call MPI yourself while operations are under way") == 2


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_ranks_of_one_host_that_share_no_memory_go_on_by_messages():
    """As in containers with a /dev/shm of their own each."""
    own = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh")
    result = job(before=own)
    if "Operation not permitted" in result.stderr:
        pytest.skip("a /dev/shm of one's own takes root")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right") == 2
    assert "rank 1 can't open what rank 0 made" in result.stderr
    assert result.stderr.count("WARNING") == 1


def test_a_rank_that_stops_is_named_after_the_time_allowed():
    what = "if r == 1: time.sleep(30)\nc.allreduce(np.ones(1000), name='gradient')"
    started = time.time()
    result = job(what, COLLECTIVE_TIMEOUT_SECONDS="2", COLLECTIVE_STALL_SECONDS="1")
    assert result.returncode != 0
    assert time.time() - started < 15
    assert "allreduce 'gradient' of float64[1000] Average has waited 1 s for rank 1 on this host" in result.stderr
    assert "every rank takes part within 2 s" in result.stderr


def test_an_operation_that_one_rank_never_calls_is_named_while_its_other_threads_live():
    """Another thread might still call it, so nobody can know at once that it never comes."""
    what = (
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()\n"
        "c.allreduce(np.ones(3), name='gradient of rank ' + str(r))"
    )
    result = job(what, COLLECTIVE_TIMEOUT_SECONDS="2", COLLECTIVE_STALL_SECONDS="1")
    assert result.returncode != 0
    assert "allreduce 'gradient of rank 0' of float64[3] Average (not called on rank 1)" in result.stderr
    assert "allreduce 'gradient of rank 1' of float64[3] Average (not called on rank 0)" in result.stderr


def test_an_idle_engine_takes_no_time():
    what = (
        "before = time.process_time(); time.sleep(2); spent = time.process_time() - before\n"
        "assert threading.active_count() >= 2, 'the engine has a thread'\n"
        "assert spent < 0.02, spent"
    )
    result = job(what)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("told", "threads", "spare"), [("", 2, True), ("not a number", 2, True), ("1", 0, False)])
def test_on_a_rank_that_is_bound_to_one_core_tensorflow_runs_two_operations_at_a_time(told, threads, spare):
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import collective.keras, tensorflow as tf\nfrom collective.tensorflow.threads import SPARE_THREAD\n"
        "print('told', tf.config.threading.get_inter_op_parallelism_threads(), SPARE_THREAD)"
    )
    result = run([sys.executable, "-c", code], timeout=60, TF_NUM_INTEROP_THREADS=told)
    assert f"told {threads} {spare}" in result.stdout, result.stderr


@pytest.mark.parametrize(
    ("ranks", "told", "threads"), [(1, "", 0), (100 * CORES, "", CORES > 1), (100 * CORES, "7", 0)]
)
def test_tensorflow_computes_on_a_ranks_share_of_the_cores(ranks, told, threads):
    """0: as TensorFlow itself chooses."""
    code = (
        "import collective.keras, tensorflow as tf\n"
        "print('told', tf.config.threading.get_intra_op_parallelism_threads())"
    )
    place = {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": str(ranks)}
    result = run([sys.executable, "-c", code], timeout=60, TF_NUM_INTRAOP_THREADS=told, **place)
    assert f"told {int(threads)}\n" in result.stdout, result.stderr
