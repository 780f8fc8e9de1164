"""A /dev/shm that is too small is a warning and a slower path, never an error or a crash."""

import shutil
import sys

import pytest
from jobs import run

PROGRAM = """
import numpy as np, collective as c
c.init(); n, r = c.size(), c.rank()
for _ in range(3):
    for total in c.grouped_allreduce([np.full(1000, r, np.float32), np.full(7, r, np.float32)], c.Sum):
        assert (total == n * (n - 1) / 2).all()
assert (c.allreduce(np.ones(3_000_000, np.float32), c.Sum) == n).all()
resident = c.empty(10_000_000)
resident[:] = r
assert (c.allreduce(resident, c.Sum, out=resident) == n * (n - 1) / 2).all()
print('right')
"""


def in_small_shm(megabytes, *command):
    """Run a command that sees a /dev/shm of its own, of so many megabytes."""
    script = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm && exec "$@"'
    return run(["unshare", "--mount", "sh", "-c", script, "sh", *command], 60)


@pytest.fixture(autouse=True, scope="module")
def _may_mount():
    if not shutil.which("unshare") or in_small_shm(1, "true").returncode:
        pytest.skip("a /dev/shm of one's own takes root and unshare")


# With room for none: the job's segment. With 60: the resident array of 2 x 40 MB. One line each.
@pytest.mark.parametrize("megabytes", [1, 60])
def test_the_job_goes_on_with_one_warning(megabytes):
    launch = [sys.executable, "-m", "collective", "run", "-np", "2", "--", sys.executable, "-c", PROGRAM]
    result = in_small_shm(megabytes, *launch)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("right") == 2
    warnings = [line for line in result.stderr.splitlines() if "collective: " in line]  # after a blank of MPI's own
    assert len(warnings) == 1
    assert "0 of 2: WARNING" in warnings[0]
    assert "No space left on device in /dev/shm" in warnings[0]


def test_nothing_is_left_in_dev_shm():
    code = "import os, collective as c; c.init(); c.empty(1000); c.barrier(); os.kill(os.getpid(), 9)"
    launch = [sys.executable, "-m", "collective", "run", "-np", "2", "--", sys.executable, "-c", code]
    # In a /dev/shm of its own, where no other job's files come and go.
    result = in_small_shm(200, "sh", "-c", '"$@"; echo left: $(ls /dev/shm)', "sh", *launch)
    assert "left:" in result.stdout
    assert "collective-" not in result.stdout.split("left:")[1]
