"""What ranks and their supervisor tell each other: signed, counted, of limited length; and what is made of it."""

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest

from collective.errors import TransportError
from collective.launch import verdict
from collective.launch.monitor import Monitor, Rank
from collective.launch.watch import Watch
from collective.monitor import activity
from collective.monitor.channel import HEAD, LONGEST, Channel, new_key
from collective.settings import Settings

opened = []


@pytest.fixture(autouse=True)
def close_all():
    yield
    while opened:
        opened.pop().close()


def pair():
    opened.extend(socket.socketpair())
    return opened[-2:]


def ends(key, other_key=None):
    """Both ends of a connection, once they have agreed."""
    ours, theirs = pair()
    for end in (ours, theirs):
        end.settimeout(5)
    made = []
    thread = threading.Thread(target=lambda: made.append(Channel(theirs, other_key or key, is_supervisor=False)))
    thread.start()
    supervisor = Channel(ours, key, is_supervisor=True)
    thread.join()
    return supervisor, made[0], ours, theirs


def test_messages_arrive_in_both_directions_and_the_end_is_seen():
    supervisor, rank, *_ = ends(new_key())
    rank.send("status", step=3, operation="allreduce 'a'")
    supervisor.send("stacks")
    assert supervisor.receive() == {"kind": "status", "step": 3, "operation": "allreduce 'a'"}
    assert rank.receive() == {"kind": "stacks"}
    rank.close()
    assert supervisor.receive() is None


def test_a_message_of_who_has_another_key_is_refused():
    supervisor, rank, *_ = ends(new_key(), new_key())
    rank.send("status")
    with pytest.raises(TransportError, match="a wrong signature"):
        supervisor.receive()


@pytest.mark.parametrize("reflected", [False, True])
def test_a_message_that_is_repeated_or_sent_back_is_refused(reflected):
    supervisor, rank, ours, theirs = ends(new_key())
    rank.send("status")
    copied = ours.recv(2**16, socket.MSG_PEEK)
    assert supervisor.receive() == {"kind": "status"}
    (ours if reflected else theirs).sendall(copied)
    with pytest.raises(TransportError, match="a wrong signature"):
        (rank if reflected else supervisor).receive()


def test_a_length_is_looked_at_before_anything_is_read():
    supervisor, _, _, theirs = ends(new_key())
    theirs.sendall(HEAD.pack(LONGEST + 1, bytes(32)))
    began = time.monotonic()
    with pytest.raises(TransportError, match="at most"):
        supervisor.receive()
    assert time.monotonic() - began < 1


def joined(monitor, number, **status):
    """A connection of a rank to a monitor."""
    address, port, key = next(iter(monitor.variables.values())).rsplit(":", 2)
    opened.append(socket.create_connection((address, int(port)), 5))
    channel = Channel(opened[-1], bytes.fromhex(key), is_supervisor=False)
    channel.send(
        "hello",
        name=f"rank {number}",
        launched_as=f"process {number} of 3",
        number=number,
        host=activity.place()["host"],
        process=1000 + number,
    )
    assert channel.receive() == {"kind": "welcome"}
    channel.send("joined", rank=number, size=3)
    channel.send("status", **{**activity.now(), **status})
    return channel


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def monitor():
    monitor = Monitor()
    yield monitor
    monitor.close()


def test_strangers_are_not_listened_to(monitor):
    address, port, _ = next(iter(monitor.variables.values())).rsplit(":", 2)
    with socket.create_connection((address, int(port)), 5) as stranger:
        stranger.sendall(bytes(32) + struct.pack("!I", 20) + bytes(52))
        stranger.settimeout(5)
        while stranger.recv(1024):
            pass
    assert not monitor.ranks


def test_a_stranger_is_not_listened_to_for_long_however_often_it_says_a_little(monitor, monkeypatch):
    monkeypatch.setattr("collective.launch.monitor.SECONDS", 0.5)
    address, port, _ = next(iter(monitor.variables.values())).rsplit(":", 2)
    with socket.create_connection((address, int(port)), 5) as stranger:
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 10:
                stranger.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - began < 5


