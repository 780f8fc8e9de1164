"""Ranks and sizes as tensors, asked for whenever a graph runs: so it survives a job that changes its size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from collective import world
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet
from collective.tensorflow.graph import as_written, call

# What Horovod's process_set_included_op answers instead of 0 or 1.
NOT_INITIALIZED, UNKNOWN_SET = -1, -3


@as_written
def size_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """Number of ranks in a process set, as int32.

    Raises:
        tf.errors.FailedPreconditionError: before ``init`` or after ``shutdown``, when it runs.
        tf.errors.InvalidArgumentError: when there is no such set.
    """
    return _number(lambda: _process_set(process_set_id).size() or 0, "size", name)


def local_size_op(name: str | None = None) -> tf.Tensor:
    """Number of ranks on this host, as int32. Errors: as ``size_op``."""
    return _number(world.local_size, "local_size", name)


def rank_op(name: str | None = None) -> tf.Tensor:
    """Number of this rank in the job, as int32. Errors: as ``size_op``."""
    return _number(world.rank, "rank", name)


def local_rank_op(name: str | None = None) -> tf.Tensor:
    """Number of this rank on its host, as int32. Errors: as ``size_op``."""
    return _number(world.local_rank, "local_rank", name)


@as_written
def process_set_included_op(process_set_id: int = 0, name: str | None = None) -> tf.Tensor:
    """Whether this rank is in a process set, as int32: 1 or 0, -1 before ``init``, -3 when there is no such set."""

    def included() -> int:
        if not world.is_initialized():
            return NOT_INITIALIZED
        known = world.process_sets().get(process_set_id)
        return UNKNOWN_SET if known is None else int(bool(known.included()))

    return _number(included, "process_set_included", name)


def _process_set(number: int) -> ProcessSet:
    known = world.process_sets()
    if number not in known:
        raise ArgumentError(
            "the number is that of a registered process set",
            received=f"process_set_id={number}",
            fix=f"Use one of {', '.join(map(str, known))}",
            where=world.topology().where,
        )
    return known[number]


@as_written
def _number(ask: Callable[[], int], operation: str, name: str | None) -> tf.Tensor:
    return call(lambda _: [np.int32(ask())], [], operation, [()], [tf.int32], name=name)[0]
