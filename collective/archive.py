"""Arrays and plain values in a folder: complete, or not there. The form of checkpoints and of snapshots.

Each is a folder ``step-000000000012`` that holds the arrays, one after the other, in ``arrays.bin``; in ``index.json``
what and where they are, with the plain values; and in ``complete.json``, written last, the size and the checksum of
both. All is written under another name and then renamed, so who dies on the way leaves the one before as it was.
Nothing is pickled here: reading never runs code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from collective import codec, dtypes
from collective.errors import ArgumentError
from collective.log import logger

ARRAYS, INDEX, COMPLETE = "arrays.bin", "index.json", "complete.json"
FORMAT = 1
# What is written, read and summed at once; and the longest index that is read at all, of some hundred thousand arrays.
CHUNK = 2**20
LONGEST_INDEX = 2**28

Kind = tuple[str, tuple[int, ...]]


class Content(NamedTuple):
    """What was read.

    Attributes:
        step: The number it was saved under.
        arrays: New arrays by name, equal on all ranks.
        values: The plain values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    values: Any


class _Checksum(Protocol):
    def update(self, data: Any, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc:
    """CRC-32: against what was cut or overwritten by accident, several times as fast as SHA-256."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: Any, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


class Archive:
    """What one process keeps in one folder.

    Args:
        folder: Where; made when the first content is written.
        keep: How many of the newest are kept.
        in_memory: Whether the folder lies in memory: nothing is synced then, room is reserved before it is written (a
            full memory is an error at once) and used again (the oldest makes way before a new one is written, so there
            are never more than ``keep``), and checksums are CRC-32 in place of SHA-256.
    """

    def __init__(self, folder: Path, keep: int, in_memory: bool = False) -> None:
        self.folder, self._keep, self._in_memory = folder, keep, in_memory
        self._checksum: Callable[[], _Checksum] = _Crc if in_memory else hashlib.sha256

    def write(self, step: int, arrays: Mapping[str, np.ndarray], values: Any) -> None:
        """Write one, and forget those that are too old.

        Raises:
            ArgumentError: for a negative step, an array that isn't of numbers, or values that aren't plain.
            OSError: when there is no room, and so on; what was there is left as it was.
        """
        if step < 0:
            raise ArgumentError("a step is a number from 0", received=f"step={step}")
        contents = _serialized(step, arrays, values)
        self.folder.mkdir(mode=0o700 if self._in_memory else 0o777, parents=True, exist_ok=True)
        scratch = self._spare(step) if self._in_memory else None
        scratch = scratch or Path(tempfile.mkdtemp(prefix=f".step-{step}.", dir=self.folder))
        try:
            self._write_parts(scratch, contents)
            target = self._place(step)
            if target.exists():
                shutil.rmtree(target)
            scratch.rename(target)
            self._sync(self.folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        for old in self._steps()[self._keep :]:
            shutil.rmtree(self._place(old))

    def newest(self, warns: bool = True) -> Content | None:
        """Read the newest that is complete; None: there is none. What is damaged is left.

        Args:
            warns: Whether to name in a warning what is damaged.

        Raises:
            OSError: when the folder can't be read.
        """
        for step in self._steps():
            path = self._place(step)
            try:
                return self._read(path, step)
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                if warns:
                    logger.warning("%s is damaged and not used: %s", path, error)
        return None

    def mark(self, step: int) -> str:
        """What tells the content of a step from others that were written under the same number elsewhere."""
        return (self._place(step) / COMPLETE).read_text()

    def _spare(self, step: int) -> Path | None:
        """A folder whose memory can be used again: what a process that died has left, or the oldest content."""
        left = next(self.folder.glob(".step-*"), None)
        others = [other for other in self._steps() if other != step]
        if left is None and len(others) >= self._keep:
            oldest = self._place(others[-1])
            left = oldest.rename(self.folder / f".{oldest.name}")
        if left:
            (left / COMPLETE).unlink(missing_ok=True)
        return left

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:012d}"

    def _steps(self) -> list[int]:
        """The numbers of all that have an end, the newest first."""
        found = (path.parent.name.removeprefix("step-") for path in self.folder.glob(f"step-*/{COMPLETE}"))
        return sorted((int(number) for number in found if number.isdecimal()), reverse=True)

    def _write_parts(self, folder: Path, contents: Mapping[str, list[np.ndarray]]) -> None:
        complete = {name: self._write_file(folder / name, parts) for name, parts in contents.items()}
        self._write_file(folder / COMPLETE, [np.frombuffer(json.dumps(complete).encode(), np.uint8)])
        self._sync(folder)

    def _write_file(self, path: Path, parts: list[np.ndarray]) -> tuple[int, str]:
        """Write flat bytes to a file that may be there already; returns their number and checksum."""
        checksum, size = self._checksum(), sum(part.size for part in parts)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            os.ftruncate(descriptor, min(size, os.fstat(descriptor).st_size))
            if self._in_memory and size:
                os.posix_fallocate(descriptor, 0, size)
            for piece in _pieces(parts):
                file.write(piece)
                checksum.update(piece)
            if not self._in_memory:
                file.flush()
                os.fsync(descriptor)
        return size, checksum.hexdigest()

    def _read(self, folder: Path, step: int) -> Content:
        """Read one whose sizes and checksums are right; raises ValueError where they aren't."""
        complete = json.loads((folder / COMPLETE).read_text())
        for name in (ARRAYS, INDEX):  # before room is made for them
            if (folder / name).stat().st_size != complete[name][0]:
                raise ValueError(f"{name} has not the size that was written")
        if complete[INDEX][0] > LONGEST_INDEX:
            raise ValueError(f"{INDEX} has more than {LONGEST_INDEX} bytes")
        index = np.empty(complete[INDEX][0], np.uint8)
        self._read_file(folder / INDEX, [index], complete[INDEX][1])
        version, number, values, kinds = json.loads(index.tobytes())
        if (version, number) != (FORMAT, step):
            raise ValueError(f"{INDEX} is of format {version}, step {number}")
        if sum(map(_bytes_of, kinds.values())) != complete[ARRAYS][0]:
            raise ValueError(f"{INDEX} tells of other arrays than {ARRAYS} holds")
        arrays = {name: np.empty(shape, dtypes.by_name(kind)) for name, (kind, shape) in kinds.items()}
        self._read_file(folder / ARRAYS, [dtypes.byte_view(array) for array in arrays.values()], complete[ARRAYS][1])
        return Content(step, arrays, codec.decode(values.encode()))

    def _read_file(self, path: Path, parts: list[np.ndarray], digest: str) -> None:
        """Read a file into flat bytes, in one pass; raises ValueError where its checksum is another."""
        checksum = self._checksum()
        with open(path, "rb") as file:
            for piece in _pieces(parts):
                file.readinto(piece)
                checksum.update(piece)
        if checksum.hexdigest() != digest:
            raise ValueError(f"{path.name} is not what was written")

    def _sync(self, folder: Path) -> None:
        """Bring the names in a folder to the disk."""
        if self._in_memory:
            return
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _bytes_of(told: Kind) -> int:
    """How many bytes an array of this kind has; raises ValueError for what is no array's."""
    name, shape = told
    if not all(type(extent) is int and extent >= 0 for extent in shape):
        raise ValueError(f"no array has the shape {shape}")
    return dtypes.by_name(name).itemsize * math.prod(shape)


def kind(array: np.ndarray) -> Kind:
    """What has to be known of an array to make room for it: dtype and shape."""
    return array.dtype.name, array.shape


def _serialized(step: int, arrays: Mapping[str, np.ndarray], values: Any) -> dict[str, list[np.ndarray]]:
    """What goes to which file, as flat bytes."""
    native = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    for name, array in native.items():
        if not dtypes.is_supported(array.dtype) or not array.dtype.isnative:
            raise ArgumentError("what is kept are arrays of numbers", received=f"{name}: dtype={array.dtype}")
    index = [FORMAT, step, codec.encode(values).decode(), {name: kind(array) for name, array in native.items()}]
    return {
        ARRAYS: [dtypes.byte_view(array) for array in native.values()],
        INDEX: [np.frombuffer(json.dumps(index).encode(), np.uint8)],
    }


def _pieces(parts: Iterable[np.ndarray]) -> Iterable[memoryview]:
    """Small enough to be still in the cache when they are summed."""
    for part in parts:
        for start in range(0, part.size, CHUNK):
            yield part[start : start + CHUNK].data
