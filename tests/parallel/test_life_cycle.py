"""Joining, leaving, joining again; settings; the six numbers."""

import json

import numpy as np
import pytest

import collective
from collective import Sum
from collective.errors import NotInitializedError, SettingError
from collective.settings import ALGORITHMS


def test_the_six_numbers_agree(rank, size):
    numbers = [collective.local_rank(), collective.local_size(), collective.cross_rank(), collective.cross_size()]
    assert numbers == [rank, size, 0, 1]  # all on one host
    np.testing.assert_array_equal(collective.allgather(np.array([rank])), np.arange(size))


def test_init_twice_is_harmless_and_init_after_shutdown_works(size):
    collective.init()
    collective.shutdown()
    assert not collective.is_initialized()
    for call in (collective.rank, collective.size, lambda: collective.allreduce(np.zeros(1))):
        with pytest.raises(NotInitializedError, match=r"Call collective.init\(\) first"):
            call()
    collective.shutdown()
    collective.init()
    assert collective.allreduce(np.ones(1), Sum) == size


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_by_name(algorithm, rank, size, monkeypatch, same_on_all_ranks):
    collective.shutdown()
    monkeypatch.setenv("COLLECTIVE_ALGORITHM", algorithm)
    monkeypatch.setenv("COLLECTIVE_SEGMENT_BYTES", "4096")
    collective.init()
    for length in (0, 1, 5, 1000, 100_003):
        for dtype in (np.float32, np.int16, np.float16):
            everyone = [np.random.default_rng([r, length]).integers(-9, 9, length).astype(dtype) for r in range(size)]
            result = collective.allreduce(everyone[rank], Sum)
            np.testing.assert_array_equal(result, sum(everyone))
            same_on_all_ranks(result)
    collective.shutdown()
    monkeypatch.undo()
    collective.init()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COLLECTIVE_ALGORITHM", "rings", "Did you mean ring?"),
        ("COLLECTIVE_ALGORITHMS", "ring", "Did you mean COLLECTIVE_ALGORITHM?"),
        ("COLLECTIVE_SEGMENT_BYTES", "many", "a whole number"),
        ("COLLECTIVE_SEGMENT_BYTES", "1", "at least 64"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(variable, value, message, monkeypatch):
    collective.shutdown()
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingError, match=message.replace("?", r"\?")):
        collective.init()
    monkeypatch.undo()
    collective.init()


def test_a_thousand_operations_in_a_row_stay_right(rank, size):
    random = np.random.default_rng(3)  # the same sizes on all ranks, none of them in step with the last
    for _ in range(1000):
        length = int(random.integers(0, 30_000))
        result = collective.allreduce(np.full(length, rank, np.float32), Sum)
        assert (result == size * (size - 1) / 2).all()


def test_what_was_measured_is_kept_for_the_next_job(rank, size, monkeypatch, tmp_path):
    if size == 1 or collective.world.backend().name != "mpi":
        pytest.skip("one rank, or another's core, has nothing to choose")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    collective.shutdown()
    collective.init()
    file = tmp_path / "collective" / "crossovers.json"
    if rank == 0:
        ((place, found),) = json.loads(file.read_text()).items()
        assert f"{size} ranks" in place
        for table in found["in place"], found["new"]:
            assert all(limit in [256 * 4**power for power in range(8)] for limit, _ in table)
            assert {name for _, name in table} <= {"native", "exchange", "joined"}
        told = {"in place": [[777, "native"]], "new": []}
        file.write_text(json.dumps({place: told}))
    collective.shutdown()
    collective.init()
    if rank == 0:
        assert list(json.loads(file.read_text()).values()) == [told]  # read, not measured again
        file.write_text("no JSON")
    collective.shutdown()
    collective.init()
    assert collective.allreduce(np.ones(1), Sum) == size
    monkeypatch.undo()
    collective.shutdown()
    collective.init()
