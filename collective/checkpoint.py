"""Checkpoints: each is complete on the disk, or it is none.

A checkpoint is a folder ``step-000000000012`` that holds the arrays, one after the other, in ``arrays.bin``; in
``index.json`` what and where they are, with the plain values; and in ``complete.json``, written last, the size and the
SHA-256 of both. All is written under another name, brought to the disk, and then renamed, so a job that dies on the
way leaves the checkpoint before as it was. Nothing is pickled: reading a checkpoint never runs code.

Rank 0 writes and reads, and the others get what it read, so hosts need no file system in common.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from collective import codec, dtypes, objects, world
from collective.errors import ArgumentError, CheckpointError
from collective.grouped import grouped_broadcast
from collective.log import logger

ARRAYS, INDEX, COMPLETE = "arrays.bin", "index.json", "complete.json"
FORMAT = 1
# What is read at once; and the longest index that is read at all, of some hundred thousand arrays.
CHUNK = 2**20
LONGEST_INDEX = 2**28


class Checkpoint(NamedTuple):
    """What was read.

    Attributes:
        step: The number it was saved under.
        arrays: New arrays by name, equal on all ranks.
        values: The plain values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    values: Any


class Checkpoints:
    """The checkpoints of a job in one folder.

    Args:
        folder: Where they are on rank 0's host; made when the first one is saved.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ArgumentError("at least one checkpoint is kept", received=f"keep={keep}")
        self._folder, self._keep = Path(folder), keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Any = None) -> None:
        """Write a checkpoint; called by all ranks, and complete on the disk when it returns.

        Args:
            step: Its number, from 0; a newer one has a higher one. One of the same number is replaced.
            arrays: Rank 0's arrays by name, of any dtypes that travel (``collective.dtypes``).
            values: Rank 0's numbers, strings, lists, dictionaries and so on; see ``broadcast_object``.

        Raises:
            CheckpointError: on all ranks, when rank 0 couldn't write it; older ones are left as they were.

        Cost:
            A broadcast of some bytes, after rank 0 has written and synced the file.
        """
        self._on_first(lambda: self._write(step, arrays, values), "save")

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is complete; called by all ranks. None: there is none.

        What is incomplete or damaged is named in a warning, and left where it is.

        Raises:
            CheckpointError: on all ranks, when rank 0 can't read the folder.

        Cost per rank:
            The bytes once.
        """
        found: Checkpoint | None = None

        def read() -> None:
            nonlocal found
            found = self._read_newest()

        self._on_first(read, "newest")
        told = found and [found.step, found.values, {name: _kind(array) for name, array in found.arrays.items()}]
        told = objects.broadcast_object(told, name="checkpoint")
        if told is None:
            return None
        step, values, kinds = told
        names = list(kinds)
        own = (
            found.arrays
            if found
            else {name: np.empty(shape, dtypes.by_name(kind)) for name, (kind, shape) in kinds.items()}
        )
        received = grouped_broadcast([own[name] for name in names], 0, name="checkpoint.arrays")
        return Checkpoint(step, dict(zip(names, received, strict=True)), values)

    def _on_first(self, action: Callable[[], None], operation: str) -> None:
        """Do something on rank 0, and raise on all ranks what went wrong there."""
        failure: str | None = None
        if world.rank() == 0:
            try:
                action()
            except (OSError, ArgumentError) as error:
                failure = str(error)
        failure = objects.broadcast_object(failure, name=f"checkpoint.{operation}")
        if failure is not None:
            raise CheckpointError(
                f"rank 0 can write and read {self._folder}",
                received=failure,
                operation=f"checkpoint {operation}",
                where=world.topology().where,
            )

    def _write(self, step: int, arrays: Mapping[str, np.ndarray], values: Any) -> None:
        if step < 0:
            raise ArgumentError("a step is a number from 0", received=f"step={step}")
        self._folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".step-{step}.", dir=self._folder))
        try:
            _write_parts(scratch, step, arrays, values)
            target = self._folder / f"step-{step:012d}"
            if target.exists():
                shutil.rmtree(target)
            scratch.rename(target)
            _sync(self._folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        for old in self._steps()[self._keep :]:
            shutil.rmtree(self._folder / f"step-{old:012d}")

    def _steps(self) -> list[int]:
        """The numbers of all checkpoints with an end, the newest first."""
        found = (path.parent.name.removeprefix("step-") for path in self._folder.glob(f"step-*/{COMPLETE}"))
        return sorted((int(number) for number in found if number.isdecimal()), reverse=True)

    def _read_newest(self) -> Checkpoint | None:
        for step in self._steps():
            path = self._folder / f"step-{step:012d}"
            try:
                return _read(path, step)
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                logger.warning("%s is damaged and not used: %s", path, error)
        return None


def _kind(array: np.ndarray) -> tuple[str, tuple[int, ...]]:
    return array.dtype.name, array.shape


def _write_parts(folder: Path, step: int, arrays: Mapping[str, np.ndarray], values: Any) -> None:
    native = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    for name, array in native.items():
        if not dtypes.is_supported(array.dtype) or not array.dtype.isnative:
            raise ArgumentError("checkpoints hold arrays of numbers", received=f"{name}: dtype={array.dtype}")
    index = [FORMAT, step, codec.encode(values).decode(), {name: _kind(array) for name, array in native.items()}]
    contents = {
        ARRAYS: map(dtypes.byte_view, native.values()),
        INDEX: [np.frombuffer(json.dumps(index).encode(), np.uint8)],
    }
    complete = {}
    for name, parts in contents.items():
        digest = hashlib.sha256()
        with open(folder / name, "wb") as file:
            for part in parts:
                file.write(part.data)
                digest.update(part.data)
            complete[name] = [file.tell(), digest.hexdigest()]
            _sync_file(file)
    with open(folder / COMPLETE, "w") as file:
        json.dump(complete, file)
        _sync_file(file)
    _sync(folder)


def _sync_file(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(folder: Path, step: int) -> Checkpoint:
    """Read a checkpoint whose sizes and checksums are right; raises ValueError where they aren't."""
    complete = json.loads((folder / COMPLETE).read_text())
    for name in (ARRAYS, INDEX):
        size, digest = complete[name]
        if (folder / name).stat().st_size != size or _digest(folder / name) != digest:
            raise ValueError(f"{name} is not what was written")
    if complete[INDEX][0] > LONGEST_INDEX:
        raise ValueError(f"{INDEX} has more than {LONGEST_INDEX} bytes")
    version, number, values, kinds = json.loads((folder / INDEX).read_text())
    if (version, number) != (FORMAT, step):
        raise ValueError(f"{INDEX} is of format {version}, step {number}")
    arrays = {}
    with open(folder / ARRAYS, "rb") as file:
        for name, (kind, shape) in kinds.items():
            array = np.fromfile(file, dtypes.by_name(kind), math.prod(shape))
            arrays[name] = array.reshape(shape)
    return Checkpoint(step, arrays, codec.decode(values.encode()))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
