"""What is found out about hosts before a job starts."""

import socket

import pytest

from collective.errors import LaunchError
from collective.launch import machines
from collective.launch.hostfile import Host, parse


def test_all_hosts_that_cannot_be_found_are_named_with_their_lines(monkeypatch):
    monkeypatch.setattr(machines.shutil, "which", lambda name: f"/usr/bin/{name}")
    hosts = parse("localhost slots=1\nnode1.invalid slots=2\n127.0.0.2\nnode2.invalid\n", source="hosts.txt")
    with pytest.raises(LaunchError) as error:
        machines.check(hosts)
    assert "Received: node1.invalid (hosts.txt, line 2), node2.invalid (hosts.txt, line 4)." in str(error.value)


def test_without_ssh_other_hosts_are_out_of_reach_but_this_machine_is_not(monkeypatch):
    monkeypatch.setattr(machines.shutil, "which", lambda name: None)
    machines.check([Host("localhost"), Host(socket.gethostname())])
    with pytest.raises(LaunchError, match="no ssh on PATH.*--launch-agent"):
        machines.check([Host("127.0.0.2")])


def test_an_alias_of_ssh_is_known(monkeypatch, tmp_path):
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho user me\necho hostname 10.0.0.1\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    machines.check([Host("gpu1.invalid")])


def test_the_address_towards_a_host_and_its_interface():
    assert machines.address_towards([Host("localhost"), Host("127.0.0.2")]) == "127.0.0.1"
    assert machines.interface_of("127.0.0.1") == "lo"
    assert machines.address_towards([Host("node1.invalid")]) == ""
    assert machines.interface_of("192.0.2.1") == ""


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "PBS_NODEFILE"])
def test_an_allocation_is_seen(name):
    assert machines.allocated({name: "1"})
    assert not machines.allocated({"PATH": "/bin"})
