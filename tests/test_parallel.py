"""The parallel suite, run by the MPI launcher at several sizes and through both backends."""

import importlib.util
import sys
from pathlib import Path

import pytest
from jobs import run_job

SUITE = "tests/parallel/main.py"
# Trainings that are interrupted take long, and more ranks do nothing else.
LONG = "test_keras_checkpoint or test_skipping or test_consistency"
# What depends on the backend, and what Horovod's can do: no join, Adasum or names in flight, so not all of PyTorch's.
OF_THE_BACKEND = ("collectives", "equivalence", "life_cycle", "resident")
OF_FRONT_ENDS = ("factors_and_groups", "keras", "soak", "tensorflow", "torch_state")


def run_suite(folder: Path, ranks: int, *arguments: str, **environment: str) -> None:

    result = run_job(ranks, sys.executable, SUITE, str(folder), *arguments, timeout=600, **environment)
    logs = {path.name: path.read_text() for path in sorted(folder.glob("rank*.txt"))}
    failed = {name: log for name, log in logs.items() if " failed" in log or " error" in log}
    assert result.returncode == 0, "\n".join([*(failed or logs).values(), result.stdout[-3000:], result.stderr[-3000:]])
    assert len(logs) == ranks
    assert all(" passed" in log for log in logs.values())


@pytest.mark.timeout(700)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_suite_over_mpi(ranks, tmp_path):
    run_suite(tmp_path, ranks, *(() if ranks == 2 else ("-k", f"not ({LONG})")))


@pytest.mark.timeout(700)
@pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="Horovod is not built: collective install-horovod")
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_suite_through_horovod(ranks, tmp_path):
    chosen = [*OF_THE_BACKEND, *(OF_FRONT_ENDS if ranks == 2 else ())]
    run_suite(tmp_path, ranks, *[f"test_{name}.py" for name in chosen], COLLECTIVE_BACKEND="horovod")
