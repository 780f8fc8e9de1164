"""Every fault of ``collective chaos`` once, two cases at a time; ``make chaos`` tries all moments, 25 times."""

import pytest

from collective.chaos import emulated
from collective.chaos.cases import HOSTS, SHARED_MEMORY, draw
from collective.chaos.command import emulated_options, pool
from collective.chaos.judge import judge
from collective.chaos.surroundings import Network

# The machine runs two cases at a time, each of two ranks or more, on two cores.
PATIENCE = 2
# A case may have to wait for the one before.
SECONDS = 200

CASES = [
    # The job ends, and says why.
    ("L0", "exception", "in all-reduce"),
    ("L0", "kill", "in all-reduce"),
    ("L0", "term", "between steps"),
    ("L0", "segv", "in negotiation"),
    ("L0", "exit-0", "between steps"),
    ("L0", "exit-7", "before init"),
    ("L0", "abort", "between steps"),
    ("L0", "oom", "in all-reduce"),
    ("L0", "memory-error", "between steps"),
    ("L0", "stop", "in negotiation"),
    ("L0", "never-comes", "between steps"),
    ("L0", "other-name", "in negotiation"),
    ("L0", "other-shape", "in negotiation"),
    ("L0", "other-dtype", "in negotiation"),
    ("L0", "other-op", "in negotiation"),
    ("L0", "fewer-batches", "between steps"),
    ("L0", "nan", "in negotiation"),
    ("L0", "drift", "between steps"),
    ("L0", "foreign-launcher", "before init"),
    ("L0", "thread-level", "before init"),
    # It goes on.
    ("L0", "stop-a-while", "in all-reduce"),
    ("L0", "slow", "between steps"),
    ("L0", "hold-gil", "in negotiation"),
    ("L0", "other-order", "in negotiation"),
    ("L0", "unwatched", "in all-reduce"),
    ("L0", "fork", "between steps"),
    ("L0", "shm-full", "before init"),
    # It comes back, with the bits of a job that was not disturbed.
    ("L1", "kill", "in checkpoint write"),
    ("L1", "exit-7", "in recovery"),
    ("L1", "disk-full", "between steps"),
    ("L1", "truncated-checkpoint", "between steps"),
    ("L1", "damaged-checkpoint", "between steps"),
    ("L2", "kill", "in all-reduce"),
    ("L2", "kill", "in checkpoint write"),
    ("L2", "drift", "between steps"),
    ("L3", "kill", "in all-reduce"),
    ("L3", "never-comes", "between steps"),
]
HOST_CASES = [
    ("L0", "kill", "in all-reduce"),
    ("L0", "host-lost", "in negotiation"),
    ("L1", "link-cut", "in all-reduce"),
    ("L2", "host-lost", "between steps"),
    ("L3", "kill", "in negotiation"),
]
WORDS = [(SHARED_MEMORY, *words) for words in CASES] + [(HOSTS, *words) for words in HOST_CASES]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Where cases run; hosts only if they can be emulated here."""
    if emulated.obstacle():
        yield {SHARED_MEMORY: Network()}
        return
    with emulated.hosts(3, tmp_path_factory.mktemp("hosts")) as up:
        yield {SHARED_MEMORY: Network(), HOSTS: Network(emulated_options(up, slots=1), up.names)}


@pytest.fixture(scope="module")
def judged(networks, request):
    """What comes out of the cases that are to be tested, each begun when a worker is free."""
    wanted = [item.callspec.params["words"] for item in request.session.items if item.path == request.path]
    # Emulated hosts are mended after a case, so only one may use them: its worker is another.
    workers = {SHARED_MEMORY: pool(2), HOSTS: pool(1)}
    futures = {}
    for words in wanted:
        network, level, fault, moment = words
        (case,) = draw([fault], [moment], [level], [network], 3 if network == HOSTS else 2, seed=1, repeats=1)
        futures[words] = workers[network].submit(judge, case, networks.get(network, Network()), patience=PATIENCE)
    yield futures
    for each in workers.values():
        each.shutdown(cancel_futures=True)


@pytest.mark.parametrize("words", WORDS, ids="-".join)
def test_a_disturbed_job_does_what_was_promised(words, judged):
    found = judged[words].result(SECONDS)
    if found.not_tried:
        pytest.skip(found.not_tried)
    assert not found.complaints, f"{found.case}\n{found.said}"
