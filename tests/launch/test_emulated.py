"""The emulated hosts clean up after themselves."""

import signal
import subprocess
import sys
from pathlib import Path

import emulated
import pytest

import collective.chaos.emulated
from collective.errors import LaunchError

if emulated.obstacle():
    pytest.skip(f"hosts can't be emulated: {emulated.obstacle()}", allow_module_level=True)

KILLED = """
import os, signal, sys
from pathlib import Path
import emulated
with emulated.hosts(1, Path(sys.argv[1])) as hosts:
    print(*hosts.names, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left():
    listed = [subprocess.run(["ip", *what], capture_output=True, text=True).stdout for what in (["netns"], ["link"])]
    return "".join(listed)


def test_hosts_are_gone_after_an_error_even_with_processes_on_them(tmp_path):
    with pytest.raises(ZeroDivisionError), emulated.hosts(2, tmp_path) as hosts:
        command = [str(hosts.agent), "-x", hosts.addresses[1], "hostname; exec sleep 100"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == f"{hosts.names[1]}\n"
        raise ZeroDivisionError
    assert process.wait(10) == -signal.SIGKILL
    process.stdout.close()
    assert hosts.names[0].removesuffix("h1") not in left()


def test_hosts_of_a_killed_run_are_removed_by_the_next(tmp_path):
    here = Path(__file__).parent
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=here, capture_output=True, text=True)
    (name,) = killed.stdout.split()
    assert name in left()
    with emulated.hosts(1, tmp_path):
        assert name.removesuffix("h1") not in left()


def test_emulations_side_by_side_share_no_network_and_say_when_there_is_none_left(tmp_path, monkeypatch):
    # Bridges with names of their own, so that it doesn't count who else runs here.
    monkeypatch.setattr(collective.chaos.emulated, "BRIDGE", "cltest{}")
    monkeypatch.setattr(collective.chaos.emulated, "NETWORKS", ("198.19.254", "198.19.255"))
    with emulated.hosts(1, tmp_path) as one, emulated.hosts(1, tmp_path) as other:
        assert one.network != other.network
        with pytest.raises(LaunchError, match="a bridge of their own.*File exists"), emulated.hosts(1, tmp_path):
            pass
    with emulated.hosts(1, tmp_path) as again:
        assert again.network in {one.network, other.network}


def test_a_network_is_given_back_when_the_hosts_can_not_be_brought_up(tmp_path, monkeypatch):
    monkeypatch.setattr(collective.chaos.emulated, "BRIDGE", "cltest{}")
    with pytest.raises(FileNotFoundError), emulated.hosts(1, tmp_path / "no such folder"):
        pass
    assert "cltest" not in left()
