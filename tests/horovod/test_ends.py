"""A rank that fails ends the job through Horovod as well: non-zero, within 5 seconds, with rank and cause."""

import time

import pytest
from launchers import launch, needs_horovod

pytestmark = needs_horovod

PROLOGUE = (
    "import os, sys, time, numpy as np, collective as c; c.init(); r = c.rank(); c.allreduce(np.ones(3))\n"
    "if r == 0: print('started', time.time(), flush=True)\n"
)
CASES = {
    "exception while others wait": (
        "if r == 1: raise ValueError('bad data')\nc.barrier()",
        ["uncaught ValueError: bad data"],
    ),
    "exception while others compute": (
        "if r == 1: raise ValueError('bad data')\ntime.sleep(60)",
        ["rank 1 of 2", "uncaught ValueError: bad data"],
    ),
    "abort with a status": ("if r == 1: c.world.backend().abort(9)\ntime.sleep(60)", []),
    "killed": ("if r == 1: os.kill(os.getpid(), 9)\nc.allreduce(np.ones(3))", []),
    "early end": (
        "if r == 0: c.allreduce(np.ones(3), name='alone')",
        ["rank 0: allreduce 'alone'", "rank 1: shutdown"],
    ),
}


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --gloo"])
@pytest.mark.parametrize("case", CASES)
def test_the_job_ends_and_says_why(case, launcher):
    code, expected = CASES[case]
    result = launch(launcher, 2, "-c", PROLOGUE + code, timeout=60)
    ended = time.time()
    assert result.returncode != 0
    assert ended - float(result.stdout.split("started")[1].split()[0]) < 5
    for text in expected:
        assert text in result.stderr + result.stdout
    if case == "abort with a status" and launcher == "mpirun":
        assert result.returncode == 9
