"""Hosts that come and go: asked of a script, left out for a while, waited for, and told to a job that runs."""

import os
import sys
import threading
import time

import pytest
from jobs import run

from collective.errors import LaunchError
from collective.launch import discovery
from collective.launch.cooldown import Cooldown
from collective.launch.fleet import Fleet, Sizes
from collective.launch.hostfile import Host

SECONDS = 20


@pytest.fixture
def program(tmp_path):
    """Write a program in sh."""

    def make(text, name="discover"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture
def hosts_that_answer(program, tmp_path):
    """A program in place of ssh that reaches the hosts which have a file in a folder."""
    folder = tmp_path / "up"
    folder.mkdir()
    return folder, program(f'[ -e {folder}/"$1" ]', "agent")


def names(hosts):
    return [f"{host.name}:{host.slots}" for host in hosts]


def test_what_the_script_prints_is_read_as_horovod_reads_it(program):
    assert names(discovery.ask(program("echo a:2; echo b; echo; echo 10.0.0.7:1"), slots=4)) == [
        "a:2",
        "b:4",
        "10.0.0.7:1",
    ]
    assert discovery.ask(program("true"), slots=1) == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo no cloud >&2; exit 3", "exit status 3: no cloud"),
        ("echo -- -oProxyCommand=x:2", "host name"),
        ("echo 'a:two'", "whole number"),
        ("sleep 60 & sleep 60", "nothing within 0.5 s"),
        ("printf '\\377\\n'", "codec"),
    ],
)
def test_a_script_that_fails_is_an_error_that_tells_how(program, text, told, monkeypatch):
    monkeypatch.setattr(discovery, "SECONDS", 0.5 if "sleep" in text else SECONDS)
    script = program(text)
    with pytest.raises(LaunchError, match=told) as caught:
        discovery.ask(script, slots=1)
    assert script in str(caught.value)


def test_a_script_that_hangs_takes_its_children_along(program, tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "SECONDS", 0.5)
    child = tmp_path / "child"
    with pytest.raises(LaunchError):
        discovery.ask(program(f"sleep 61 & echo $! > {child}; wait"), slots=1)
    deadline = time.monotonic() + SECONDS
    while os.path.exists(f"/proc/{child.read_text().strip()}/exe") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child.read_text().strip()}/exe")


def test_a_host_is_left_out_for_longer_each_time_and_then_forgiven():
    now = [0.0]
    cooldown = Cooldown(10, 35, clock=lambda: now[0])
    both = (Host("a"), Host("b"))
    for seconds in (10, 20, 35, 35):
        assert cooldown.over(both) == both
        assert cooldown.blame("a") == seconds
        now[0] += seconds - 1
        assert cooldown.over(both) == (Host("b"),)
        now[0] += 1
    assert cooldown.over(both) == both
    assert Cooldown().blame("a") == 0  # nobody asked for it


def test_a_start_waits_for_its_size_and_a_restart_for_the_fewest(hosts_that_answer, program, capsys):
    folder, agent = hosts_that_answer
    listed = (Host("a", 2), Host("b", 2), Host("c", 2))
    fleet = Fleet(lambda: listed, Sizes(first=4, fewest=2, most=5, seconds=SECONDS), agent, discovered=True)
    (folder / "a").touch()
    later = threading.Timer(0.5, (folder / "c").touch)
    later.start()
    assert fleet.gather(again=False) == (4, (Host("a", 2), Host("c", 2)))
    later.join()
    assert "waiting up to 20 s for 4 slots; hosts: a:2" in capsys.readouterr().err
    (folder / "b").touch()
    assert fleet.gather(again=False) == (5, listed)
    (folder / "a").unlink()
    (folder / "b").unlink()
    assert fleet.gather(again=True) == (2, (Host("c", 2),))
    assert fleet.used == {"a", "b", "c"}


def test_waiting_for_hosts_has_an_end(hosts_that_answer):
    fleet = Fleet(lambda: (Host("a", 2),), Sizes(2, 2, 2, seconds=1), hosts_that_answer[1], discovered=True)
    with pytest.raises(LaunchError, match="at least 2 ranks.*none that answers, after 1 s"):
        fleet.gather(again=False)


def test_a_script_that_never_works_fails_the_start_at_once(program):
    script = program("exit 4")
    fleet = Fleet(lambda: discovery.ask(script, 1), Sizes(2, 2, 2, seconds=SECONDS), discovered=True)
    began = time.monotonic()
    with pytest.raises(LaunchError, match="exit status 4"):
        fleet.gather(again=False)
    assert time.monotonic() - began < SECONDS / 2