def test_the_rank_that_ended_first_without_a_word_is_to_blame(monitor):
    channels = [joined(monitor, number, operation=f"operation {number}") for number in range(3)]
    until(lambda: len(monitor.ranks) == 3 and all(rank.said for rank in monitor.ranks))
    channels[0].send("left")
    channels[0].close()
    until(lambda: sum(rank.ended is not None for rank in monitor.ranks) == 1)
    for channel in (channels[2], channels[1]):
        channel.close()
    until(lambda: all(rank.ended for rank in monitor.ranks))
    found = verdict.judge(monitor.ranks, 137, 3)
    assert (found["rank"], found["operation"], found["cause"]) == (2, "operation 2", "ended by SIGKILL")
    assert "rank 2 on host" in verdict.sentence(found)
    assert "for lack of memory" in verdict.judge(monitor.ranks, 137, 3, out_of_memory=True)["cause"]


def test_a_rank_that_others_gave_up_on_is_to_blame_and_not_they(monitor):
    channels = [joined(monitor, number, waited_seconds=9 * (number == 1)) for number in range(3)]
    until(lambda: len(monitor.ranks) == 3 and all(rank.said for rank in monitor.ranks))
    channels[0].send("failure", cause="every rank takes part", error="TransportError", operation="barrier")
    until(lambda: any(rank.failure for rank in monitor.ranks))
    found = verdict.judge(monitor.ranks, 1, 3)
    assert found["rank"] == 2
    assert found["cause"].startswith("it was late or had stopped, and rank 0 on host")


def test_a_rank_that_is_woken_to_be_ended_is_to_blame_whatever_it_says_then(monitor):
    channels = [joined(monitor, number, operation="barrier") for number in range(3)]
    until(lambda: len(monitor.ranks) == 3 and all(rank.said for rank in monitor.ranks))
    for number in (0, 2):
        told = {"cause": "in time", "error": "TransportError", "operation": "barrier", "waits_for": "rank 1"}
        channels[number].send("failure", **told)
        until(lambda number=number: monitor.ranks[number].failure)
    channels[1].send("status", **{**activity.now(), "waited_seconds": 1, "waits_for": "rank 2", "operation": "end"})
    until(lambda: monitor.ranks[1].said["waited_seconds"])
    found = verdict.judge(monitor.ranks, 1, 3)
    assert (found["rank"], found["operation"]) == (1, "barrier")
    # Had it stopped while it waited, it would also find that its time is over.
    channels[1].send("failure", **{**told, "waits_for": "rank 2"})
    until(lambda: monitor.ranks[1].failure)
    stopped = monitor.ranks[1]
    stopped.statuses = [(when - 60, {**said, "waits_for": "rank 2"}) for when, said in stopped.statuses]
    assert verdict.judge(monitor.ranks, 1, 3)["rank"] == 1


def test_of_ranks_that_wait_for_one_another_the_last_is_to_blame(monitor):
    channels = [joined(monitor, 0, waited_seconds=9, waits_for="rank 2"), joined(monitor, 1)]
    # It hung while it waited itself: what it said last says so for ever.
    joined(monitor, 2, waited_seconds=9, waits_for="rank 0")
    until(lambda: len(monitor.ranks) == 3 and all(rank.said for rank in monitor.ranks))
    channels[1].send("failure", cause="in time", error="TransportError", operation="barrier", waits_for="rank 0")
    until(lambda: any(rank.failure for rank in monitor.ranks))
    found = verdict.judge(monitor.ranks, 1, 3)
    assert found["rank"] == 2


class Proxy:
    """Passes on what two ends of a connection say, until it is cut, as by a firewall."""

    def __init__(self, port):
        self.port, self.ends, self.made = port, [], 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.port))
                self.ends += near, far
                self.made += 1
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self.pass_on, args=(source, target), daemon=True).start()

    def pass_on(self, source, target):
        with contextlib.suppress(OSError):
            while part := source.recv(4096):
                target.sendall(part)
            target.shutdown(socket.SHUT_RDWR)

    def cut(self):
        for end in list(self.ends):  # not one that is made anew meanwhile
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()


RANK = """
import sys
from collective.monitor import link
link.connect(sys.argv[1], "process 1 of 2", 1)
link.tell("joined", rank=1, size=2)
sys.stdin.readline()
link.tell("left")
sys.stdin.readline()
"""


