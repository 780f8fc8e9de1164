"""Batches of a rank taken out of arrays, memory maps and lists, files among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from collective.data.shard import Batch, Options, Shard
from collective.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Unpack


def batches(
    data: Any, batch_size: int, epoch: int = 0, start: int = 0, **options: Unpack[Options]
) -> Iterator[tuple[Any, ...]]:
    """Return this rank's batches of ``data`` in one epoch, with the weights of the samples; for loops of one's own.

    Every rank gets the same number of steps. No messages; need not be called by all ranks. Each batch is a copy, so a
    memory map is read batch by batch, in the contiguous and strided orders by one slice each.

        for images, labels, weights in batches((x, y), batch_size=32, epoch=epoch, order="shuffled"):
            loss = (weights * losses(images, labels)).mean()   # its gradient averaged over ranks is the global one

        for paths, weights in batches(files, batch_size=1):    # a sample is a file here, whatever it holds

    A weight counts samples. Where a sample is a file, every file counts the same, one of ten records like one of a
    thousand; for records to count the same, number the records and take them by `Shard`.

    Args:
        data: A NumPy array or memory map with samples along axis 0, a list of samples (such as paths), or a tuple or
            dict of these, nested or not, all of the same length.
        batch_size: Samples of one rank in one step.
        epoch: Number of the epoch, from 0; the shuffled order depends on it.
        start: Number of the first step wanted, from 0: an interrupted epoch goes on where it was.
        options: order, uneven, seed, rank, size: see `Shard`.

    Returns:
        Tuples of the batch, shaped as ``data`` with batch_size samples in each part, and float32[batch_size] weights;
        the parts of a tuple stand beside the weights: ``(x, y)`` gives ``x, y, weights``.

    Raises:
        ArgumentError: for parts of different lengths, and what `Shard` refuses.
    """
    shard = Shard(length_of(data), batch_size, **options)
    return _batches(data, shard.batches(epoch, start))


def _batches(data: Any, steps: Iterator[Batch]) -> Iterator[tuple[Any, ...]]:
    for indexes, weights in steps:
        taken = take(data, indexes)
        yield (*taken, weights) if isinstance(data, tuple) else (taken, weights)


def length_of(data: Any) -> int:
    """Return the number of samples; raises ArgumentError where parts have different ones."""
    lengths = {place or "data": length for place, length in _lengths(data, "")}
    if len(set(lengths.values())) != 1:
        raise ArgumentError(
            "all parts of the data have the same number of samples",
            received=", ".join(f"{place}: {length}" for place, length in lengths.items()) or repr(data),
            fix="Give every array one row for each sample, along axis 0",
        )
    return next(iter(lengths.values()))


def _lengths(data: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(data, (tuple, Mapping)):
        parts = data.items() if isinstance(data, Mapping) else enumerate(data)
        for key, part in parts:
            yield from _lengths(part, f"{place}[{key!r}]")
    elif (isinstance(data, np.ndarray) and data.ndim) or (isinstance(data, Sequence) and not isinstance(data, str)):
        yield place, len(data)
    else:
        # A table or a tensor numbers its rows in ways of its own: a filtered pandas column, taken by position, would
        # give the wrong rows without an error.
        raise ArgumentError(
            "data is NumPy arrays with an axis, lists, or tuples and dicts of these",
            received=f"{place or 'data'} of type {type(data).__name__}",
            fix="Pass its NumPy array, or take its samples by the indexes of collective.data.Shard",
        )


def take(data: Any, indexes: npt.NDArray[np.int64]) -> Any:
    """Return a copy of the samples at these positions, in the structure of the data."""
    if isinstance(data, Mapping):
        return {key: take(part, indexes) for key, part in data.items()}
    if isinstance(data, tuple):
        return tuple(take(part, indexes) for part in data)
    if isinstance(data, np.ndarray):
        return np.array(data[_key(indexes)])
    return [data[index] for index in indexes.tolist()]


def _key(indexes: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Return the slice that takes ``indexes``, if there is one: a slice reads in a row, an index array one by one."""
    first, last = int(indexes[0]), int(indexes[-1])
    stride = int(indexes[1]) - first if len(indexes) > 1 else 1
    if stride > 0 and np.array_equal(indexes, np.arange(first, first + stride * len(indexes), stride)):
        return slice(first, last + 1, stride)
    return indexes
