"""End the whole job when one rank ends with an uncaught exception.

Without this the failing process waits in MPI's finalisation, alive, and the others wait for it in their next
operation: mpirun sees nothing wrong.
"""

from __future__ import annotations

import faulthandler
import socket
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

from collective.monitor import link

Hook = Callable[[type[BaseException], BaseException, TracebackType | None], None]


def end_job_on_exception(where: str, abort: Callable[[int], None]) -> Callable[[], None]:
    """Let an uncaught exception of this rank end the job with exit status 1, after its traceback is printed.

    Args:
        where: The rank, for the message.
        abort: Ends the processes of all ranks with the exit status given.

    Returns:
        A function that takes the arrangement back.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(all_threads=False)  # a crash in C code then says where in Python it was
    previous: Hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            previous(kind, error, trace)
            report(where, f"uncaught {kind.__name__}: {error}", error)
        finally:  # whatever can't be told, the others must not wait
            abort(1)

    def undo() -> None:
        if sys.excepthook is hook:
            sys.excepthook = previous

    sys.excepthook = hook
    return undo


def report(where: str, cause: str, error: BaseException | None = None) -> None:
    """Say on stderr which rank ends the job, and why, and tell the supervisor more."""
    print(
        f"collective: {where} on host {socket.gethostname()}: {cause.rstrip('.')}. The job ends.",
        file=sys.stderr,
        flush=True,
    )
    link.tell_failure(cause, error, "".join(traceback.format_exception(error)) if error else "")
