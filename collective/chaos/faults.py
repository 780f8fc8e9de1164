"""The faults, by name: what each does to its victim, and what the job has to do then.

A fault is a function of the scene. Those that end a process may strike in any thread; those that need Python's main
thread say so.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from collective import world
from collective.chaos.scene import Scene
from collective.chaos.training import WIDTH
from collective.chaos.trigger import ALLREDUCE, BEFORE_INIT, BETWEEN_STEPS, CHECKPOINT, NEGOTIATION
from collective.errors import ArgumentError
from collective.monitor import link
from collective.reduce_ops import Average

# How long what passes takes, and how long ranks may wait for what doesn't, in seconds.
PAUSE, TIMEOUT = 2.0, 4.0
# Between hosts only the supervisor knows who is late: a second of waiting, told within one, seen and asked within two.
LATE = 5.0
# Seconds from a fault to the end of the job; a fault that only waiting shows may take the time-out more.
BOUND = 5.0
# What is wanted of a process that has no more than this to go.
MEMORY_LEFT, MEMORY_WANTED = 2**26, 2**28
FILLER = "filler"
EMULATED = re.compile(r"cl\d+n\d+h\d+")

ANYTIME = (BEFORE_INIT, NEGOTIATION, ALLREDUCE, BETWEEN_STEPS, CHECKPOINT)
IN_STEPS = (NEGOTIATION, ALLREDUCE, BETWEEN_STEPS)
# What a job does about a fault: it ends, naming it, or goes on as if nothing had been.
ENDS, GOES_ON = "ends", "goes on"
ANY, FIRST, LAST = "any", "first", "last"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        act: Does it; in the victim.
        about: What it is, for people.
        moments: When it is tried.
        then: What a job has to do that runs without restarts.
        says: Regular expressions that match in what is said on stderr; ``{rank}`` stands for the victim.
        seconds: From the fault to the end, at most.
        main: Whether it needs Python's main thread.
        victim: ``any`` rank, the ``first``, or the ``last``, which is on the last host.
        needs: What has to be there, by its name in ``surroundings``.
        settings: The library's settings, by variable.
        leaves: A regular expression of processes that nobody can end: the launcher's, on a host that is cut off.
        blamed: Whether the fault is the victim's alone, so that the supervisor's report has to name that rank.
    """

    act: Callable[[Scene], None]
    about: str
    moments: tuple[str, ...]
    then: str = ENDS
    says: tuple[str, ...] = ()
    seconds: float = BOUND
    main: bool = False
    victim: str = ANY
    needs: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    blamed: bool = False
    leaves: str = ""


# Deaths


def _signal(number: int) -> Callable[[Scene], None]:
    def act(_: Scene) -> None:
        os.kill(os.getpid(), number)
        time.sleep(PAUSE)  # until it arrives, nothing more happens here

    return act


def _exit(status: int) -> Callable[[Scene], None]:
    def act(_: Scene) -> None:
        os._exit(status)

    return act


def _raise(_: Scene) -> None:
    raise RuntimeError("the disk is on fire")


def _abort(_: Scene) -> None:
    if world.is_initialized():
        world.backend().abort(7)
    importlib.import_module("mpi4py.MPI").COMM_WORLD.Abort(7)


