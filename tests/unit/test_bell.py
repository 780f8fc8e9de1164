"""The bell that wakes the engine's thread."""

import ctypes
import platform
import struct
import threading

import pytest

from collective.engine.bell import SHORT_TURN, Bell, ask_for_short_turns

SCHED_GETATTR = {"x86_64": 315, "aarch64": 275}
SECONDS = 10


def in_thread(function):
    """What ``function`` returns in a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return results


def test_a_ring_before_the_wait_is_kept_and_counts_once():
    bell = Bell()
    bell.ring()
    bell.ring()
    assert in_thread(bell.wait) == [True]
    waiting = threading.Thread(target=bell.wait, daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    bell.ring()
    waiting.join(SECONDS)
    assert not waiting.is_alive()


def test_a_thread_that_waits_is_told_that_the_bell_is_closed():
    bell = Bell()
    threading.Timer(0.1, bell.close).start()
    assert in_thread(bell.wait) == [False]


def test_no_number_of_rings_blocks_the_ringer():
    bell = Bell()
    assert in_thread(lambda: [bell.ring() for _ in range(100_000)].count(None)) == [100_000]
    assert in_thread(bell.wait) == [True]


def turn_of_this_thread():
    """Its policy, nice value and turn in nanoseconds, from ``struct sched_attr``."""
    attributes = ctypes.create_string_buffer(56)
    assert ctypes.CDLL(None).syscall(SCHED_GETATTR[platform.machine()], 0, attributes, 56, 0) == 0
    _, policy, _, nice, _, turn = struct.unpack_from("IIQiIQ", attributes)
    return policy, nice, turn


@pytest.mark.skipif(platform.machine() not in SCHED_GETATTR, reason="the system call's number is not known")
def test_only_the_turn_of_the_thread_that_asks_becomes_short():
    before = turn_of_this_thread()
    if before[2] == 0:
        pytest.skip("before Linux 6.12 threads can't ask for the length of their turns")

    def asked():
        ask_for_short_turns()
        return turn_of_this_thread()

    assert in_thread(asked) == [(*before[:2], SHORT_TURN)]
    assert turn_of_this_thread() == before
