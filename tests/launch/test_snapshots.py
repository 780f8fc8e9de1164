"""Snapshots under ``collective run --restarts``: a job that dies goes on from them and ends as one that didn't."""

import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import ROOT, launcher, run

from collective.launch import leftovers
from collective.launch.memory import Memory

INTERVAL, STEPS = 3, 40
# Integers in float64 are added exactly, so the end doesn't depend on which rank has which shard.
TRAIN = """
import os, shutil, signal, sys, threading, time, numpy as np, collective as c
from collective.snapshots import Snapshots

folder, fault, moment, victim = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
marks = os.path.join(folder, f"fault-{moment}")
own = os.path.join(os.environ["COLLECTIVE_SNAPSHOT_FOLDER"], os.uname().nodename)
c.init()
had = os.listdir(own) if os.path.exists(own) else []
snapshots = Snapshots()
found = snapshots.newest()
weights, start, drawn = np.zeros(SIZE), 0, c.rank()
if found:
    weights, start, drawn = found.arrays["weights"], found.values["next"], found.own[c.rank() % len(found.own)]
    assert found.step == start - 1 and found.values["note"] == "of rank 0"
    assert [each % 1000 for each in found.own] == [start] * len(found.own), found.own
print("had" if had else "lacked", "on", os.uname().nodename, flush=True)
if c.rank() == 0: print("from step", start, "on", c.size(), "ranks in", own, flush=True)
last = c.rank() == victim and not os.path.exists(marks)

def die():
    open(marks, "w").close()
    if fault == "host":
        shutil.rmtree(own)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    os.kill(os.getpid(), signal.SIGKILL)

for step in range(start, STEPS):
    shards = [np.random.default_rng([step, shard]).integers(-99, 99, 1000) for shard in range(c.rank(), 6, c.size())]
    weights = weights + c.allreduce(np.tile(np.sum(shards, axis=0).astype(np.float64), SIZE // 1000), c.Sum)
    if step == moment and last:
        if fault == "soon": threading.Timer(float(sys.argv[5]), die).start()
        else: die()
    if step % INTERVAL == INTERVAL - 1:
        note = "of rank 0" if c.rank() == 0 else "of another"
        snapshots.save(step, {"weights": weights}, {"next": step + 1, "note": note}, own=1000 * c.rank() + step + 1)
    if c.rank() == 0: print("did", step, flush=True)
if c.rank() == 0: print("weights", weights[:1000].tobytes().hex(), float(weights.sum()).hex(), flush=True)
"""


@pytest.fixture
def train(tmp_path):
    def start(fault, moment, *more, victim=1, ranks=2, size=1000, steps=STEPS, options=("--restarts", "2")):
        script = tmp_path / "train.py"
        text = TRAIN.replace("SIZE", str(size)).replace("INTERVAL", str(INTERVAL)).replace("STEPS", str(steps))
        script.write_text(text)
        command = [sys.executable, "-m", "collective", "run", "-np", str(ranks), *options, "--", sys.executable]
        words = [str(script), str(tmp_path), fault, str(moment), str(victim), *map(str, more)]
        return run([*command, *words], timeout=150)

    return start


