"""A failing rank ends the job: non-zero, within 5 seconds, with rank and cause on stderr."""

import json
import os
import subprocess
import sys
import time

import pytest
from jobs import ROOT, run, run_job

PROLOGUE = "import sys, os, time, numpy as np, collective as c; c.init(); r = c.rank()\nc.allreduce(np.ones(3))\n"

CASES = {
    "exception while others wait": (
        "if r == 1: raise ValueError('bad data')\nc.allreduce(np.ones(3))",
        ["rank 1 of 3", "uncaught ValueError: bad data"],
    ),
    "exception while others compute": (
        "if r == 1: raise ValueError('bad data')\ntime.sleep(60)",
        ["rank 1 of 3", "uncaught ValueError: bad data"],
    ),
    "exception with a long text": ("if r == 1: raise ValueError('x' * 3_000_000)\ntime.sleep(60)", ["rank 1 of 3"]),
    "exception on all": ("raise KeyError('lost')", ["uncaught KeyError: 'lost'"]),
    "early end": ("if r == 1: sys.exit(0)\nc.allreduce(np.ones(3))", ["rank 1: shutdown", "ranks 0, 2: allreduce"]),
    "early end with a status": ("if r == 1: sys.exit(3)\nc.allreduce(np.ones(3))", ["rank 1: shutdown"]),
    "one operation more": ("if r == 1: c.barrier()", ["ranks 0, 2: shutdown; rank 1: barrier"]),
    "mismatch": ("c.allreduce(np.ones(3 + (r == 2)))", ["ranks 0, 1: allreduce", "float64[4]"]),
    "object array": ("c.allreduce(np.array([{}]))", ["arrays are of numbers or bool", "dtype=object"]),
    "root out of range": ("c.broadcast(np.ones(2), 3)", ["the root is a rank from 0 to 2", "root_rank=3"]),
    "killed": ("if r == 1: os.kill(os.getpid(), 9)\nc.allreduce(np.ones(3))", ["rank 1"]),
    "crash": (
        "if r == 1: import ctypes; ctypes.string_at(0)\nc.allreduce(np.ones(3))",
        ["in string_at"],
    ),
    "exit without a word": ("if r == 1: os._exit(7)\nc.allreduce(np.ones(3))", ["Exit code:    7"]),
}

# Which rank is to blame, where it is one's fault alone.
REPORTED = {
    "exception while others wait": 1,
    "exception while others compute": 1,
    "exception with a long text": 1,
    "early end": 1,
    "early end with a status": 1,
    "killed": 1,
    "crash": 1,
    "exit without a word": 1,
}


@pytest.mark.parametrize("case", CASES)
def test_the_job_ends_and_says_why(case, tmp_path):
    code, expected = CASES[case]
    report = tmp_path / "report.json"
    marked = PROLOGUE + "if r == 0: print('started', time.time(), flush=True)\n" + code
    result = run_job(3, sys.executable, "-c", marked, timeout=60, options=("--report", str(report)))
    ended = time.time()
    assert result.returncode != 0
    started = float(result.stdout.split("started")[1].split()[0])
    assert ended - started < 5
    for text in expected:
        assert text in result.stderr + result.stdout
    (told,) = json.loads(report.read_text())["attempts"]
    assert told["status"] == result.returncode
    assert told["host"] == os.uname().nodename
    assert told["process"] > 0
    assert told["rank"] == REPORTED.get(case, told["rank"])
    assert f"rank {told['rank']} on host {told['host']}" in result.stderr
    if case.startswith("exception") and "long" not in case:
        assert told["traceback"].endswith(told["cause"].removeprefix("uncaught ") + "\n")
    if case == "killed":
        assert told["cause"] == "ended by SIGKILL"
    assert told["memory_high_water"] > 2**20


