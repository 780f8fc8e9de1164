"""``collective run --restarts``: a job that fails goes on from its newest checkpoint and ends as one that didn't."""

import signal
import subprocess
import sys
import time

import pytest
from jobs import ROOT, launcher, run, run_job

TRAIN = """
import os, signal, sys, time, numpy as np, collective as c
from collective.checkpoint import Checkpoints

folder, fault, *moments = sys.argv[1:]
c.init()
checkpoints = Checkpoints(folder)
found = checkpoints.newest()
weights, start = (found.arrays["weights"], found.values["next"]) if found else (np.zeros(1000), 0)
if c.rank() == 0: print("from step", start, "on", c.size(), "ranks", flush=True)
for step in range(start, 40):
    gradient = np.random.default_rng([step, c.rank()]).normal(size=1000)
    weights += c.allreduce(gradient, c.Sum)
    if step % 5 == 4:
        checkpoints.save(step, {"weights": weights}, {"next": step + 1})
    if c.rank() == c.size() - 1 and str(step) in moments:
        once = os.path.join(folder, f"fault-{step}")
        if not os.path.exists(once):
            open(once, "w").close()
            if fault == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if fault == "raise": raise RuntimeError("disk full")
            if fault == "exit": os._exit(0)
            if fault == "daemon": os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)
if c.rank() == 0: print("weights", weights.tobytes().hex()[-64:], flush=True)
"""


@pytest.fixture
def train(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)

    def start(*words, options=(), fault="none", moments=(), folder="checkpoints", ranks=3):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "collective", "run", "-np", str(ranks), *options, "--", sys.executable]
        return run([*command, str(script), str(place), fault, *map(str, moments)], timeout=120)

    return start


def last_weights(job):
    return job.stdout.split("weights ")[1].split()[0]


@pytest.mark.parametrize("fault", ["kill", "raise", "exit"])
def test_a_job_that_fails_twice_ends_with_the_bits_of_one_that_does_not(train, fault):
    undisturbed = train(folder="undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    job = train(options=("--restarts", "3"), fault=fault, moments=(7, 31))
    assert job.returncode == 0, job.stderr
    assert last_weights(job) == last_weights(undisturbed)
    starts = [line for line in job.stdout.splitlines() if line.startswith("from step")]
    assert starts == [f"from step {step} on 3 ranks" for step in (0, 5, 30)]
    assert "restart 1 of 3, on 3 ranks" in job.stderr
    assert "restart 2 of 3, on 3 ranks" in job.stderr
    assert "restart 3" not in job.stderr


def test_a_job_that_fails_every_time_ends_with_its_status(train):
    job = train(options=("--restarts", "1"), fault="raise", moments=(2, 3), ranks=2)
    assert job.returncode != 0
    assert job.stderr.count("the job ended with status") == 2


def test_a_job_that_asks_for_other_hosts_without_there_being_any_has_failed():
    job = run_job(1, sys.executable, "-c", "raise SystemExit(75)", options=("--restarts", "1"), timeout=60)
    assert job.returncode == 75
    assert job.stderr.count("the job ended with status 75") == 2


def test_a_job_that_is_told_to_stop_is_not_started_again(tmp_path):
    code = "import collective as c, time; c.init(); print('up', flush=True); time.sleep(60)"
    command = [*launcher(2, "--restarts", "5"), sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as job:
        assert job.stdout.readline() == "up\n"
        began = time.monotonic()
        job.send_signal(signal.SIGTERM)
        _, errors = job.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert job.returncode == 128 + signal.SIGTERM
    assert "restart" not in errors


REFUSED = {
    "--restarts two": "--restarts takes a whole number from 0",
    "--reset-limit -1": "takes a whole number from 0",
    "--min-np 0": "--min-np takes a whole number from 1",
    "--min-np 3": "-np lies between --min-np and --max-np",
    "--max-np 1": "-np lies between --min-np and --max-np",
    "--elastic-timeout soon": "takes a whole number from 0",
    "--blacklist-cooldown-range 9 3": "takes LOW, then HIGH",
    "--host-discovery-script /no/such/program": "--host-discovery-script is a program",
    "--host-discovery-script true -H a:2": "from --host-discovery-script",
    "--host-discovery-script true --slots 0": "--slots takes a whole number from 1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_options_that_make_no_sense_are_refused(words):
    job = run([sys.executable, "-m", "collective", "run", "-np", "2", *words.split(), "--", "true"], timeout=30)
    assert job.returncode == 2
    assert REFUSED[words] in job.stderr


def test_a_lost_host_s_ranks_are_left_out_although_the_launcher_says_that_all_is_well(train, four_hosts, tmp_path):
    """The daemon of the last host is killed, as if the host were lost, and the host doesn't answer any more."""
    last = four_hosts.addresses[2]
    down = tmp_path / "checkpoints" / "fault-12"
    agent = tmp_path / "agent"
    agent.write_text(
        f'#!/bin/sh\nfor word in "$@"; do [ "$word" = {last} ] && [ -e {down} ] && exit 255; done\n'
        f'exec {four_hosts.agent} "$@"\n'
    )
    agent.chmod(0o755)
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses[:3])
    options = ("-H", hosts, "--launch-agent", str(agent), "--restarts", "2", "-x", "OMPI_MCA_mpi_yield_when_idle=1")
    record = ("-x", f"COLLECTIVE_COMPLETION_FILE={tmp_path / 'complete'}")
    job = train(options=(*options, *record), fault="daemon", moments=(12,))
    assert job.returncode == 0, job.stderr
    starts = [line for line in job.stdout.splitlines() if line.startswith("from step")]
    assert starts == ["from step 0 on 3 ranks", "from step 10 on 2 ranks"]
