"""The suite of all backends, through Horovod, under each launcher it has."""

import pytest
from jobs import ROOT
from launchers import launch, needs_horovod

SUITE = [str(ROOT / "tests" / "parallel" / "main.py")]
HERE = ROOT / "tests" / "horovod"

pytestmark = needs_horovod


@pytest.mark.parametrize(
    ("launcher", "ranks"),
    [
        ("mpirun", 3),  # and the whole suite at 1 to 4: tests/test_parallel.py
        ("horovodrun --gloo", 1),
        ("horovodrun --gloo", 3),
        ("horovodrun --mpi", 2),
    ],
)
def test_every_operation_and_dtype(launcher, ranks, tmp_path):
    chosen = [str(HERE / "on_ranks.py"), "-k", "test_collectives or on_ranks"]
    result = launch(launcher, ranks, *SUITE, str(tmp_path), *chosen, timeout=280)
    logs = [path.read_text() for path in sorted(tmp_path.glob("rank*.txt"))]
    assert result.returncode == 0, "\n".join([*logs, result.stdout[-3000:], result.stderr[-3000:]])
    assert len(logs) == ranks
    assert all(" passed" in log and " failed" not in log for log in logs)


@pytest.mark.parametrize(("launcher", "ranks"), [("mpirun", 4), ("horovodrun --gloo", 2)])
def test_operations_inside_graphs(launcher, ranks):
    result = launch(launcher, ranks, str(HERE / "in_graphs.py"))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("graphs are well") == ranks


def test_horovodrun_over_gloo_needs_no_setting():
    code = "import collective; collective.init(); print(collective.world.backend().name, collective.size())"
    result = launch("horovodrun --gloo", 2, "-c", code, COLLECTIVE_BACKEND="")
    assert result.stdout.count("horovod 2") == 2, result.stderr[-3000:]
