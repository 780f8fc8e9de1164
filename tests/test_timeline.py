"""The timeline is JSON that Chrome's viewer reads, and tells what happened; stalls are told of in time."""

import json
import re
import sys
import time

import pytest
from jobs import run, run_job

from collective import settings
from collective.errors import SettingError

PROLOGUE = "import time, numpy as np, collective as c\nc.init(); r = c.rank()\n"


def job(code, ranks=2, **environment):
    result = run_job(ranks, sys.executable, "-c", PROLOGUE + code, timeout=60, **environment)
    assert result.returncode == 0, result.stderr
    return result


def rows(path):
    """The events of each row, by its title."""
    events = json.loads(path.read_text())
    titles = {e["pid"]: e["args"].get("name", "") for e in events if e.get("name") == "process_name"}
    return {title: [e for e in events if e["pid"] == pid and e["ph"] != "M"] for pid, title in titles.items()}


def phases(events):
    """Name, length in seconds, and arguments of each phase; phases don't overlap."""
    found, begun = [], None
    for event in events:
        if event["ph"] == "B":
            assert begun is None
            begun = event
        elif event["ph"] == "E":
            found.append((begun["name"], (event["ts"] - begun["ts"]) / 1e6, event.get("args", {})))
            begun = None
    assert begun is None
    return found


def test_a_timeline_tells_which_rank_came_when_and_what_was_done(tmp_path):
    path = tmp_path / "timeline.json"
    code = "c.barrier()\nif r == 1: time.sleep(0.3)\nc.allreduce(np.ones((3, 2), np.float32), name='kernel')"
    job(code, ranks=3, COLLECTIVE_TIMELINE=str(path))
    events = rows(path)["allreduce.kernel"]
    (negotiate, waited, _), (name, _, details) = phases(events)
    assert (negotiate, name) == ("NEGOTIATE_ALLREDUCE", "ALLREDUCE")
    assert details == {"dtype": "float32", "shape": "[3, 2]", "bytes": 24}
    assert 0.2 < waited < 5
    came = {event["name"]: event["ts"] for event in events if event["ph"] == "X"}
    assert sorted(came) == ["0", "1", "2"]
    assert came["1"] - max(came["0"], came["2"]) > 0.2e6


def test_operations_that_are_left_to_the_engine_wait_in_its_queue(tmp_path):
    path = tmp_path / "timeline.json"
    code = "hs = [c.allreduce_async(np.ones(9), name=f'g{i}') for i in range(3)]\n[h.wait() for h in hs]"
    job(code, COLLECTIVE_TIMELINE=str(path))
    for number in range(3):
        told = [name for name, _, _ in phases(rows(path)[f"allreduce.g{number}"])]
        assert told[0] == "QUEUE"
        assert told[-1] == "ALLREDUCE"


def test_a_mismatch_is_told_and_every_kind_of_operation_has_its_name(tmp_path):
    path = tmp_path / "timeline.json"
    code = (
        "c.broadcast(np.ones(2), 0, name='b'); c.allgather(np.ones((2, 3)), name='g')\n"
        "c.alltoall(np.ones(2), name='a'); c.reducescatter(np.ones(2), name='s'); c.barrier()\n"
        "try: c.allreduce(np.ones(2 + r), name='bad')\n"
        "except c.errors.MismatchError: pass"
    )
    job(code, COLLECTIVE_TIMELINE=str(path))
    found = rows(path)
    for kind, name in {"broadcast": "b", "allgather": "g", "alltoall": "a", "reducescatter": "s"}.items():
        told = [name for name, _, _ in phases(found[f"{kind}.{name}"])]
        assert told == [f"NEGOTIATE_{kind.upper()}", kind.upper()]
    assert any(title.startswith("barrier.noname.") for title in found)
    assert "float64[3]" in phases(found["allreduce.bad"])[-1][2]["error"]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("mark", ["0", "1"])
def test_horovods_variables_start_it_and_the_file_is_whole_while_it_is_written(tmp_path, ranks, mark):
    path = tmp_path / "timeline.json"
    code = (
        "import json, os\nc.allreduce(np.ones(3), name='t')\n"
        "if r == 0: print([e.get('name') for e in json.load(open(os.environ['HOROVOD_TIMELINE']))])\n"
    )
    told = job(code, ranks, HOROVOD_TIMELINE=str(path), HOROVOD_TIMELINE_MARK_CYCLES=mark).stdout
    assert "NEGOTIATE_ALLREDUCE" in told
    assert ("CYCLE_START" in told) == (mark == "1")


@pytest.mark.parametrize("started_by", ["run", "hand"])
def test_a_program_starts_and_stops_it(tmp_path, started_by):
    code = (
        "import sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
        "c.allreduce(np.ones(3), name='before')\n"
        "c.start_timeline(str(folder / 'first'), mark_cycles=True)\n"
        "c.allreduce(np.ones(3), name='one'); c.stop_timeline()\n"
        "c.allreduce(np.ones(3), name='between')\n"
        "c.start_timeline(str(folder / 'second')); c.allreduce(np.ones(3), name='two'); c.shutdown()\n"
    )
    command = [sys.executable, "-c", PROLOGUE + code, str(tmp_path)]
    result = run_job(2, *command, COLLECTIVE_TIMELINE="DYNAMIC") if started_by == "run" else run(command, 60)
    assert result.returncode == 0, result.stderr
    assert set(rows(tmp_path / "first")) == {"", "allreduce.one"}
    assert set(rows(tmp_path / "second")) == {"", "allreduce.two"}
    marks = [event["name"] for event in rows(tmp_path / "first")[""]]
    assert set(marks) == {"CYCLE_START"}
    assert rows(tmp_path / "second")[""] == []