def expected(size=1000, steps=STEPS):
    import numpy as np

    weights = np.zeros(1000)
    for step in range(steps):
        for shard in range(6):
            weights += np.random.default_rng([step, shard]).integers(-99, 99, 1000)
    return [weights.tobytes().hex(), float(weights.sum() * (size // 1000)).hex()]


def starts(job):
    return [line.split() for line in job.stdout.splitlines() if line.startswith("from step")]


def assert_it_ended_well(job, **how):
    assert job.returncode == 0, job.stderr
    assert job.stdout.split("weights ")[1].split()[:2] == expected(**how)
    folder = Path(starts(job)[0][7]).parent
    assert folder.name.startswith("collective-snapshots-")
    assert not folder.exists()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_rank_costs_no_more_steps_than_lie_between_snapshots(train, seed):
    chance = random.Random(seed)
    moment, victim = chance.randrange(STEPS), chance.randrange(2)
    job = train("kill", moment, victim=victim)
    assert_it_ended_well(job)
    assert "restart 1 of 2, on 2 ranks" in job.stderr
    first, second = starts(job)
    assert (first[2], second[4]) == ("0", "2")
    assert 0 <= moment - int(second[2]) < INTERVAL
    assert int(second[2]) % INTERVAL == 0


def test_death_while_snapshots_are_written_leaves_one_that_is_whole(train):
    """About half of such moments lie within a save: of 80 MB, after every third step."""
    chance = random.Random(4)
    job = train("soon", 8, chance.uniform(0, 0.4), victim=chance.randrange(2), size=10_000_000, steps=24)
    assert_it_ended_well(job, size=10_000_000, steps=24)
    assert int(starts(job)[1][2]) >= 8 - INTERVAL


def test_a_host_that_comes_back_without_memory_gets_the_snapshot_of_another(train, four_hosts):
    """The daemon of rank 0's host and the host's snapshots go at once, as when it starts anew."""
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses[:3])
    options = ("-H", hosts, "--launch-agent", str(four_hosts.agent), "-x", "OMPI_MCA_mpi_yield_when_idle=1")
    job = train("host", 20, victim=0, ranks=3, options=(*options, "--restarts", "2"))
    assert_it_ended_well(job)
    assert [line[2:5] for line in starts(job)] == [["0", "on", "3"], ["18", "on", "3"]]
    had = sorted(line for line in job.stdout.splitlines() if line.startswith(("had on", "lacked on")))
    assert had == sorted(
        [
            *(f"lacked on {name}" for name in four_hosts.names[:3]),
            f"lacked on {four_hosts.names[0]}",
            f"had on {four_hosts.names[1]}",
            f"had on {four_hosts.names[2]}",
        ]
    )


def test_a_lost_host_is_done_without_and_taken_again_when_it_answers(train, four_hosts, tmp_path):
    """The host is away for the first restart; a discovery script lists it all the time."""
    lost, down = four_hosts.addresses[1], tmp_path / "fault-10"
    back = tmp_path / "back"
    agent = tmp_path / "agent"
    agent.write_text(
        f'#!/bin/sh\nfor word in "$@"; do [ "$word" = {lost} ] && [ -e {down} ] && [ ! -e {back} ] && exit 255; done\n'
        f'exec {four_hosts.agent} "$@"\n'
    )
    discover = tmp_path / "discover"
    discover.write_text("#!/bin/sh\n" + "".join(f"echo {address}\n" for address in four_hosts.addresses[:2]))
    for program in (agent, discover):
        program.chmod(0o755)
    script = tmp_path / "elastic.py"
    script.write_text(GROWS)
    options = ["-x", "OMPI_MCA_mpi_yield_when_idle=1", "--host-discovery-script", str(discover)]
    options += ["--launch-agent", str(agent), "--min-np", "1", "--max-np", "2", "--blacklist-cooldown-range", "1", "4"]
    options += ["--restarts", "1"]
    command = [sys.executable, "-m", "collective", "run", "-np", "2", *options, "--", sys.executable]
    job = run([*command, str(script), str(down), str(back)], timeout=150)
    assert job.returncode == 0, job.stderr
    found = [line.split() for line in job.stdout.splitlines() if line.startswith("from step")]
    assert [line[4] for line in found] == ["2", "1", "2"]
    assert found[1][2] == "10"
    assert job.stdout.split("weights ")[1].strip() == str(float(sum(range(40)) * 6))
    assert f"host {lost} is left out for 1 s" in job.stderr


GROWS = """
import os, signal, sys, time, numpy as np, collective as c
from collective.common.elastic import ObjectState, run

down, back = sys.argv[1:]
c.init()

@run
def train(state):
    if c.rank() == 0: print("from step", state.step, "on", c.size(), "ranks", flush=True)
    while state.step < 40:
        state.weight += float(c.allreduce(np.array(state.step * 6.0 / c.size()), c.Sum))
        if state.step == 10 and c.rank() == 1 and not os.path.exists(down):
            open(down, "w").close()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        if state.step == 15: open(back, "w").close()
        state.step += 1
        state.commit()
        if c.size() == 1: time.sleep(1)
    if c.rank() == 0: print("weights", state.weight, flush=True)

train(ObjectState(step=0, weight=0.0))
"""


def test_a_job_that_is_told_to_stop_leaves_no_snapshots():
    code = (
        "import collective as c, numpy as np, os, time; from collective.snapshots import Snapshots; c.init();"
        "Snapshots().save(1, {'a': np.ones(9)}); print(os.environ['COLLECTIVE_SNAPSHOT_FOLDER'], flush=True);"
        "time.sleep(60)"
    )
    command = [*launcher(1, "--restarts", "5"), sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as job:
        folder = Path(job.stdout.readline().strip())
        assert list(folder.rglob("arrays.bin"))
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=30)
    assert not folder.exists()


def test_snapshots_of_a_supervisor_that_was_killed_are_removed_by_the_next():
    code = (
        "from collective.launch.memory import Memory; import time\n"
        "with Memory(set(), '', keeps=True) as memory: print(*memory.variables.values(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        folder = Path(killed.stdout.readline().strip())
        with Memory(set(), "", keeps=True) as other:
            assert folder.exists()  # its supervisor lives
        killed.kill()
        killed.wait()
        assert folder.exists()
        with Memory(set(), "", keeps=True) as other:
            assert not folder.exists()
            assert Path(*other.variables.values()).exists()


def test_segments_of_dead_ranks_are_removed_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(leftovers, "YOUNGEST", 0.0)
    began = time.time() - 5
    name = f"sm_segment.{os.uname().nodename}.{os.getpid()}"
    paths = {kind: leftovers.MEMORY / f"{name}.{kind}" for kind in ("dead", "mapped", "old")}
    try:
        for path in paths.values():
            path.write_bytes(b"x" * 5000)
        os.utime(paths["old"], (began - 60, began - 60))
        with open(paths["mapped"], "r+b") as file, mmap.mmap(file.fileno(), 0):
            time.sleep(0.01)
            done = [sys.executable, "-I", leftovers.__file__, str(began), ""]
            freed = leftovers.remove(began)
            assert subprocess.run(done, check=False).returncode == 0
            assert freed >= 5000
            assert [kind for kind, path in paths.items() if path.exists()] == ["mapped", "old"]
    finally:
        for path in paths.values():
            path.unlink(missing_ok=True)


def test_daemons_that_outlived_their_launcher_are_ended_and_no_others():
    words = [sys.executable, "-c", "import time; time.sleep(60)", "--prtemca", "ess_base_nspace"]
    jobs = [subprocess.Popen([*words, f"prterun-node1-{number}@0"]) for number in (4711, 47115)]
    try:
        leftovers.end_daemons(["prterun-node1-4711"])
        assert jobs[0].wait(10) == -signal.SIGKILL
        assert jobs[1].poll() is None
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def test_the_example_of_the_documentation_ends_alike_with_a_rank_killed(tmp_path):
    text = (ROOT / "docs" / "restarts.md").read_text().split("```python\n")[1].split("```")[0]
    kill = (
        "    if step == 47 and collective.rank() == 1 and start == 0:\n"
        "        import os, signal\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = "    if step % 10 == 9:\n"
    assert text.count(place) == 1
    sums = []
    for name, program in {"undisturbed": text, "killed": text.replace(place, kill + place)}.items():
        script = tmp_path / f"{name}.py"
        script.write_text(program)
        command = [sys.executable, "-m", "collective", "run", "-np", "2", "--restarts", "1", "--", sys.executable]
        job = run([*command, str(script)], timeout=100)
        assert job.returncode == 0, job.stderr
        assert ("restart 1 of 1" in job.stderr) == (name == "killed")
        sums.append(job.stdout)
    assert sums[0] == sums[1]
