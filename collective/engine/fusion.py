"""Join small arrays into buckets, so that a message carries many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def buckets(arrays: Sequence[np.ndarray], bucket_bytes: int) -> Iterator[list[np.ndarray]]:
    """Group ``arrays``, in order, into lists of one dtype and at most ``bucket_bytes``; a larger array goes alone."""
    if len(arrays) == 1:
        yield [arrays[0]]
        return
    open_buckets: dict[np.dtype, list[np.ndarray]] = {}
    for array in arrays:
        bucket = open_buckets.setdefault(array.dtype, [])
        if bucket and sum(other.nbytes for other in bucket) + array.nbytes > bucket_bytes:
            yield open_buckets.pop(array.dtype)
            bucket = open_buckets.setdefault(array.dtype, [])
        bucket.append(array)
    yield from open_buckets.values()


def pack(bucket: Sequence[np.ndarray], flat: np.ndarray) -> None:
    """Write the values of all arrays of a bucket into ``flat``, one after the other."""
    np.concatenate([array.reshape(-1) for array in bucket], out=flat)


def unpack(flat: np.ndarray, bucket: Sequence[np.ndarray]) -> None:
    """Write the values of ``flat`` back into the arrays of the bucket it was packed from."""
    start = 0
    for array in bucket:
        array.reshape(-1)[:] = flat[start : start + array.size]
        start += array.size
