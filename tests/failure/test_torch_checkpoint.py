"""A PyTorch training that loses a rank goes on from its checkpoint, and ends with the bits of one undisturbed."""

import json
import sys
from pathlib import Path

import pytest
from jobs import run_job

pytest.importorskip("torch", reason="PyTorch is not installed")

PROGRAM = str(Path(__file__).with_name("torch_training.py"))
NEVER = -1


def train(folder, victim, moment, *options):
    """Train; returns how the job ended, and of each rank its end and the samples of its steps."""
    result = run_job(2, sys.executable, PROGRAM, str(folder), str(victim), str(moment), options=options)
    assert result.returncode == 0, result.stderr
    ends = [json.loads((folder / f"end{rank}").read_text()) for rank in range(2)]
    return result, ends, [(folder / f"samples{rank}").read_text().splitlines() for rank in range(2)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"), NEVER, NEVER)


@pytest.mark.parametrize(("victim", "moment", "saved"), [(1, 10, 8), (0, 15, 12)])
def test_a_killed_rank_changes_no_bit_of_the_end(tmp_path, undisturbed, victim, moment, saved):
    _, ends, samples = undisturbed
    assert [end["step"] for end in ends] == [18, 18]
    assert ends[0]["slots"] == ends[1]["slots"]
    assert ends[0]["random"] != ends[1]["random"]
    result, ends_again, samples_again = train(tmp_path, victim, moment, "--restarts", "1")
    assert "restart 1 of 1, on 2 ranks" in result.stderr
    assert result.stdout.split("\n").count(f"from step {saved}") == 2
    assert ends_again == ends
    for rank in range(2):  # also the steps that were lost, and done twice
        assert samples_again[rank][saved - len(samples[rank]) :] == samples[rank][saved:]
        assert set(samples_again[rank]) == set(samples[rank])
