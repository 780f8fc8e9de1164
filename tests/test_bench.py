"""The benchmark measures, checks and tells."""

import json
import sys

from jobs import run_job

BENCH = (sys.executable, "-m", "collective.bench")


def test_a_table_json_and_a_plot(tmp_path):
    files = ("--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"))
    beside = "resident,ring,shared_memory,mpi,mpi-in-place,memcpy"
    result = run_job(2, *BENCH, "--sizes", "1K,100K,1M", "--beside", beside, *files)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "All-reduce of float32 on 2 ranks, 1 host(s)"
    assert [line.split("|")[1].strip() for line in lines[-3:]] == ["1 KiB", "100 KiB", "1 MiB"]
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["ranks"] == 2
    for row, size in zip(written["rows"], (1024, 102400, 1048576), strict=True):
        assert row["bytes"] == size
        assert set(row["seconds"]) == {"collective", *beside.split(",")}
        assert all(seconds > 0 for seconds in row["seconds"].values())
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_dtype_that_a_peer_lacks_leaves_a_gap():
    result = run_job(2, *BENCH, "--sizes", "4K", "--dtype", "bfloat16", "--beside", "resident,mpi")
    assert result.returncode == 0, result.stderr
    cells = [cell.strip() for cell in result.stdout.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "4 KiB"
    assert cells[3] == ""  # no MPI adds bfloat16


def test_an_unknown_peer_is_refused_with_the_known_ones():
    result = run_job(2, *BENCH, "--beside", "nccl")
    assert result.returncode != 0
    assert "resident, ring, tree" in result.stderr