def test_a_job_that_goes_well_ends_well_and_says_nothing(tmp_path):
    report = tmp_path / "report.json"
    result = run_job(3, sys.executable, "-c", PROLOGUE + "print('rank', r)", options=("--report", str(report)))
    told = json.loads(report.read_text())
    assert told["status"] == 0
    assert [(attempt["cause"], attempt["rank"]) for attempt in told["attempts"]] == [("", None)]
    assert sorted(other["rank"] for other in told["attempts"][0]["others"]) == [0, 1, 2]
    assert result.returncode == 0
    assert sorted(result.stdout.split("\n")) == ["", "rank 0", "rank 1", "rank 2"]
    assert result.stderr == ""


def test_an_exception_in_model_fit_ends_the_job(tmp_path):
    pytest.importorskip("keras", reason="Keras is not installed")
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    code = (
        "import keras, numpy as np, collective.keras as hvd; hvd.init()\n"
        "class Stop(keras.callbacks.Callback):\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        if hvd.rank() == 1 and batch == 3: raise RuntimeError('disk full')\n"
        "m = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])\n"
        "m.compile(hvd.DistributedOptimizer(keras.optimizers.SGD()), 'mse')\n"
        "start = hvd.callbacks.BroadcastGlobalVariablesCallback(0)\n"
        "m.fit(np.ones((800, 3)), np.ones(800), batch_size=2, verbose=0, callbacks=[start, Stop()])\n"
    )
    report = tmp_path / "report.json"
    result = run_job(2, sys.executable, "-c", code, options=("--report", str(report)))
    (told,) = json.loads(report.read_text())["attempts"]
    assert (told["rank"], told["step"]) == (1, 4)
    assert result.returncode != 0
    assert "rank 1 of 2" in result.stderr
    assert "uncaught RuntimeError: disk full" in result.stderr


def test_a_stalled_rank_is_reported_by_those_that_wait():
    code = PROLOGUE + "if r == 1: time.sleep(2)\nc.allreduce(np.ones(3), name='late one')"
    result = run_job(2, sys.executable, "-c", code, COLLECTIVE_STALL_SECONDS="0.5")
    assert result.returncode == 0
    assert "rank 0 of 2: WARNING: allreduce 'late one' of float64[3] Average has waited" in result.stderr
    assert "rank 1 of 2" not in result.stderr


def test_a_rank_that_is_late_is_named_with_where_it_is():
    code = PROLOGUE + "def load(): time.sleep(6)\nif r == 1: load()\nc.allreduce(np.ones(3), name='late one')"
    result = run_job(2, sys.executable, "-c", code, COLLECTIVE_STALL_SECONDS="1")
    assert result.returncode == 0
    assert "collective run: rank 1 on host " in result.stderr
    assert "is late: rank 0 on host" in result.stderr
    assert "in allreduce 'late one' of float64[3]" in result.stderr
    assert "in load" in result.stderr.split("It is at:")[1]


def test_a_stopped_rank_is_named_as_such_and_is_to_blame_when_the_others_give_up(tmp_path):
    code = PROLOGUE + "c.report_step(17)\nif r == 1: time.sleep(1.5); os.kill(os.getpid(), 19)\nc.barrier()"
    report = tmp_path / "report.json"
    limits = {"COLLECTIVE_STALL_SECONDS": "2", "COLLECTIVE_TIMEOUT_SECONDS": "9"}
    began = time.monotonic()
    result = run_job(3, sys.executable, "-c", code, options=("--report", str(report)), **limits)
    assert result.returncode != 0
    assert time.monotonic() - began < 30
    assert "its process is stopped" in result.stderr
    (told,) = json.loads(report.read_text())["attempts"]
    assert (told["rank"], told["step"]) == (1, 17)
    assert "given up waiting for it" in told["cause"]
    assert {other["rank"] for other in told["others"]} == {0, 2}


