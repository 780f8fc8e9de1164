"""A function that runs on many ranks, as one rank sees it: the program that ``call`` starts."""

from __future__ import annotations

import os
import pickle
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from collective import launched, objects, world
from collective.errors import ArgumentError, LaunchError

# Files of the caller's folder.
FUNCTION, STARTED, RESULT, ERROR = "function", "started", "result", "error"
# Said to ranks that may be on hosts which don't see the folder.
BY_MESSAGES = "by-messages"


def serve(folder: Path, output: Path, by_messages: bool) -> None:
    """What a rank does: fetch the function, run it, and leave its result where the caller finds it.

    Args:
        folder: The caller's folder.
        output: Folder for this rank's output; the caller's folder: leave the output alone.
        by_messages: Whether there may be ranks that don't see the folder.
    """
    launch = launched.detect(os.environ)
    rank, size = (launch.rank, launch.size) if launch else (0, 1)
    if output != folder:
        _redirect(output / f"rank.{rank:0{len(str(size - 1))}}")
    if folder.exists():
        # How many there are in this start of the job; of an earlier one, errors don't count any more.
        (folder / STARTED).write_text(str(size))
        (folder / f"{ERROR}.{rank}").unlink(missing_ok=True)
    try:
        if by_messages:
            root, function = _fetch(folder)
        else:
            function = (folder / FUNCTION).read_bytes()
        result = pickled({rank: pickle.loads(function)()})  # noqa: S301  # the caller's own function
        if by_messages:
            _hand_over(folder, result, root)
        else:
            _leave(folder / f"{RESULT}.{rank}", result)
    except Exception as error:
        if folder.exists():
            _leave(folder / f"{ERROR}.{rank}", _told(error, f"rank {rank} of {size}"))
        raise


def _fetch(folder: Path) -> tuple[int, bytes]:
    """Get the function's pickle from a rank that sees the folder; returns which one, and the pickle."""
    world.init()
    mine = (folder / FUNCTION).read_bytes() if (folder / FUNCTION).exists() else b""
    seen = objects.allgather_object(bool(mine), name="run.folder")
    if True not in seen:
        raise LaunchError(
            "one of the hosts is the machine that calls collective.run, or they share its temporary folder",
            received=str(folder),
            fix="Name this machine among the hosts, or set TMPDIR to a folder that all see",
        )
    content = objects.broadcast_object(mine, seen.index(True), name="run.function")
    world.shutdown()  # the function calls init itself, with arguments of its own
    return seen.index(True), bytes(content)


def _hand_over(folder: Path, result: bytes, root: int) -> None:
    """Give this rank's result to the one that sees the folder."""
    world.init()
    everyone = objects.allgather_object(result, name="run.results")
    if world.rank() == root:
        for number, content in enumerate(everyone):
            _leave(folder / f"{RESULT}.{number}", content)


def _told(error: Exception, where: str) -> bytes:
    """What the caller gets to know of an exception."""
    try:
        content = pickled(error)
    except ArgumentError:
        content = b""
    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    return pickle.dumps((time.time(), where, text, traceback.format_exc(), content))


def _leave(file: Path, content: bytes) -> None:
    """Write a file that is there in full or not at all: ranks are ended at any moment."""
    part = file.with_name(f"part.{file.name}")
    part.write_bytes(content)
    part.replace(file)


def _redirect(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        with open(folder / name, "wb") as file:
            os.dup2(file.fileno(), stream)


def pickled(content: Any) -> bytes:
    """A pickle; also of a function without a module, if cloudpickle is there."""
    try:
        import cloudpickle as pickler  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        pickler = pickle
    try:
        return bytes(pickler.dumps(content))
    except Exception as error:  # pickle raises whatever the object's own methods raise
        raise ArgumentError(
            "function, arguments and results can be pickled",
            received=f"{type(error).__name__}: {error}",
            fix="Install cloudpickle, or take the function from a module" if pickler is pickle else "",
            operation="collective.run",
        ) from error


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), BY_MESSAGES in sys.argv[3:])