def test_a_timeline_belongs_to_a_job_and_there_is_one_at_a_time(tmp_path):
    code = (
        "import collective as c\n"
        "def refused(function, *arguments):\n"
        "    try: function(*arguments)\n"
        "    except ValueError as error: print(type(error).__name__)\n"
        f"refused(c.start_timeline, {str(tmp_path / 't')!r}); refused(c.stop_timeline)\n"
        f"c.init(); refused(c.start_timeline, '/nowhere/t'); c.start_timeline({str(tmp_path / 't')!r})\n"
        f"refused(c.start_timeline, {str(tmp_path / 'u')!r}); c.stop_timeline(); c.stop_timeline()"
    )
    told = run([sys.executable, "-c", code], 60).stdout.split()
    assert told == ["NotInitializedError"] * 2 + ["ArgumentError"] * 2


def test_horovods_variables_mean_ours_and_ours_win():
    read = settings.from_environment(
        {
            "HOROVOD_TIMELINE": "/tmp/t",
            "HOROVOD_TIMELINE_MARK_CYCLES": "1",
            "HOROVOD_STALL_CHECK_TIME_SECONDS": "7",
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "9",
            "HOROVOD_LOG_LEVEL": "TRACE",
            "HOROVOD_FUSION_THRESHOLD": "1024",
            "HOROVOD_CYCLE_TIME": "3.5",
            "COLLECTIVE_TIMELINE": "/tmp/u",
        }
    )
    assert (read.timeline, read.timeline_mark_cycles, read.stall_seconds, read.timeout_seconds) == ("/tmp/u", 1, 7, 9)
    assert (read.log_level, read.fusion_bytes) == ("debug", 1024)
    off = {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_STALL_CHECK_TIME_SECONDS": "7"}
    assert settings.from_environment(off).stall_seconds == 0
    assert settings.from_environment({"HOROVOD_STALL_CHECK_DISABLE": "0"}).stall_seconds == 60
    with pytest.raises(SettingError, match="HOROVOD_FUSION_THRESHOLD is a whole number"):
        settings.from_environment({"HOROVOD_FUSION_THRESHOLD": "64MB"})


STALL = "if r == 1: time.sleep(4)\nstarted = time.time()\n"


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_stalled_operation_is_told_of_then_ends_with_an_error_that_names_it_and_the_rank(ranks):
    code = STALL + (
        "try: c.allreduce(np.ones(3), name='late')\n"
        "except c.errors.TransportError as error: print('after', time.time() - started, str(error), flush=True)\n"
        "import os; time.sleep(5 if r == 0 else 0); os._exit(0)"
    )
    limits = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "0.5", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "2"}
    result = run_job(ranks, sys.executable, "-c", PROLOGUE + code, timeout=60, **limits)
    assert "rank 0 of" in result.stderr
    assert re.search(r"WARNING: allreduce 'late' .* has waited \d+ s for rank 1 ", result.stderr)
    after = [float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("after")]
    assert 2 <= after[0] < 4
    assert "rank 1 on this host" in result.stdout


QUIETLY = "try: c.shutdown()\nexcept c.errors.TransportError: pass"


@pytest.mark.parametrize("end", ["c.shutdown()", "pass", QUIETLY])
def test_a_rank_that_has_given_up_takes_the_late_one_with_it(end):
    """The late rank finds the others' part of the operation, and would wait for the rest of it for ever."""
    code = STALL + f"try: c.allreduce(np.ones(3))\nexcept c.errors.TransportError: pass\n{end}\n"
    started = time.time()
    result = run_job(2, sys.executable, "-c", PROLOGUE + code, timeout=60, HOROVOD_STALL_SHUTDOWN_TIME_SECONDS="1")
    assert time.time() - started < 30
    assert result.returncode != 0
    assert "every rank takes part within 1 s" in result.stderr or "MPI_ABORT" in result.stderr


def test_a_stall_check_that_is_off_says_nothing():
    limits = {"HOROVOD_STALL_CHECK_DISABLE": "1", "HOROVOD_STALL_CHECK_TIME_SECONDS": "0.2"}
    assert job("if r == 1: time.sleep(1)\nc.barrier()", **limits).stderr == ""


def test_a_stall_is_told_of_after_a_minute_unless_something_else_is_said():
    assert settings.from_environment({}).stall_seconds == 60


def test_nothing_is_asked_of_an_operation_while_it_is_off():
    code = (
        "from collective.engine import engine\n"
        "class Refuse:\n"
        "    def __init__(self, *arguments): raise AssertionError\n"
        "engine.Recorded = Refuse\n"
        "c.allreduce(np.ones(3)); c.allreduce_async(np.ones(3)).wait(); print('nothing')"
    )
    assert job(code).stdout.split() == ["nothing"] * 2


def test_arrays_are_free_after_their_operation_also_on_the_rank_that_records(tmp_path):
    told = job(
        "import weakref\n"
        "array = np.ones(3); alive = weakref.ref(array); c.allreduce(array); del array\n"
        "print('free', alive() is None)\n",
        COLLECTIVE_TIMELINE=str(tmp_path / "timeline"),
    ).stdout
    assert told.count("free True") == 2, told
    assert rows(tmp_path / "timeline")
