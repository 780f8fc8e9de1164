"""A function that is run on many ranks gives back what it returned on each, or the first exception."""

import inspect
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jobs import run as run_command

import collective
import collective.runner
from collective.errors import ArgumentError, LaunchError, RankError
from collective.launch import library, serve
from collective.launch.call import Job


def gather(a, b, c, d):
    import numpy as np

    collective.init()
    gathered = collective.allgather(np.array([collective.rank(), a + b + c + d])).tolist()
    return {0: gathered, 1: "of rank 1"}.get(collective.rank())


@pytest.mark.parametrize("ranks", [1, 3])
def test_results_come_in_rank_order(ranks):
    results = collective.run(gather, (1, 20), {"c": 300, "d": 4000}, num_proc=ranks)
    assert results == [[number for rank in range(ranks) for number in (rank, 4321)], "of rank 1", None][:ranks]


def test_a_function_without_a_module_and_a_large_result_travel():
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")
    import numpy as np

    size = 3_000_000
    for result in collective.run(lambda: np.arange(size), num_proc=2):
        np.testing.assert_array_equal(result, np.arange(size))


def test_the_runner_is_the_same_function_and_takes_horovods_arguments():
    assert collective.runner.run is collective.run
    names = list(inspect.signature(collective.run).parameters)
    theirs = pytest.importorskip("horovod.runner", reason="Horovod is not built: collective install-horovod")
    assert names == list(inspect.signature(theirs.run).parameters)


def fail():
    collective.init()
    if collective.rank() == 1:
        raise KeyError("lost")
    time.sleep(100)


def test_an_exception_on_a_rank_ends_the_job_and_is_raised_with_its_traceback(capfd):
    started = time.time()
    with pytest.raises(RuntimeError, match="mpirun failed") as caught:
        collective.run(fail, num_proc=2)
    assert time.time() - started < 30
    assert isinstance(caught.value, RankError)
    assert "KeyError: 'lost' on rank 1 of 2" in str(caught.value)
    assert 'raise KeyError("lost")' in str(caught.value)
    assert repr(caught.value.__cause__) == "KeyError('lost')"
    assert "uncaught KeyError" in capfd.readouterr().err


class Private(Exception):
    def __reduce__(self):
        raise TypeError("stays here")


def fail_privately():
    raise Private("odd")


def leave():
    os._exit(0)


def return_a_lock():
    import threading

    return threading.Lock()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (fail_privately, "Private: odd on rank 0 of 1"),
        (leave, "0 results of 1 ranks"),
        (return_a_lock, "function, arguments and results can be pickled"),
    ],
)
def test_what_can_not_come_back_is_an_error(function, text, capfd):
    with pytest.raises(RankError, match=text):
        collective.run(function)


def test_output_goes_to_a_file_for_each_rank(tmp_path, capfd):
    collective.run(print, ("hello",), num_proc=2, output_filename=str(tmp_path / "logs"))
    assert [(tmp_path / f"logs/rank.{rank}/stdout").read_text() for rank in (0, 1)] == ["hello\n"] * 2
    assert "hello" not in capfd.readouterr().out


def test_the_launchers_line_is_shown_and_takes_further_arguments(capfd):
    if library.load(sys.executable).vendor != "Open MPI":
        pytest.skip("--tag-output is an argument of Open MPI's")
    collective.run(print, ("hello",), verbose=True, mpi_args="--tag-output")
    told = capfd.readouterr()
    assert "--tag-output" in told.err
    assert re.search(r"\S.*stdout.*hello", told.out)


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_gloo": True},
        {"use_gloo": True, "use_mpi": True},
        {"hosts": "localhost:1", "hostfile": "hosts"},
        {"hostfile": "hosts", "host_discovery_script": "hosts.sh"},
    ],
)
def test_what_has_no_meaning_is_refused_before_anything_runs(arguments):
    with pytest.raises(ValueError) as caught:
        collective.run(fail, **arguments)
    assert isinstance(caught.value, ArgumentError)
    assert f"{next(iter(arguments))}={next(iter(arguments.values()))!r}" in str(caught.value)


def test_older_names_are_deprecated():
    with pytest.warns(DeprecationWarning, match="num_proc"):
        assert collective.run(abs, (-3,), np=1) == [3]
    with pytest.warns(DeprecationWarning, match="max_num_proc"):
        assert collective.run(abs, (-3,), max_np=1) == [3]


