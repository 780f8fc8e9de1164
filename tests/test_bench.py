"""The benchmark measures, checks and tells."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
from jobs import ROOT, run, run_job

import collective
from collective.bench import allreduce, command, control, step
from collective.bench.measure import Sums, summarize
from collective.bench.rows import Machine, Progress, Row, Spread, from_line, merged, to_line
from collective.bench.units import size_of, size_text
from collective.errors import ArgumentError

BENCH = (sys.executable, "-m", "collective.bench")
# Small sizes, and both rewritten arrays and real ranks.
QUICK = ("--sizes", "1K,100K")


def bench(*arguments, **environment):
    return run([sys.executable, "-m", "collective", "bench", *arguments], 120, **environment)


def table(output):
    """The cells of the last table, without its line of dashes."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    start = max(number for number, line in enumerate(lines) if line.startswith("|:---")) - 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:]]
    return [cells[0], *cells[2:]]


def test_the_subcommand_starts_ranks_and_tells_by_table_json_and_plot(tmp_path):
    files = ("--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png"))
    beside = "resident,out-of-place,bf16,fp16,ring,shared_memory,mpi,mpi-in-place,memcpy"
    result = bench("-np", "2", "--sizes", "1K,100K,1M", "--beside", beside, *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("All-reduce: 2 ranks, 1 host(s)")
    heading, *lines = table(result.stdout)
    assert [line[0] for line in lines] == ["1 KiB", "100 KiB", "1 MiB"]
    assert heading[1:3] == ["collective, us", "resident, us"]
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["command"].startswith("collective bench -np 2")
    assert written["machine"]["ranks"] == 2
    assert {"python", "numpy", "mpi4py"} <= set(written["machine"]["versions"])
    for row, size in zip(written["rows"], (1024, 102400, 1048576), strict=True):
        assert row["details"] == {"bytes": size, "elements": size // 4}
        assert set(row["values"]) == {"collective", *beside.split(",")}
        assert all(0 < value["lower"] <= value["median"] <= value["upper"] for value in row["values"].values())
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_of_a_launcher_measure_by_themselves(tmp_path):
    result = run_job(2, *BENCH, *QUICK, "--beside", "mpi", "--json", str(tmp_path / "b.json"))
    assert result.returncode == 0, result.stderr
    assert [line[0] for line in table(result.stdout)[1:]] == ["1 KiB", "100 KiB"]
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 2


def test_every_dtype_has_a_table_with_those_that_know_it_and_float32_beside():
    result = bench("-np", "2", "--sizes", "4K", "--dtype", "float32,bfloat16", "--beside", "float32,mpi", "--cpu")
    assert result.returncode == 0, result.stderr
    assert "\nfloat32\n" in result.stdout
    assert "\nbfloat16\n" in result.stdout
    heading, line = table(result.stdout)
    assert heading == [
        "size", "collective, us", "float32, us", "collective / float32", "collective, CPU us", "float32, CPU us"
    ]  # fmt: skip
    assert float(line[3]) == pytest.approx(float(line[1]) / float(line[2]), rel=0.1)


def test_the_slowest_rank_of_each_round_counts():
    wall = [
        [[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [4.0, 10.0], [9.0, 10.0]],
        [[5.0, 20.0], [1.0, 20.0], [1.0, 20.0], [1.0, 20.0], [1.0, 20.0]],
    ]
    cpu = np.zeros((2, 5, 2))
    cpu[0, :, 1], cpu[1, :, 1] = 1.0, 3.0
    spreads = summarize(["a", "b"], np.stack([np.array(wall), cpu], axis=-1))
    # Slowest of each round: 5, 2, 3, 4, 9.
    assert spreads == {"a": Spread(4.0, 3.0, 5.0, 0.0), "b": Spread(20.0, 20.0, 20.0, 2.0)}


def test_ratios_are_of_medians_to_ours_and_halves_compare_to_float32_the_other_way_round():
    values = {"collective": Spread(2e-6, 1e-6, 3e-6, 4e-6), "float32": Spread(4e-6, 0, 0), "mpi": Spread(3e-3, 0, 0)}
    cells = allreduce.cells(Row("bfloat16", "1 KiB", 5, values), Namespace(cpu=True), list(values))
    assert cells["mpi, us"] == "3,000"
    assert cells["mpi / collective"] == "1500.00"
    assert cells["collective / float32"] == "0.50"
    assert cells["collective, CPU us"] == "4.0"


def test_exposed_is_what_a_step_takes_longer_than_without_averaging():
    values = {"alone": 0.010, "collective": 0.012, "alone beside horovod": 0.013, "horovod": 0.016}
    row = Row("", "mlp", 5, {name: Spread(seconds, 0, 0) for name, seconds in values.items()}, {"batch": 32})
    cells = step.cells(row, Namespace(), ["collective", "horovod"])
    assert (cells["collective exposed, ms"], cells["horovod exposed, ms"]) == ("2.00", "6.00")
    assert cells["horovod / collective"] == "1.33"


def test_control_tells_what_agreement_adds_and_the_part_of_a_core():
    values = {"collective": Spread(12e-6, 0, 0), "mpi": Spread(2e-6, 0, 0)}
    cells = control.cells(Row("", control.ONE_ELEMENT, 5, values), Namespace(), ["collective", "mpi", "gloo"])
    assert cells == {
        "": control.ONE_ELEMENT, "collective": "12.0 us", "mpi": "2.0 us", "gloo": "", "collective - mpi": "10.0 us"
    }  # fmt: skip
    cells = control.cells(Row("", control.LATE, 5, {"mpi": Spread(0.5, 0, 0)}), Namespace(), ["mpi"])
    assert cells == {"": control.LATE, "mpi": "50.0% of a core"}


def test_rows_of_several_jobs_are_joined():
    first = Row("t", "mlp", 10, {"collective": Spread(1.0, 0.5, 2.0, 1.0)})
    second = Row("t", "mlp", 8, {"horovod": Spread(7.0, 6.0, 8.0)})
    again = Row("t", "mlp", 10, {"collective": Spread(3.0, 2.0, 4.0, 2.0)})
    other = Row("t", "cnn", 10, {})
    joined = Row("t", "mlp", 8, {"collective": Spread(2.0, 0.5, 4.0, 1.5), "horovod": Spread(7.0, 6.0, 8.0)})
    assert merged([first, second, other, again]) == [joined, other]


def test_what_ranks_say_arrives_and_other_lines_are_left_alone():
    machine = Machine(2, 1, 2, "Z80", "Open MPI", {"numpy": "2"}, {})
    for event in (Row("t", "1 KiB", 5, {"mpi": Spread(1.0, 0.5, 2.0)}, {"bytes": 1024}), Progress("a", 1, 2), machine):
        assert from_line(to_line(event) + "\n") == event
    assert from_line("libfabric: hello\n") is None


def test_sums_see_every_wrong_element_in_every_dtype():
    collective.init()  # one process
    try:
        for dtype in allreduce.DTYPES.values():
            sums = Sums(200_001, dtype)
            result = sums.own.copy()
            assert sums.wrong(result) == 0
            result[[0, 77_777, 200_000]] += 1
            assert sums.wrong(result) == 3
            assert sums.wrong(np.roll(sums.own, 1)) > 100_000
    finally:
        collective.shutdown()


LIAR = """
import sys
from collective.bench import __main__, contenders
from collective import world

def lies(array):
    array *= 2 if world.rank() else 3
    return array

contenders.CONTENDERS["ring"] = lambda: contenders.Contender(lies)
sys.exit(__main__.main())
"""


def test_a_wrong_sum_ends_the_job_and_is_told():
    result = run_job(2, sys.executable, "-c", LIAR, *QUICK, "--beside", "ring")
    assert result.returncode == 2
    assert "ring on rank" in result.stderr
    assert "256 elements wrong, float32" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_peer_is_refused_with_the_known_ones():
    for refused in (bench("--beside", "nccl"), run_job(1, *BENCH, "--beside", "nccl")):
        assert refused.returncode == 2
        assert "takes resident, passes, out-of-place, bf16, fp16, float32, ring, tree" in refused.stderr
        assert "Received: --beside nccl" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_contenders_that_would_disturb_each_other_have_processes_of_their_own():
    names = ["collective", "mpi", "horovod", "gloo"]
    assert command._jobs(allreduce.SUBJECT, names) == [["collective", "mpi", "gloo"], ["horovod"]]
    assert command._jobs(control.SUBJECT, names) == [["collective", "mpi"], ["horovod"], ["gloo"]]


@pytest.mark.skipif(not importlib.util.find_spec("horovod"), reason="needs Horovod")
def test_horovod_is_measured_in_the_same_run():
    result = bench("-np", "2", "--sizes", "4K", "--beside", "mpi,horovod")
    assert result.returncode == 0, result.stderr
    heading, line = table(result.stdout)
    assert heading[1:5] == ["collective, us", "mpi, us", "horovod, us", "collective beside horovod, us"]
    assert heading[5:] == ["mpi / collective", "horovod / collective"]
    assert all(line)


def test_a_peer_that_is_not_installed_is_refused_if_named_and_else_left_out(monkeypatch):
    subject = allreduce.SUBJECT
    monkeypatch.setattr(command, "_is_installed", lambda package: package != "torch")
    assert "gloo" not in command._contenders(subject, Namespace(beside=None))
    with pytest.raises(ArgumentError, match="gloo needs torch"):
        command._contenders(subject, Namespace(beside="gloo"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sizes", "1X"), "a size is a whole number of bytes"),
        (("--dtype", "float8"), "float8: not one of float32"),
        (("step", "--models", "gpt"), "gpt: not one of mlp"),
        (("step", "--plot", "x.png"), "--plot draws all-reduce"),
        (("-np", "0", "--beside", "mpi"), "-np N says how many processes to start"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_line(arguments, said):
    result = bench(*arguments)
    assert result.returncode == 2
    assert said in result.stderr.splitlines()[-1]


def test_the_exit_status_of_the_ranks_is_passed_on():
    result = bench("-np", "2", *QUICK, COLLECTIVE_ALGORITHM="rign")
    assert result.returncode not in (0, None)
    assert "Did you mean ring?" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_it_and_its_ranks():
    started = [sys.executable, "-m", "collective", "bench", "-np", "2", "--sizes", "1K,100M", "--beside", "mpi"]
    process = subprocess.Popen(
        started, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline().startswith("All-reduce")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, said = process.communicate(timeout=30)
        assert process.returncode == command.INTERRUPTED
        assert "Traceback" not in said
        wait_until_empty(process.pid)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_empty(group, seconds=10):
    """Return once no process of the group is left."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError(f"process group {group} still has processes")


def test_the_control_plane_is_measured_beside_mpi(tmp_path):
    result = bench("control", "-np", "2", "--beside", "mpi", "--json", str(tmp_path / "b.json"))
    assert result.returncode == 0, result.stderr
    rows = {row["label"]: row["values"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]}
    calls = {control.BARRIER, control.ONE_ELEMENT, control.MEETING, control.AGREEMENT}
    assert set(rows) == {*calls, control.IDLE, control.LATE}
    for label in calls:
        assert all(0 < spread["median"] < 0.1 for spread in rows[label].values())
    # MPI spins while it waits.
    assert rows[control.LATE]["mpi"]["median"] > rows[control.IDLE]["collective"]["median"]


def test_memory_is_that_beside_the_gradients(tmp_path):
    result = bench("memory", "-np", "2", "--json", str(tmp_path / "b.json"))
    assert result.returncode == 0, result.stderr
    _, most = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert most["values"]["collective"]["median"] < 0.5 * most["details"]["gradients"]
    # The resident copy of the gradients, half of each rank's on either.
    assert 0.9 < most["values"]["resident"]["median"] / most["details"]["gradients"] < 1.5


def test_steps_with_and_without_averaging():
    result = bench("step", "-np", "2", "--models", "mlp", "--steps", "10", "--beside", "")
    assert result.returncode == 0, result.stderr
    heading, line = table(result.stdout)
    assert heading == [
        "model", "parameters", "batch", "alone, ms", "collective, ms", "collective exposed, ms"
    ]  # fmt: skip
    assert line[:3] == ["mlp", "669,706", "32"]
    alone, ours, exposed = map(float, line[3:])
    assert exposed == pytest.approx(ours - alone, abs=0.011)


def test_the_bare_passes_over_resident_arrays_are_measured_beside():
    result = bench("-np", "2", "--sizes", "1M", "--beside", "resident,passes")
    assert result.returncode == 0, result.stderr
    header, line = table(result.stdout)
    assert header[:4] == ["size", "collective, us", "resident, us", "passes, us"]
    assert all(float(cell) > 0 for cell in line[1:4])


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch, for Gloo")
def test_steps_that_only_meet_or_only_use_the_wire_are_measured_beside():
    result = bench("step", "-np", "2", "--models", "mlp", "--steps", "10", "--beside", "barrier,copies,gloo-ahead")
    assert result.returncode == 0, result.stderr
    cells = dict(zip(*table(result.stdout), strict=True))
    for name in ("collective", "barrier", "copies", "gloo-ahead"):
        exposed = float(cells[f"{name}, ms"]) - float(cells["alone, ms"])
        assert float(cells[f"{name} exposed, ms"]) == pytest.approx(exposed, abs=0.011)


def test_sizes_are_read_and_written_in_units():
    assert [size_of(text) for text in ("7", "64K", "25m", "1G")] == [7, 2**16, 25 * 2**20, 2**30]
    assert [size_text(size) for size in (7, 2**16, 25 * 2**20, 2**30)] == ["7 B", "64 KiB", "25 MiB", "1 GiB"]


def test_what_is_tuned_is_kept_for_the_jobs_to_come(tmp_path):
    result = bench("-np", "2", "--tune", "--sizes", "1K", "--beside", "mpi", XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    ((place, table),) = json.loads((tmp_path / "collective" / "crossovers.json").read_text()).items()
    assert "2 ranks" in place
    assert set(table) == {"in place", "new"}