def test_a_job_that_is_told_to_stop_ends_also_when_a_rank_does_not_react(tmp_path):
    code = (
        PROLOGUE
        + f"open(r'{tmp_path}/' + str(os.getpid()), 'w').close()\nif r == 1: os.kill(os.getpid(), 19)\nc.barrier()"
    )
    command = [sys.executable, "-m", "collective", "run", "-np", "2", "--", sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as job:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2, 60)
        job.terminate()
        assert job.wait(30) != 0
    wait_for(lambda: not any(os.path.exists(f"/proc/{path.name}") for path in tmp_path.iterdir()), 5)


def test_the_death_of_a_rank_is_seen_although_what_it_has_forked_lives_on(tmp_path):
    code = PROLOGUE + (
        "if r == 1 and os.fork() == 0: time.sleep(20); os._exit(0)\nif r == 1: os.kill(os.getpid(), 9)\nc.barrier()\n"
    )
    report = tmp_path / "report.json"
    result = run_job(3, sys.executable, "-c", code, options=("--report", str(report)))
    assert result.returncode != 0
    (told,) = json.loads(report.read_text())["attempts"]
    # Open MPI's launcher waits for the child, which has the rank's output.
    assert told["rank"] == 1
    assert told["cause"].startswith("ended")


def test_ranks_end_with_the_supervisor_that_somebody_has_killed(tmp_path):
    code = PROLOGUE + f"open(r'{tmp_path}/' + str(os.getpid()), 'w').close()\ntime.sleep(100)"
    command = [sys.executable, "-m", "collective", "run", "-np", "2", "--", sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2, 60)
        job.kill()
    wait_for(lambda: not any(os.path.exists(f"/proc/{path.name}") for path in tmp_path.iterdir()), 10)


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_rank_that_never_calls_init_is_missed():
    early = "if os.environ.get('OMPI_COMM_WORLD_RANK') == '1': time.sleep(3); sys.exit(3)"
    code = f"import collective as c, sys, os, time\n{early}\nc.init()"
    result = run_job(2, sys.executable, "-c", code)
    assert result.returncode != 0
    assert "process 1 of 2 never came to init()" in result.stderr


def as_if_launched(**environment):
    """Run a process that believes a launcher has started it."""
    code = "import collective; collective.init(); print('size', collective.size())"
    return run([sys.executable, "-c", code], 60, PYTHONPATH=str(ROOT), **environment)


@pytest.mark.parametrize(
    ("environment", "texts"),
    [
        ({"COLLECTIVE_BACKEND": "solo", "PMI_SIZE": "4"}, ["the solo backend is one process", "PMI_SIZE=4"]),
        ({"COLLECTIVE_BACKEND": "mpj"}, ["backend is one of mpi, horovod, solo", "Did you mean mpi?"]),
        ({"COLLECTIVE_ALGORITHM": "rign"}, ["algorithm is one of ring, tree", "Did you mean ring?"]),
        ({"COLLECTIVE_SEGMENTS": "4"}, ["a setting is one of COLLECTIVE_ALGORITHM", "COLLECTIVE_SEGMENT_BYTES"]),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"},
            ["srun", "size=1", "process 2 of 4"],
        ),
    ],
)
def test_a_wrong_start_is_refused_before_anything_runs(environment, texts):
    result = as_if_launched(**environment)
    assert result.returncode != 0
    for text in texts:
        assert text in result.stderr


def test_the_launcher_of_another_mpi_is_refused():
    vendor = run([sys.executable, "-c", "import mpi4py; mpi4py.rc.initialize = False\n"
                  "from mpi4py import MPI; print(MPI.get_vendor()[0])"], 60).stdout.strip()  # fmt: skip
    foreign = {"PMI_SIZE": "2", "PMI_RANK": "1"} if vendor == "Open MPI" else {"OMPI_COMM_WORLD_SIZE": "2"}
    result = as_if_launched(**foreign)
    assert result.returncode != 0
    assert "the launcher belongs to the MPI library that mpi4py loads" in result.stderr
    assert vendor in result.stderr
