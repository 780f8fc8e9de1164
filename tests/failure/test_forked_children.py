"""Processes that ranks fork are no ranks: however they end, the job goes on, and ends well."""

import sys
from pathlib import Path

import pytest
from jobs import run_job

FORK = """
import os, sys
import collective as c
c.init()

def refused():
    assert c.is_initialized() and c.size() == 2
    try: c.allreduce([1.0])
    except c.errors.NotInitializedError as error: print("refused:", error, flush=True); sys.exit(7)

def wrong(): raise RuntimeError("of the child alone")
def leaves(): c.shutdown(); sys.exit(6)
ends = [lambda: sys.exit(3), lambda: exit(4), lambda: os._exit(5), leaves, refused, wrong, lambda: None]
for end in ends:
    assert c.allreduce([1.0], c.Sum)[0] == c.size()
    child = os.fork()
    if child == 0:
        end()
        break
    print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    assert c.allreduce([1.0], c.Sum)[0] == c.size()
"""

POOL = """
import multiprocessing
import collective as c
c.init()
def work(number):
    return number * number, c.rank(), c.size()
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map(work, range(8))
assert results == [(n * n, c.rank(), c.size()) for n in range(8)], results
assert c.allreduce([1.0], c.Sum)[0] == c.size()
print("pooled", flush=True)
"""

LOADER = """
import torch
import collective.torch as hvd
torch.set_num_threads(1)
hvd.init()
class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 12
    def __getitem__(self, index): return index * hvd.size() + hvd.rank()
loader = torch.utils.data.DataLoader(Numbers(), 4, num_workers=2, multiprocessing_context="fork")
for epoch in range(2):
    for number, batch in enumerate(loader):
        total = hvd.allreduce(batch.double(), op=hvd.Sum)
        expected = sum(torch.arange(4 * number, 4 * number + 4) * hvd.size() + rank for rank in range(hvd.size()))
        assert torch.equal(total, expected.double()), (total, expected)
print("loaded", flush=True)
"""


def test_a_child_may_end_as_it_likes_and_calls_no_operations():
    job = run_job(2, sys.executable, "-c", FORK, timeout=60)
    assert job.returncode == 0, job.stderr
    told = job.stdout.splitlines()
    assert sorted(line for line in told if line.startswith("child")) == [f"child {n}" for n in "00113344556677"]
    refusals = [line for line in told if line.startswith("refused")]
    assert sorted(line.split(": ")[1] for line in refusals) == [
        f"allreduce on a child of rank {n} of 2" for n in (0, 1)
    ]
    assert all("Hand the result to the parent" in line for line in refusals)
    assert job.stderr.count("RuntimeError: of the child alone") == 2
    assert "The job ends" not in job.stderr


@pytest.mark.parametrize(("program", "word"), [(POOL, "pooled"), (LOADER, "loaded")], ids=["pool", "data loader"])
def test_workers_that_are_forked_leave_the_job_alone(program, word):
    if program is LOADER:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    job = run_job(2, sys.executable, "-c", program, timeout=100)
    assert job.returncode == 0, job.stderr
    assert job.stdout.split() == [word] * 2
    assert not any(program.encode() in words(path) for path in Path("/proc").glob("[0-9]*/cmdline"))


def words(path):
    """The words of a process's command line."""
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
