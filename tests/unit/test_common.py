"""Horovod's helpers under their old names: what they answer is true here."""

import os
import subprocess
import sys
import threading

import pytest

import collective
from collective import topology
from collective.common import exceptions, util
from collective.common.basics import HorovodBasics
from collective.common.process_sets import ProcessSet, global_process_set
from collective.runner.common.util.env import get_env_rank_and_size
from collective.runner.util.threads import in_thread


def test_every_error_of_the_library_is_caught_by_horovods_name():
    with pytest.raises(exceptions.HorovodInternalError):
        collective.init(process_sets=[[7]])
    assert not collective.is_initialized()


def test_horovods_errors_are_raised_as_their_users_raise_them():
    assert str(exceptions.HorovodInternalError()) == ""
    assert "lost" in str(exceptions.HorovodInternalError("lost"))
    assert exceptions.HostsUpdatedInterrupt(True).skip_sync is True
    error = exceptions.HorovodVersionMismatchError("torch", "2.1", "2.0")
    assert isinstance(error, ImportError)
    assert (error.name, error.version, error.installed_version) == ("torch", "2.1", "2.0")
    assert str(error) == exceptions.get_version_mismatch_message("torch", "2.1", "2.0")


def test_mpi_is_built_where_mpi4py_finds_a_library_and_not_elsewhere():
    code = "from collective.common import util; print(util.mpi_built(), 'mpi4py.MPI' in __import__('sys').modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True False\n"
    without = {**os.environ, "MPI4PY_LIBMPI": "/nowhere/libmpi.so"}
    assert subprocess.run(command, capture_output=True, text=True, check=True, env=without).stdout == "False False\n"


def test_nothing_else_is_built():
    others = [util.gloo_built, util.ddl_built, util.ccl_built, util.cuda_built, util.rocm_built, util.nccl_built]
    assert [built() for built in others] == [0] * 6
    assert type(util.nccl_built()) is int


def test_an_extension_is_a_front_end_whose_framework_is_installed(capsys):
    assert util.extension_available("mxnet", verbose=True) is False
    assert "mxnet can be used: no" in capsys.readouterr().out
    installed = subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0
    assert util.extension_available("torch") is installed


def test_a_cached_function_runs_once_for_each_argument():
    calls = []

    @util._cache
    def double(number, verbose=False):
        calls.append(number)
        return 2 * number

    assert [double(1), double(1), double(2), double(1, verbose=True)] == [2, 2, 4, 2]
    assert calls == [1, 2, 1]


def test_variables_are_set_for_a_while_only(monkeypatch):
    monkeypatch.setenv("H4_OLD", "before")
    monkeypatch.delenv("H4_NEW", raising=False)
    with util.env(H4_OLD="now", H4_NEW="now", H4_NONE=None):
        assert (os.environ["H4_OLD"], os.environ["H4_NEW"], "H4_NONE" in os.environ) == ("now", "now", False)
    assert (os.environ["H4_OLD"], "H4_NEW" in os.environ) == ("before", False)


def test_average_still_says_the_operation_but_not_beside_op():
    operation = util.get_average_backwards_compatibility_fun(collective)
    assert operation(None, None) is collective.Average
    assert operation(collective.Max, None) is collective.Max
    with pytest.warns(DeprecationWarning, match="average"):
        assert operation(None, False) is collective.Sum
    with pytest.raises(ValueError, match="once"):
        operation(collective.Average, True)


def test_powers_of_two():
    assert [number for number in range(17) if util.num_rank_is_power_2(number)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_a_list_is_cut_into_parts_of_nearly_one_size(parts):
    cut = util.split_list(list(range(5)), parts)
    assert [item for part in cut for item in part] == list(range(5))
    assert len(cut) == parts
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_iterables():
    assert [util.is_iterable(value) for value in ([], "text", {}, 3, None)] == [True, True, True, False, False]


def test_versions_compare_as_numbers_and_a_candidate_comes_before_its_release():
    newer = util.is_version_greater_equal_than
    assert [newer("2.21.0", "2.6.0"), newer("2.6", "2.6.0"), newer("2.5.9", "2.6.0")] == [True, True, False]
    assert [newer("2.6.0rc1", "2.6.0"), newer("2.6.0+cpu", "2.6.0")] == [False, True]
    for wrong in [(2.6, "2.6.0"), ("2.6.0", "2.6"), ("new", "2.6.0")]:
        with pytest.raises(ValueError):
            newer(*wrong)


def test_basics_are_the_librarys_own_functions():
    basics = HorovodBasics(__file__, "mpi_lib")
    with pytest.raises(ValueError, match=r"collective.init\(\)"):
        basics.mpi_threads_supported()
    with pytest.raises(ValueError):
        basics.is_homogeneous()
    assert basics.mpi_enabled() is False
    basics.init()
    try:
        assert (basics.rank(), basics.size(), basics.is_homogeneous()) == (0, 1, True)
        assert basics.mpi_threads_supported() is True
        assert basics._get_process_set_ids_and_ranks() == {0: [0]}
        assert isinstance(global_process_set, ProcessSet)
    finally:
        basics.shutdown()


@pytest.mark.parametrize(("hosts", "alike"), [("abab", True), ("aab", False), ("abbccc", False), ("a", True)])
def test_hosts_are_homogeneous_when_all_have_the_same_number_of_ranks(hosts, alike):
    assert {topology.from_hosts(rank, hosts).homogeneous for rank in range(len(hosts))} == {alike}


def test_rank_and_size_are_those_of_the_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("HOROVOD_", "OMPI_", "PMI_", "SLURM_"))]:
        monkeypatch.delenv(name)
    assert get_env_rank_and_size() == (0, 1)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    with pytest.raises(RuntimeError, match="OMPI_COMM_WORLD_SIZE"):
        get_env_rank_and_size()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert get_env_rank_and_size() == (2, 4)


def test_a_function_runs_in_a_thread():
    seen = []
    thread = in_thread(lambda value: seen.append((value, threading.current_thread().daemon)), (3,), name="reader")
    thread.join(10)
    assert (seen, thread.name) == ([(3, True)], "reader")
    with pytest.raises(ValueError, match="tuple"):
        in_thread(print, "text")


def test_a_silent_thread_swallows_what_its_function_raises(capfd):
    in_thread(lambda: 1 / 0, silent=True).join(10)
    assert capfd.readouterr().err == ""