def test_named_hosts_are_taken_as_they_are_at_first_and_asked_later(hosts_that_answer):
    folder, agent = hosts_that_answer
    named = (Host("a", 2), Host("b", 2))
    fleet = Fleet(lambda: named, Sizes(4, 1, 4, seconds=SECONDS), agent)
    assert fleet.gather(again=False) == (4, named)
    (folder / "b").touch()
    assert fleet.gather(again=True) == (2, (Host("b", 2),))


def test_a_job_hears_of_hosts_as_long_as_they_would_change_its_places(hosts_that_answer, monkeypatch, capsys):
    monkeypatch.setattr("collective.launch.fleet.LOOK_SECONDS", 0.05)
    monkeypatch.setattr("collective.launch.fleet.SILENT_SECONDS", 0.1)
    folder, agent = hosts_that_answer
    listed = [(Host("a", 2), Host("b", 2))]

    def tell():
        if not listed[0]:
            raise LaunchError("the cloud tells its hosts")
        return listed[0]

    fleet = Fleet(tell, Sizes(2, 1, 4, seconds=SECONDS), agent, discovered=True)
    heard = []

    def hear(hosts, others):
        heard.append((names(hosts), others))

    def hears(*news):
        deadline = time.monotonic() + SECONDS
        while heard[-1:] != [news] and time.monotonic() < deadline:
            time.sleep(0.05)
        return heard[-1] == news

    def hears_nothing():
        heard.clear()
        time.sleep(0.5)
        return not heard

    (folder / "a").touch()
    (folder / "c").touch()
    ranks, hosts = fleet.gather(again=False)
    with fleet.watched(ranks, hosts, hear):
        assert hears_nothing()  # b is listed, but doesn't answer
        (folder / "b").touch()
        assert hears(["a:2", "b:2"], True)
        assert not hears_nothing()  # it is said again, for ranks that come later
        listed[0] = (Host("a", 2), Host("a2", 2))
        assert hears(["a:2"], False)
        assert hears_nothing()
        listed[0] = ()
        assert hears_nothing()  # trouble with the script is no news of hosts
        listed[0] = (Host("b", 2),)
        assert hears(["b:2"], True)
    four = (Host("a", 2), Host("b", 2))
    listed[0] = (*four, Host("c", 2))
    with fleet.watched(4, four, hear):
        assert hears_nothing()  # the job has its four already
    assert capsys.readouterr().err.count("the cloud tells its hosts") == 1


ELASTIC = """
import sys, time, numpy as np, collective as c
from collective.common.elastic import ObjectState, run

hosts, steps = sys.argv[1], 60
c.init()

@run
def train(state):
    if c.rank() == 0: print("from step", state.step, "on", c.size(), "ranks", flush=True)
    start = state.step
    while state.step < steps:
        own = range(c.rank(), 6, c.size())
        shards = [np.random.default_rng([state.step, shard]).integers(-99, 99, 1000) for shard in own]
        state.weights = state.weights + c.allreduce(np.sum(shards, axis=0).astype(np.float64), c.Sum)
        if c.rank() == 0 and state.step == start + 3:
            open(hosts, "w").write("localhost:1" if start == 0 else "localhost:3")
        state.step += 1
        state.commit()
        time.sleep(0.15)
    if c.rank() == 0: print("weights", state.weights.tobytes().hex(), flush=True)

train(ObjectState(step=0, weights=np.zeros(1000)))
"""


def expected(steps=60):
    import numpy as np

    draws = [
        np.random.default_rng([step, shard]).integers(-99, 99, 1000) for step in range(steps) for shard in range(6)
    ]
    return np.sum(draws, axis=0).astype(np.float64).tobytes().hex()


def test_a_job_shrinks_and_grows_back_with_its_hosts_and_loses_no_step(tmp_path, program):
    """Two restarts are asked for by the job itself, which hears from the supervisor; none of them is a failure."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost:3")
    script = tmp_path / "train.py"
    script.write_text(ELASTIC)
    options = ["--host-discovery-script", program(f"cat {hosts}"), "--min-np", "1", "--max-np", "3", "--restarts", "0"]
    job = run(
        [
            sys.executable,
            "-m",
            "collective",
            "run",
            "-np",
            "3",
            *options,
            "--",
            sys.executable,
            str(script),
            str(hosts),
        ],
        timeout=200,
    )
    assert job.returncode == 0, job.stderr
    starts = [line.split() for line in job.stdout.splitlines() if line.startswith("from step")]
    assert [line[4] for line in starts] == ["3", "1", "3"]
    assert 4 <= int(starts[1][2]) < int(starts[2][2]) < 60
    assert job.stdout.split("weights ")[1].strip() == expected()
    assert job.stderr.count("started again, as it has asked, on") == 2