def _memory_group(scene: Scene) -> None:
    """Join a group with little memory, and take more: the kernel kills the process."""
    if not scene.group:
        raise ArgumentError("the case has a control group with little memory", received="none")
    (Path(scene.group) / "cgroup.procs").write_text(str(os.getpid()))
    np.ones(MEMORY_WANTED // 8)
    time.sleep(PAUSE)


def _memory_limit(_: Scene) -> None:
    """Take more memory than the process may have: Python raises MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_LEFT, resource.RLIM_INFINITY))
    np.ones(MEMORY_WANTED // 8)


# Stops


def _stop_a_while(_: Scene) -> None:
    code = "import os,signal,sys,time; time.sleep(float(sys.argv[1])); os.kill(int(sys.argv[2]), signal.SIGCONT)"
    waker = subprocess.Popen([sys.executable, "-I", "-c", code, str(PAUSE), str(os.getpid())])
    os.kill(os.getpid(), signal.SIGSTOP)
    waker.wait()


def _sleep(_: Scene) -> None:
    time.sleep(LATE)


def _hold_the_gil(_: Scene) -> None:
    # Called through PyDLL, C code keeps the interpreter's lock.
    ctypes.PyDLL(None).usleep(int(PAUSE * 900_000))


def _never_come(_: Scene) -> None:
    time.sleep(3600)


# Calls that don't match


def _other_order(scene: Scene) -> None:
    """Nothing more: the victim has submitted its operations in another order than the others anyway."""


def _other_name(scene: Scene) -> None:
    scene.name = "gradients"


def _other_shape(scene: Scene) -> None:
    scene.gradient = scene.gradient[:-1]


def _other_dtype(scene: Scene) -> None:
    scene.gradient = scene.gradient.astype(np.float32)


def _other_op(scene: Scene) -> None:
    scene.op = Average


def _fewer_batches(scene: Scene) -> None:
    scene.ends_early = True


# Values


def _nan(scene: Scene) -> None:
    scene.gradient[3] = np.nan


def _drift(scene: Scene) -> None:
    scene.model.weights[5] += 1


# What is around a process


def _fork(_: Scene) -> None:
    """A child that ends as Python programs end, by leaving main: it must not leave the job in its parent's name."""
    child = os.fork()
    if not child:
        sys.exit(0)
    os.waitpid(child, 0)


def _fill_the_disk(scene: Scene) -> None:
    with contextlib.suppress(OSError), (scene.checkpoints / FILLER).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _newest_arrays(scene: Scene) -> Path:
    return max(scene.checkpoints.glob("step-*")) / "arrays.bin"


def _truncate(scene: Scene) -> None:
    path = _newest_arrays(scene)
    os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def _damage(scene: Scene) -> None:
    with _newest_arrays(scene).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    os.kill(os.getpid(), signal.SIGKILL)


def _nothing(_: Scene) -> None:
    """What the case is about is around the job, from its start."""


def _foreign_launcher(_: Scene) -> None:
    """Make it look as if the launcher of another MPI had started this process."""
    own = importlib.import_module("collective.launched").detect(os.environ)
    open_mpi = own is not None and own.launcher.library == "Open MPI"
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        os.environ.pop(name, None)
    size, rank = ("PMI_SIZE", "PMI_RANK") if open_mpi else ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    os.environ |= {size: "2", rank: "1"}


def _low_thread_level(_: Scene) -> None:
    """Start MPI as a program does that promises to call it from one thread only."""
    importlib.import_module("mpi4py").rc.thread_level = "funneled"
    importlib.import_module("mpi4py.MPI")


def _forget_the_supervisor(_: Scene) -> None:
    """What a firewall does that forgets a connection: both its ends hear that it has ended."""
    link.interrupt()


# Hosts


def _check_emulated() -> None:
    if not EMULATED.fullmatch(socket.gethostname()):
        raise ArgumentError("only emulated hosts are cut off", received=f"host={socket.gethostname()}", fix="--emulate")


def _cut_the_link(_: Scene) -> None:
    _check_emulated()
    time.sleep(0.2)  # until what was said of it has left
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)


def _lose_the_host(_: Scene) -> None:
    """The link goes down, and every process of the host is gone."""
    _check_emulated()
    time.sleep(0.2)
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    listed = subprocess.run(["ip", "netns", "pids", socket.gethostname()], capture_output=True, text=True, check=True)
    for process in listed.stdout.split():
        if int(process) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _lose_the_daemon(_: Scene) -> None:
    """The launcher's daemon on this host dies, and the victim with it."""
    time.sleep(0.2)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(3600)


WAITS = TIMEOUT + BOUND
# The launcher doesn't hear of a cut link, and is killed when it doesn't end.
CUT_OFF = WAITS + 8
SHORT_WAIT = (
    ("COLLECTIVE_TIMEOUT_SECONDS", str(TIMEOUT)),
    ("COLLECTIVE_RECOVERY_SECONDS", str(TIMEOUT)),
    ("COLLECTIVE_STALL_SECONDS", "1"),
)
WARNED = (("COLLECTIVE_STALL_SECONDS", "1"),)
FINITE = (("COLLECTIVE_CHECK_FINITE", "1"),)
# Before the ranks know their numbers, launchers tell of them by their own.
VICTIM = r"rank {rank}\b|process {rank} of|@1,{rank}\]"

death = functools.partial(Fault, moments=ANYTIME, says=(VICTIM,), blamed=True)
wait = functools.partial(Fault, says=(VICTIM,), seconds=WAITS, settings=SHORT_WAIT)
passes = functools.partial(Fault, then=GOES_ON)
mismatch = functools.partial(Fault, moments=(NEGOTIATION,))
start = functools.partial(Fault, moments=(BEFORE_INIT,))

