"""Which MPI a Python has, and that MPI's own launcher. Interpreters and launchers are shell scripts here."""

import json

import pytest

from collective.errors import LaunchError
from collective.launch import library


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def python(folder, vendor, version, *paths):
    return script(
        folder / "python", f"echo noise; echo '{json.dumps([vendor, version, [str(path) for path in paths]])}'"
    )


BANNERS = {
    "Open MPI": "mpirun (Open MPI) 5.0.11",
    "MPICH": "HYDRA build details:\n    Version:        5.0.2",
    "Intel MPI": "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626",
}


def test_the_launcher_beside_the_library_is_taken_and_others_on_path_are_not(tmp_path, monkeypatch):
    mine = script(tmp_path / "mpi/bin/mpirun", f"echo '{BANNERS['Open MPI']}'")
    script(tmp_path / "other/mpirun", f"echo '{BANNERS['Open MPI']}'")
    monkeypatch.setenv("PATH", str(tmp_path / "other"), prepend=":")
    found = library.find(python(tmp_path, "Open MPI", [5, 0, 11], tmp_path / "mpi/lib/x86/openmpi/libmpi.so.40.40.7"))
    assert (found.launcher, found.prefix, found.version) == (mine, str(tmp_path / "mpi"), (5, 0, 11))


@pytest.mark.parametrize("vendor", BANNERS)
def test_a_launcher_of_another_mpi_or_another_generation_is_passed_over(tmp_path, monkeypatch, vendor):
    versions = {"Open MPI": [5, 0, 11], "MPICH": [5, 0, 2], "Intel MPI": [2021, 18, 1]}
    names = library.LAUNCHERS[vendor].names
    strangers = [banner for name, banner in BANNERS.items() if name != vendor]
    for name, banner in zip(names, [*strangers, "mpirun (Open MPI) 4.1.4"], strict=False):
        script(tmp_path / "bin" / name, f"echo '{banner}'")
    right = script(tmp_path / "path" / names[-1], f"echo '{BANNERS[vendor]}'")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))  # not what is installed here, and may be right as well
    assert library.find(python(tmp_path, vendor, versions[vendor], tmp_path / "lib/libmpi.so.12")).launcher == right


def test_no_launcher_is_told_with_those_that_did_not_fit(tmp_path, monkeypatch):
    script(tmp_path / "bin/mpirun", "echo 'mpirun (Open MPI) 4.1.4'")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    interpreter = python(tmp_path, "Open MPI", [9, 0, 1], tmp_path / "lib/libmpi.so.40")
    with pytest.raises(LaunchError, match=r"launcher of Open MPI 9\.0\.1 .*bin/mpirun \(mpirun \(Open MPI\) 4\.1\.4\)"):
        library.find(interpreter)


def test_no_mpi4py_and_no_mpi_library_are_told_apart_and_both_say_what_to_install(tmp_path):
    missing = script(tmp_path / "a", "echo \"ModuleNotFoundError: No module named 'mpi4py'\" >&2; exit 1")
    with pytest.raises(LaunchError, match=r"mpi4py is installed for .*openmpi\]"):
        library.find(missing)
    without = script(tmp_path / "b", 'echo "RuntimeError: cannot load MPI library" >&2; exit 1')
    with pytest.raises(LaunchError, match=r"finds an MPI library\. Received: RuntimeError: cannot load.*openmpi\]"):
        library.find(without)
    with pytest.raises(LaunchError, match="can be started"):
        library.find(str(tmp_path / "nothing"))


def test_an_mpi_unknown_here_is_refused(tmp_path):
    with pytest.raises(LaunchError, match=r"Open MPI, MPICH, Intel MPI\. Received: Cray MPI 8\.1"):
        library.find(python(tmp_path, "Cray MPI", [8, 1], "/opt/libmpi.so"))
