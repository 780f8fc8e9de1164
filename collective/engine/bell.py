"""What wakes the engine's thread: at once, also on a core that computes."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

# Whoever asks for shorter turns than the thread that computes begins when it wakes, instead of milliseconds later; its
# share of the core stays what it was, so everybody may ask. The least that Linux grants, since 6.12, in nanoseconds.
SHORT_TURN = 100_000
# The number of the system call, which Python doesn't know.
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class Bell:
    """A thread sleeps until another one rings. Rings while it is awake are kept, as one."""

    def __init__(self) -> None:
        # Not a lock, nor a queue: these wake the sleeper while the ringer still has Python to itself, and it has to
        # sleep once more.
        self._sleeper, self._ringer = os.pipe()
        os.set_blocking(self._ringer, False)
        self._open = True

    def ring(self) -> None:
        """Wake the thread that waits, or will."""
        try:
            os.write(self._ringer, b"!")
        except BlockingIOError:
            return  # it has been rung often enough

    def close(self) -> None:
        """Have the thread that waits be told that nothing comes any more."""
        self._open = False
        self.ring()

    def wait(self) -> bool:
        """Return once somebody rings; False: it is closed."""
        os.read(self._sleeper, 4096)
        return self._open

    def __del__(self) -> None:
        os.close(self._sleeper)
        os.close(self._ringer)


def ask_for_short_turns() -> None:
    """Let this thread begin as soon as it wakes where Linux can do that; elsewhere nothing changes."""
    number = SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    # struct sched_attr: its size, policy, flags, nice, priority, runtime (of a turn), deadline, period.
    attributes = struct.pack("IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, SHORT_TURN, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, attributes, 0)