FAULTS = {
    "exception": death(_raise, "an uncaught exception", says=("the disk is on fire", VICTIM), main=True),
    "kill": death(_signal(signal.SIGKILL), "SIGKILL"),
    "term": death(_signal(signal.SIGTERM), "SIGTERM"),
    "segv": death(_signal(signal.SIGSEGV), "SIGSEGV"),
    "exit-0": death(_exit(0), "os._exit(0)"),
    "exit-7": death(_exit(7), "os._exit(7)"),
    "abort": death(_abort, "MPI_Abort by the program", main=True),
    "oom": death(
        _memory_group, "killed by the kernel: out of memory", moments=IN_STEPS, needs="memory group", main=True
    ),
    "memory-error": death(_memory_limit, "MemoryError", moments=IN_STEPS, says=("MemoryError", VICTIM), main=True),
    "stop": wait(_signal(signal.SIGSTOP), "SIGSTOP for good", ANYTIME, blamed=True),
    "never-comes": wait(_never_come, "a rank that never comes", IN_STEPS, main=True, blamed=True),
    "stop-a-while": passes(_stop_a_while, f"SIGSTOP, and SIGCONT {PAUSE:.0f} s later", ANYTIME),
    "slow": passes(_sleep, f"a rank {LATE:.0f} s late", IN_STEPS, says=(VICTIM,), main=True, settings=WARNED),
    "hold-gil": passes(_hold_the_gil, f"a rank that holds the GIL for {PAUSE * 0.9:.1f} s", IN_STEPS),
    "other-order": passes(_other_order, "operations in another order", (NEGOTIATION,)),
    "other-name": mismatch(
        _other_name, "another tensor", says=("'gradient'", "'gradients'", VICTIM), settings=SHORT_WAIT
    ),
    "other-shape": mismatch(_other_shape, "another shape", says=(rf"float64\[{WIDTH - 1}\]", VICTIM)),
    "other-dtype": mismatch(_other_dtype, "another dtype", says=(rf"float32\[{WIDTH}\]", VICTIM)),
    "other-op": mismatch(_other_op, "another reduction", says=("Average", VICTIM)),
    "fewer-batches": Fault(_fewer_batches, "a rank with fewer batches", (BETWEEN_STEPS,), says=(VICTIM, "shutdown")),
    "nan": mismatch(_nan, "a gradient that is NaN", says=("'gradient'", "not finite", VICTIM), settings=FINITE),
    "drift": Fault(_drift, "a replica that drifts", (BETWEEN_STEPS,), says=("'weights'", "rank 0", "unlike")),
    "unwatched": passes(_forget_the_supervisor, "the connection to the supervisor broken", IN_STEPS),
    "fork": passes(_fork, "a forked child that ends", (BETWEEN_STEPS,), main=True),
    "disk-full": Fault(
        _fill_the_disk,
        "no room for a checkpoint",
        (BETWEEN_STEPS,),
        says=("No space left on device",),
        victim=FIRST,
        needs="small disk",
    ),
    "truncated-checkpoint": death(
        _truncate, "the newest checkpoint cut short, then SIGKILL", moments=(BETWEEN_STEPS,), victim=FIRST
    ),
    "damaged-checkpoint": death(
        _damage, "a bit of the newest checkpoint flipped, then SIGKILL", moments=(BETWEEN_STEPS,), victim=FIRST
    ),
    "shm-full": start(
        _nothing,
        "a /dev/shm of 1 MiB",
        then=GOES_ON,
        says=("No space left on device in /dev/shm",),
        needs="small shared memory",
    ),
    "foreign-launcher": start(
        _foreign_launcher,
        "the launcher of another MPI",
        says=("the launcher belongs to the MPI library", "process 1 of 2"),
        main=True,
    ),
    "thread-level": start(
        _low_thread_level, "MPI started for one thread only", says=("MPI_THREAD_FUNNELED", VICTIM), main=True
    ),
    "link-cut": wait(
        _cut_the_link,
        "the link of a host cut",
        IN_STEPS,
        main=True,
        victim=LAST,
        needs="emulated hosts",
        seconds=CUT_OFF,
        leaves="prted|PRTE_PREFIX",
    ),
    "host-lost": wait(
        _lose_the_host, "a host lost with all its processes", IN_STEPS, victim=LAST, needs="emulated hosts"
    ),
    "daemon-lost": wait(
        _lose_the_daemon,
        "the launcher's daemon on a host killed",
        IN_STEPS,
        # The launcher tells of the host itself, and ends all ranks in any order.
        says=(rf"{VICTIM}|(on node|Remote host:) +\S",),
        victim=LAST,
        needs="hosts",
    ),
}
