"""``collective install-horovod`` without the two minutes of compiling."""

import argparse
import os
import sys
from pathlib import Path

import pytest

from collective.__main__ import main
from collective.errors import LaunchError
from collective.launch import install_horovod
from collective.launch.library import Library

MPI = Library("Open MPI", (5, 0, 11), "/opt/mpi/lib/libmpi.so.40")


@pytest.fixture
def toolchain(tmp_path):
    mpicxx = tmp_path / "bin" / "mpicxx"
    return install_horovod.Toolchain("/usr/bin/c++", "2.21.0", tmp_path / "include", MPI, mpicxx)


@pytest.fixture
def working(monkeypatch):
    """Whether Horovod works: as often as asked; nothing is started."""
    answers = []
    monkeypatch.setattr(install_horovod, "_is_working", lambda show=False: answers.pop(0))
    return answers


@pytest.fixture
def pip(monkeypatch, toolchain):
    """What pip was asked; a wheel appears where one is built."""
    calls = []

    def record(arguments, log, phase, environment=None):
        calls.append(list(arguments))
        if "--wheel-dir" in arguments:
            folder = Path(arguments[arguments.index("--wheel-dir") + 1])
            folder.mkdir(parents=True)
            (folder / "horovod-0.28.1-cp311.whl").touch()

    monkeypatch.setattr(install_horovod, "_pip", record)
    monkeypatch.setattr(install_horovod, "find_toolchain", lambda: toolchain)
    monkeypatch.setattr(install_horovod, "_is_there", lambda name: True)
    return calls


def test_needs_are_those_of_the_extra():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert tuple(project["optional-dependencies"]["horovod"]) == install_horovod.PIP_NEEDS


def test_what_is_installed_stays(working, pip, capsys):
    working.append(True)
    assert main(["install-horovod"]) == 0
    assert "is installed and works; --force" in capsys.readouterr().out
    assert pip == []


def test_a_kept_wheel_is_used_again(working, pip, tmp_path, capsys):
    working.extend([False, True, True])
    assert main(["install-horovod", "--keep-wheel", str(tmp_path / "wheels")]) == 0
    assert [words[0] for words in pip] == ["wheel", "install"]
    assert main(["install-horovod", "--force", "--keep-wheel", str(tmp_path / "wheels")]) == 0
    assert [words[0] for words in pip] == ["wheel", "install", "install"]
    assert "done." in capsys.readouterr().out


def test_a_wheel_is_kept_for_one_toolchain_only(toolchain):
    others = [
        install_horovod.Toolchain("/usr/bin/c++", "2.20.0", toolchain.include, MPI, toolchain.mpicxx),
        install_horovod.Toolchain("/usr/bin/c++", "2.21.0", Path("/elsewhere"), MPI, toolchain.mpicxx),
        install_horovod.Toolchain(
            "/usr/bin/c++", "2.21.0", toolchain.include, Library("MPICH", (4, 3), ""), toolchain.mpicxx
        ),
    ]
    assert len({toolchain.key, *(other.key for other in others)}) == 4
    assert os.sep not in toolchain.key


def test_a_build_that_does_not_import_is_an_error(working, pip, capsys):
    working.extend([False, False])
    assert main(["install-horovod"]) == 2
    assert "can be imported and has MPI and Gloo" in capsys.readouterr().err


def test_the_build_finds_headers_wrapper_and_jobs(toolchain, tmp_path):
    inherited = {"PATH": "/usr/bin", "CPLUS_INCLUDE_PATH": "/mine", "HOME": "/home/me"}
    environment = install_horovod.build_environment(toolchain, tmp_path / "headers", inherited)
    assert environment["PATH"].split(os.pathsep)[0] == str(toolchain.mpicxx.parent)
    assert environment["PATH"].endswith("/usr/bin")
    assert environment["CPLUS_INCLUDE_PATH"].split(os.pathsep)[-2:] == [str(tmp_path / "headers"), "/mine"]
    headers = [path for path in (tmp_path / "headers").rglob("*.h") if path.stat().st_size == 0]
    assert len(headers) == 5
    assert environment["HOROVOD_WITH_MPI"] == environment["HOROVOD_WITH_GLOO"] == "1"
    assert environment["MAKEFLAGS"] == f"-j{len(os.sched_getaffinity(0))}"
    kept = install_horovod.build_environment(toolchain, tmp_path / "headers", {"MAKEFLAGS": "-j1"})
    assert kept["MAKEFLAGS"] == "-j1"


@pytest.mark.parametrize(("program", "text"), [("c++", r"needs a C\+\+ compiler"), ("make", "needs make")])
def test_a_missing_tool_is_named_with_its_package(program, text, monkeypatch):
    programs = {"c++": "/usr/bin/c++", "make": "/usr/bin/make"}
    del programs[program]
    monkeypatch.setattr(install_horovod.shutil, "which", lambda name, path=None: programs.get(name))
    with pytest.raises(LaunchError, match=text) as caught:
        install_horovod.find_toolchain()
    assert "Received: no " in str(caught.value)
    assert "apt-get install g++ make" in str(caught.value)


def test_missing_tensorflow_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(install_horovod.shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    find_spec = install_horovod.importlib.util.find_spec
    monkeypatch.setattr(
        install_horovod.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    with pytest.raises(LaunchError, match=r"collective-training\[tensorflow\]"):
        install_horovod.find_toolchain()


def test_missing_mpicxx_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(install_horovod.shutil, "which", lambda name, path=None: None)
    with pytest.raises(LaunchError, match="libopenmpi-dev") as caught:
        install_horovod._find_mpicxx(MPI)
    assert "Open MPI 5.0.11" in str(caught.value)


def test_the_nearest_mpicxx_counts(monkeypatch):
    there = {"/opt/mpi/bin": "/opt/mpi/bin/mpicxx", None: "/usr/bin/mpicxx"}
    monkeypatch.setattr(
        install_horovod.shutil, "which", lambda name, path=None: there.get(path) if name == "mpicxx" else None
    )
    assert install_horovod._find_mpicxx(MPI) == Path("/opt/mpi/bin/mpicxx")


def test_a_failing_step_shows_the_end_of_its_log_and_keeps_it(monkeypatch, tmp_path):
    monkeypatch.setattr(install_horovod.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(LaunchError, match="No such file|not found|Could not find|ERROR") as caught, \
            install_horovod._log_file() as log:  # fmt: skip
        install_horovod._pip(["install", "--no-index", "./no-such-folder/x.whl"], log, "installing")
    assert str(log) in str(caught.value)
    assert sys.executable in str(caught.value)
    assert log.read_text()


def test_options_are_told_apart():
    parser = argparse.ArgumentParser()
    install_horovod.add_arguments(parser)
    arguments = parser.parse_args(["--force", "--keep-wheel", "wheels"])
    assert arguments.force
    assert arguments.keep_wheel == Path("wheels")
