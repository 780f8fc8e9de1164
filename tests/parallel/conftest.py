"""Every test here runs on all ranks of a job in the same order; hypothesis draws the same examples on all of them."""

import hypothesis
import numpy as np
import pytest

import collective
from collective import world

hypothesis.settings.register_profile(
    "parallel",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("parallel")


def pytest_report_header():
    backend = world.backend()
    return f"collective: {backend.name} backend, {backend.topology.where}"


def pytest_collection_finish(session):
    """Ranks that don't run the same tests would wait for each other, test after test."""
    mine = [item.nodeid for item in session.items]
    for rank, theirs in enumerate(collective.allgather_object(mine)):
        if theirs != mine:
            different = sorted(set(mine) ^ set(theirs))
            raise pytest.UsageError(f"rank {rank} has collected other tests than this rank: {different}")


@pytest.fixture(autouse=True)
def _start_together():
    """Begin every test in step, so that a failure on one rank is told in the test where it happened."""
    if not collective.is_initialized():
        collective.init()
    collective.barrier()


@pytest.fixture
def rank():
    return collective.rank()


@pytest.fixture
def size():
    return collective.size()


@pytest.fixture
def same_on_all_ranks():
    """Assert that an array has the same bits on every rank."""

    def check(array):
        mine = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        if array.dtype.kind in "fc" and array.dtype.char in "gG":
            mine = mine.reshape(-1, 16)[:, :10]  # the other bytes of an 80 bit number mean nothing
        everyone = collective.allgather(mine[None])
        assert (everyone == mine).all()

    return check
