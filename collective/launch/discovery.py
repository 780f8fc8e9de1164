"""Which hosts there are now, asked of the user's script: ``--host-discovery-script``, as Horovod has it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from collective.errors import LaunchError
from collective.launch import hostfile
from collective.launch.hostfile import Host

# How long the script may take, in seconds; and the longest answer that is taken, in characters.
SECONDS = 10.0
LONGEST = 2**20


def ask(script: str, slots: int) -> tuple[Host, ...]:
    """Run the script and read what it prints: lines of ``HOST:SLOTS`` or ``HOST``; none: there is no host now.

    Args:
        script: A program; it is run without arguments and without a shell.
        slots: Slots of a host that comes without a number.

    Raises:
        LaunchError: when it can't be run, fails, takes too long, or prints something else.
    """
    try:
        status, output, errors = _run(script)
    except subprocess.TimeoutExpired:
        raise _wrong(script, f"nothing within {SECONDS:g} s") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(script, str(error)) from None
    if status:
        raise _wrong(script, ": ".join([f"exit status {status}", *errors.strip().splitlines()[-1:]]))
    if len(output) > LONGEST:
        raise _wrong(script, f"{len(output)} characters")
    return hostfile.parse(output, source=script, slots=slots) if output.strip() else ()


def _run(script: str) -> tuple[int, str, str]:
    """Run a program within bounds, in a session of its own, so that all it started ends with it."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [script], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    with process:
        try:
            output, errors = process.communicate(timeout=SECONDS)
            return process.returncode, output, errors
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def _wrong(script: str, received: str) -> LaunchError:
    return LaunchError("the host discovery script prints lines of HOST:SLOTS", received=received, operation=script)
