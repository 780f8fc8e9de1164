"""How a rank waits, by a clock and a core of the test's own: awake at first, then out of the way of who computes."""

import itertools

import pytest

from collective.errors import TransportError
from collective.transport import patience

ASKING = 5e-6


class Core:
    """A core on which a yield takes ``yields`` seconds, and what a wait does on it: (what, when, for how long)."""

    def __init__(self):
        self.now, self.yields, self.done = 100.0, 1e-6, []

    def perf_counter(self):
        self.now += ASKING
        return self.now

    def _pass(self, what, seconds):
        self.done.append((what, self.now, seconds))
        self.now += seconds

    def sleep(self, seconds):
        self._pass("sleep", seconds)

    def sched_yield(self):
        self._pass("yield", self.yields)

    def lengths(self, what):
        return [seconds for name, _, seconds in self.done if name == what]


@pytest.fixture
def core(monkeypatch):
    core = Core()
    monkeypatch.setattr(patience, "time", core)
    monkeypatch.setattr(patience.os, "sched_yield", core.sched_yield)
    return core


def waits(core, how, seconds, **what):
    """What a wait of so many seconds does."""
    core.done = []
    until = core.now + seconds
    how.wait(lambda: core.now >= until, **what)
    return core


def test_what_has_come_is_taken_at_once(core):
    assert waits(core, patience.Patience(0), 0).done == []


def test_a_word_is_waited_for_awake_and_then_in_sleeps_of_a_part_of_the_time(core):
    started = core.now
    done = waits(core, patience.Patience(0), 0.1).done
    awake = list(itertools.takewhile(lambda step: step[0] == "yield", done))
    assert awake[-1][1] - started == pytest.approx(patience.AWAKE, rel=0.2)
    for name, when, seconds in done[len(awake) :]:
        assert name == "sleep"
        assert seconds <= min(patience.LONGEST_SLEEP, max(0.06 * (when - started), patience.SHORTEST_SLEEP))


def test_bytes_are_slept_for_as_long_as_those_before_took(core):
    how, length = patience.Patience(0), 1 << 20
    assert len(waits(core, how, 1e-3, length=length).lengths("sleep")) > 10
    for _ in range(20):
        sleeps = waits(core, how, 1e-3, length=length).lengths("sleep")
    assert not core.lengths("yield")
    assert len(sleeps) < 6
    assert sleeps[0] == pytest.approx(0.75e-3, rel=0.2)
    # Half of the bytes take half of the time.
    assert waits(core, how, 5e-4, length=length // 2).lengths("sleep")[0] == pytest.approx(sleeps[0] / 2, rel=0.2)


def test_a_rank_that_was_late_is_soon_forgotten(core):
    how, length = patience.Patience(0), 1 << 20
    for _ in range(20):
        waits(core, how, 1e-3, length=length)
    assert max(waits(core, how, 5, length=length).lengths("sleep")) == patience.LONGEST_SLEEP
    sleeps = waits(core, how, 1e-3, length=length).lengths("sleep")
    assert sum(sleeps) < 1.2e-3


def test_a_core_that_comes_back_late_is_not_yielded_again_for_a_second(core):
    how = patience.Patience(0)
    core.yields = 4e-3
    assert waits(core, how, 0.01).lengths("yield") == [4e-3]
    started = core.now
    done = waits(core, how, 0.01).done
    assert {name for name, _, _ in done} == {"sleep"}
    assert done[0][1] - started >= patience.AWAKE_ON_BUSY_CORE
    core.now += patience.BUSY
    assert waits(core, how, 0.01).lengths("yield")
    # Its own host's ranks may need the core.
    assert len(waits(core, how, 0.01, is_near=True).lengths("yield")) == 1


@pytest.mark.parametrize("yields", [1e-6, 4e-3])
def test_what_was_sent_moves_on_while_a_rank_waits(core, yields):
    how, moved = patience.Patience(0), itertools.count()
    core.yields, how.progress = yields, lambda: next(moved)
    for _ in range(2):
        before = next(moved)
        waits(core, how, 0.01)
        assert next(moved) > before + 1


def test_a_wait_ends_with_an_error_that_names_for_whom(core):
    how = patience.Patience(0, timeout_seconds=3)
    how.operation = "allreduce of 'gradients'"
    with pytest.raises(TransportError, match=r"allreduce of 'gradients' has waited 3 s for rank 7"):
        how.wait(lambda: False, lambda: "rank 7")