@pytest.fixture
def rank_by_proxy(monitor):
    """A process that has joined, and its connection's proxy."""
    _, port, key = next(iter(monitor.variables.values())).rsplit(":", 2)
    proxy = Proxy(int(port))
    command = [sys.executable, "-c", RANK, f"{proxy.address}:{key}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        until(lambda: monitor.ranks and monitor.ranks[0].rank == 1)
        yield process, proxy
        process.kill()
    proxy.close()


def test_a_connection_that_breaks_is_made_again_and_what_counts_is_told_again(monitor, rank_by_proxy):
    process, proxy = rank_by_proxy
    rank = monitor.ranks[0]
    proxy.cut()
    process.stdin.write("\n")  # it leaves while there is no connection
    process.stdin.flush()
    until(lambda: rank.left and rank.ended is None)
    proxy.cut()
    until(lambda: proxy.made == 3 and rank.ended is None)
    assert monitor.ranks == [rank]
    assert (rank.rank, rank.left, process.poll()) == (1, True, None)


def test_a_rank_whose_supervisor_is_gone_for_good_ends(rank_by_proxy):
    process, proxy = rank_by_proxy
    proxy.close()
    assert process.wait(10) == -signal.SIGTERM


def test_ranks_that_never_came_are_counted(monitor):
    joined(monitor, 0)
    until(lambda: monitor.ranks and monitor.ranks[0].said)
    monitor.ranks[0].rank = None  # still in init
    found = verdict.judge(monitor.ranks, 1, 3)
    assert found["rank"] is None
    assert verdict.sentence(found) == "processes 1, 2 of 3 never came to init()."


def test_a_report_says_all_in_json(monitor, tmp_path):
    joined(monitor, 1).close()
    until(lambda: monitor.ranks and monitor.ranks[0].ended)
    found = verdict.judge(monitor.ranks, 139, 1)
    file = verdict.write({"status": 139, "attempts": [found]}, str(tmp_path / "report.json"))
    told = json.loads(file.read_text())
    assert told["attempts"][0]["cause"] == "ended by SIGSEGV"
    assert {"rank", "host", "process", "step", "operation", "memory_high_water"} <= told["attempts"][0].keys()
    assert verdict.write({}, str(tmp_path / "no" / "folder")) is None


def test_a_late_rank_is_named_once_with_its_stacks(monitor):
    lines = []
    watch = Watch(monitor, 2, Settings(stall_seconds=0.5), lines.append)
    waiting = joined(monitor, 0, waited_seconds=1.0, operation="allreduce 'a'")
    late = joined(monitor, 1, waited_seconds=0)
    until(lambda: len(monitor.ranks) == 2 and all(rank.said for rank in monitor.ranks))
    assert not watch.look()
    assert late.receive()["kind"] == "stacks"
    late.send("stacks", stacks="in load_batch", **activity.now())
    until(lambda: any(rank.stacks for rank in monitor.ranks))
    for _ in range(3):
        watch.look()
    assert len(lines) == 1
    assert lines[0].startswith("rank 1 on host ")
    assert "has waited 1 s in allreduce 'a'" in lines[0]
    assert lines[0].endswith("in load_batch")
    waiting.close()


def test_a_host_that_is_not_heard_of_ends_the_job(monitor):
    watch = Watch(monitor, 1, Settings(stall_seconds=0, lost_seconds=20), print)
    joined(monitor, 0)
    until(lambda: monitor.ranks and monitor.ranks[0].said)
    assert not watch.look()
    monitor.ranks[0].heard -= 21
    assert "was not heard of for 21 s, nor was any rank of its host: 0" in str(watch.look())


def test_a_rank_that_says_nothing_is_named_and_given_up_although_nobody_tells_of_waiting(monitor):
    lines = []
    watch = Watch(monitor, 2, Settings(stall_seconds=10, timeout_seconds=30, lost_seconds=0), lines.append)
    for number in range(2):
        joined(monitor, number)
    until(lambda: len(monitor.ranks) == 2 and all(rank.said for rank in monitor.ranks))
    silent = next(rank for rank in monitor.ranks if rank.rank == 1)
    silent.heard -= 15
    assert not watch.look()
    watch._asked[silent] -= 5
    assert not watch.look()
    assert lines == [lines[0]]
    assert "rank 1 on host" in lines[0]
    assert "has said nothing for 15 s" in lines[0]
    silent.heard -= 20
    assert "rank 1 on host" in str(watch.look())


def test_processes_that_others_wait_for_in_init_are_named_and_given_up(monitor):
    lines = []
    watch = Watch(monitor, 3, Settings(stall_seconds=10, timeout_seconds=30), lines.append)
    joined(monitor, 1)
    until(lambda: monitor.ranks and monitor.ranks[0].said)
    assert not watch.look()  # it is not in init: a job may be of some of the processes
    monitor.ranks[0].rank = None
    monitor.ranks[0].came -= 15
    assert not watch.look()
    assert not watch.look()
    assert lines == ["processes 0, 2 of 3 never came to init(), where others have waited 15 s"]
    monitor.ranks[0].came -= 16
    assert str(watch.look()).startswith("processes 0, 2 of 3")


def test_ranks_that_wait_in_init_for_one_that_has_ended_there_are_ended(monitor):
    watch = Watch(monitor, 2, Settings(), print)
    joined(monitor, 0)
    until(lambda: monitor.ranks and monitor.ranks[0].said)
    joined(monitor, 1).close()
    until(lambda: len(monitor.ranks) == 2 and monitor.ranks[1].ended)
    for rank in monitor.ranks:
        rank.rank = None  # still in init
    assert not watch.look()
    monitor.ranks[1].ended -= 6
    assert str(watch.look()) == f"{monitor.ranks[1].label} has ended in init(), where others wait for it"


def test_a_launcher_that_outlives_its_ranks_is_ended(monitor):
    watch = Watch(monitor, 1, Settings(), print)
    joined(monitor, 0).close()
    until(lambda: monitor.ranks and monitor.ranks[0].ended)
    assert not watch.look()
    monitor.ranks[0].ended -= 11
    assert "not their launcher" in str(watch.look())
    monitor.ranks[0].left = True  # as it should: MPI takes its time to end
    assert not watch.look()


def test_a_launcher_has_time_to_end_after_ranks_that_went_on_without_another(monitor):
    watch = Watch(monitor, 2, Settings(), print)
    joined(monitor, 0).close()
    joined(monitor, 1).close()
    until(lambda: len(monitor.ranks) == 2 and all(rank.ended for rank in monitor.ranks))
    monitor.ranks[1].left = True
    monitor.ranks[0].ended -= 60  # it died long ago
    assert not watch.look()


def test_ranks_that_wait_for_one_whose_process_has_ended_are_ended(monitor):
    watch = Watch(monitor, 2, Settings(recovery_seconds=5), print)
    waiting = joined(monitor, 0)
    joined(monitor, 1).close()
    until(lambda: len(monitor.ranks) == 2 and monitor.ranks[1].ended)
    waiting.send("status", waited_seconds=6)
    until(lambda: monitor.ranks[0].said)
    assert not watch.look()
    monitor.ranks[1].ended -= 6
    assert not watch.look()  # the other has joined again since
    monitor.ranks[0].joined -= 60
    assert "has ended, and rank 0" in str(watch.look())


def test_the_verdict_is_the_same_for_ranks_that_said_nothing():
    rank = Rank(ends(bytes(32))[0], "a", 1, "process 0 of 1", 0, rank=0, ended=1.0)
    assert verdict.judge([rank], 7, 1)["cause"] == "ended without a word, and the job with status 7"


def test_a_thread_that_waits_without_looking_does_not_count_as_waiting(monkeypatch):
    now = time.perf_counter()
    waits = {1: activity.Wait("barrier", now - 9, lambda: "rank 1", looked=now)}
    monkeypatch.setattr(activity, "waits", waits)
    assert activity.now()["waited_seconds"] >= 9
    waits[1].looked = now - 5
    assert activity.now()["waited_seconds"] == 0


def test_a_rank_that_was_stopped_while_it_waited_is_to_blame(monitor):
    channels = [joined(monitor, number, waited_seconds=9, waits_for="other ranks") for number in range(2)]
    until(lambda: len(monitor.ranks) == 2 and all(rank.said for rank in monitor.ranks))
    told = {"cause": "in time", "error": "TransportError", "waits_for": "other ranks"}
    channels[0].send("failure", **told, operation="barrier")
    until(lambda: any(rank.failure for rank in monitor.ranks))
    assert verdict.judge(monitor.ranks, 1, 2)["rank"] == 0  # both waited; who gave up is all that is known
    stopped = next(rank for rank in monitor.ranks if rank.rank == 1)
    stopped.statuses = [(when - 60, said) for when, said in stopped.statuses]
    assert verdict.judge(monitor.ranks, 1, 2)["rank"] == 1