def fail_once(folder):
    collective.init()
    collective.barrier()
    if collective.rank() == 0 and not os.path.exists(f"{folder}/failed"):
        Path(folder, "failed").touch()
        Path(folder, "hosts").write_text("localhost:2")
        raise KeyError("lost")
    if not os.path.exists(f"{folder}/failed"):
        time.sleep(100)
    return collective.size()


def test_a_function_is_run_again_with_the_ranks_there_are(tmp_path):
    script = tmp_path / "discover"
    script.write_text(f"#!/bin/sh\ncat {tmp_path}/hosts\n")
    script.chmod(0o755)
    (tmp_path / "hosts").write_text("localhost\n")
    arguments = {"slots": 3, "min_num_proc": 2, "max_num_proc": 3, "reset_limit": 1, "cooldown_range": (1, 2)}
    results = collective.run(fail_once, (str(tmp_path),), num_proc=3, host_discovery_script=str(script), **arguments)
    assert results == [2, 2]


def test_a_job_that_can_not_start_is_a_launch_error(capfd):
    with pytest.raises(LaunchError, match="0 results of 2"):
        collective.run(abs, (-3,), num_proc=2, hosts="localhost:1")
    assert "the hosts take at most 1 ranks" in capfd.readouterr().err


def test_ranks_that_are_late_end_the_job():
    started = time.time()
    with pytest.raises(LaunchError, match=r"within 0\.01 s"):
        collective.run(abs, (-3,), num_proc=2, start_timeout=0.01)
    assert time.time() - started < 30


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert collective.run(modes, (str(tmp_path),), num_proc=2) == [[0o700]] * 2
    assert list(tmp_path.glob("collective-run-*")) == []


def modes(folder):
    return [path.stat().st_mode & 0o777 for path in Path(folder).glob("collective-run-*")]


def test_ranks_that_do_not_see_the_folder_get_the_function_from_one_that_does(tmp_path):
    """As on two hosts: rank 1 is given a folder that isn't there."""
    (tmp_path / serve.FUNCTION).write_bytes(serve.pickled(Rank()))
    code = (
        "import os, sys, collective\nfrom pathlib import Path\nfrom collective import launched\n"
        "from collective.launch import serve\nrank = launched.detect(os.environ).rank\n"
        "folder = Path('/nowhere' if rank == 1 else sys.argv[1])\nserve.serve(folder, folder, by_messages=True)\n"
    )
    starter = [sys.executable, "-m", "collective", "run", "-np", "3", "--", sys.executable, "-c", code, str(tmp_path)]
    here = Path(__file__).parent
    result = run_command(starter, 60, PYTHONPATH=os.pathsep.join(map(str, (here, here.parent))))
    assert result.returncode == 0, result.stderr
    left = [pickle.loads((tmp_path / f"{serve.RESULT}.{rank}").read_bytes()) for rank in range(3)]
    assert left == [{0: (0, 3)}, {1: (1, 3)}, {2: (2, 3)}]
    nobody = run_command([*starter[:-1], "/nowhere"], 60)
    assert nobody.returncode != 0
    assert "one of the hosts is the machine that calls collective.run" in nobody.stderr


class Rank:
    def __call__(self):
        collective.init()
        return collective.rank(), collective.size()


def test_importing_the_library_does_not_load_what_runs_functions():
    code = (
        "import sys, collective\n"
        "print([n for n in sys.modules if n.startswith('collective.launch.')], 'mpi4py' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split("\n")[0] == "['collective.launch.function'] False"


def where():
    import socket

    collective.init()
    return collective.rank(), collective.cross_size(), socket.gethostname()


def test_a_function_runs_on_several_hosts(four_hosts):
    """Their ranks see the caller's folder here, but nobody knows that: all goes by messages."""
    hosts = ",".join(f"{address}:1" for address in four_hosts.addresses[:2])
    job = Job(
        ranks=2,
        options=(f"--hosts={hosts}", f"--launch-agent={four_hosts.agent}", "--env=OMPI_MCA_mpi_yield_when_idle=1"),
        hosts=hosts,
        hostfile=None,
        discovered=False,
        start_seconds=60,
        output=None,
        python=sys.executable,
        ssh_port=None,
        ssh_key=None,
    )
    results = job.call(where)
    assert results == [(0, 2, four_hosts.names[0]), (1, 2, four_hosts.names[1])]
