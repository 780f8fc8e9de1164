"""The judge of ``collective chaos`` sees what is wrong: else its verdicts on the library would be worth nothing."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from collective.chaos import job, leftovers, trigger
from collective.chaos.cases import LEVELS, SHARED_MEMORY, Case, draw
from collective.chaos.faults import FAULTS
from collective.chaos.job import Job
from collective.chaos.judge import _complaints, schedule
from collective.chaos.training import STEPS, gradient, initial, undisturbed, update
from collective.chaos.trigger import MOMENTS, Trigger
from collective.errors import ArgumentError

KILL = Trigger("kill", 1, "in all-reduce", 12, 3)
CASES = list(draw(list(FAULTS), MOMENTS, LEVELS, [SHARED_MEMORY, "hosts"], 3, seed=5, repeats=2))


def ended(status=0, at=9.0, digest=None, second_size=2):
    """A job of two ranks that was killed at 3 s, started again, and has ended."""
    sizes = [2] * 10 + [second_size] * (STEPS - 10)
    digest = digest or undisturbed(sizes)
    first = [
        {"event": "start", "rank": each, "process": 1 + each, "step": 0, "size": 2, "at": 1.0} for each in range(2)
    ]
    told = {"step": 10, "size": second_size, "digest": digest}
    second = [
        {"event": kind, "rank": rank, "process": 3 + rank, "at": when, **told}
        for kind, when in (("start", 6.0), ("finished", at))
        for rank in range(second_size)
    ]
    fault = {"event": "fault", "rank": 1, "process": 2, "step": 12, "at": 3.0}
    step = {"event": "step", "rank": 0, "process": 3, "step": 11, "at": 6.5}
    return Job(status, at, [*first, fault, *second, step], [*first, *second], [(3.1, "rank 1 was killed")])


def complaints(done, level="L1", *triggers):
    return list(_complaints(Case(level, SHARED_MEMORY, 2, triggers or (KILL,)), done, 1.0))


def test_a_job_that_comes_back_as_it_has_to_is_not_complained_of():
    assert complaints(ended()) == []
    assert complaints(ended(second_size=1)) == []


def test_wrong_bits_a_missing_rank_and_a_bad_status_are_seen():
    assert complaints(ended(digest="0")) == ["other bits than an undisturbed job's on ranks [0, 1]"]
    lacking = ended()
    lacking.record.pop()
    assert complaints(lacking) == ["1 of 2 ranks came to their end"]
    assert complaints(ended(status=1)) == ["it ended with status 1"]
    assert complaints(ended(status=None))[0] == "it had to be killed"
    late = ended()
    late.events[-1]["at"] = 60.0
    assert "it took its next step 57.0 s after the fault" in complaints(late)[0]


def test_a_job_that_has_to_end_is_complained_of_when_it_does_not_or_says_nothing():
    assert "it ended with status 0" in complaints(ended(), "L0")
    assert complaints(ended(status=1, at=9.0), "L0")[0] == "it ended 6.0 s after the fault, more than 5 s"
    silent = ended(status=1, at=4.0)
    silent.said = [(3.1, "something went wrong")]
    assert complaints(silent, "L0") == [r"nothing said of rank 1\b|process 1 of|@1,1\]"]
    assert complaints(ended(status=1, at=4.0), "L0") == []


def test_a_fault_that_did_not_happen_is_told():
    nothing = ended()
    del nothing.events[2]
    assert complaints(nothing) == ["0 of 1 faults happened"]


def test_a_schedule_of_sizes_counts_the_last_start():
    starts = [{"step": 0, "size": 3}, {"step": 10, "size": 2}, {"step": 5, "size": 4}]
    assert schedule(starts) == [3] * 5 + [4] * (STEPS - 5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_sum_of_gradients_is_exact_in_any_order(size):
    model = initial()
    for _ in range(3):
        gradients = [gradient(model, rank) for rank in range(size)]
        forwards, backwards = sum(gradients), sum(reversed(gradients))
        assert (forwards == backwards).all()
        model = update(model, np.asarray(forwards), size)


def test_what_is_left_behind_is_found_whatever_session_it_is_in_and_ended():
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"  # noqa: E501
    look = (
        "import subprocess, sys, collective.chaos.leftovers as left; left.GRACE = 0.5; left.adopt_orphans()\n"
        f"subprocess.run([sys.executable, '-c', {code!r}], check=True)\n"
        "print(left.end_all()); print(left.descendants(__import__('os').getpid()))"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True)
    named, after = found.stdout.splitlines()
    assert "time.sleep(600)" in named
    assert after == "{}"


def test_new_files_are_found_in_all_folders_below(tmp_path):
    before = leftovers.files(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    assert leftovers.files(tmp_path) - before == {str(tmp_path / "a" / "file")}


def test_a_job_that_hangs_is_killed_and_what_it_said_is_kept():
    code = "import time; print('chaos {\"event\": \"fault\"}', flush=True); print('stuck', flush=True); time.sleep(60)"
    began = time.monotonic()
    done = job.run([sys.executable, "-c", code], os.environ, lambda sofar: 2.0 if sofar.all("fault") else 20.0)
    assert time.monotonic() - began < 15
    assert done.status is None
    assert done.text == "stuck"


def test_a_trigger_reads_as_it_is_written():
    for case in CASES:
        assert tuple(trigger.parse(str(each)) for each in case.triggers) == case.triggers


@pytest.mark.parametrize("text", ["kill rank 1", "kill on rank 1 at noon of step 3 after 0 ms", "kill on rank -1"])
def test_a_trigger_that_is_none_is_refused(text):
    with pytest.raises(ArgumentError, match="a fault is told as"):
        trigger.parse(text)


def test_a_case_stays_the_same_whichever_others_there_are_and_other_seeds_draw_others():
    (alone,) = draw(["kill"], ["in negotiation"], ["L1"], [SHARED_MEMORY], 3, seed=5, repeats=1)
    assert alone in CASES
    drawn = {str(next(draw(["kill"], ["in negotiation"], ["L1"], [SHARED_MEMORY], 3, seed, 1))) for seed in range(20)}
    assert len(drawn) > 10


def test_every_fault_is_tried_somewhere():
    assert {each.fault for case in CASES for each in case.triggers} == set(FAULTS)
