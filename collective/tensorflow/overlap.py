"""All-reduce tensors while the graph still computes others: what is computed meanwhile hides the wire.

A small call for each bucket hands its tensors to the engine, which has a thread of its own, and returns at once; one
call in the end collects the results. The calls are chained, so every rank hands over the buckets in the same order: the
last tensors first, as backpropagation makes the gradients of the last layers first.

Source: Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB 2020 (buckets in
reverse order, the first ones on the wire while gradients are still computed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from collective import finite, grouped, handles
from collective.compression import Compression
from collective.engine.fusion import reversed_buckets
from collective.reduce_ops import ReduceOp
from collective.tensorflow.graph import call, unique_name, valid_name


def all_reduce(
    tensors: Sequence[tf.Tensor],
    op: ReduceOp,
    name: str | None,
    compression: Compression,
    of: Sequence[str] | None = None,
    **options: Any,
) -> list[tf.Tensor]:
    """Reduce tensors over all ranks as they appear; for graphs. See ``grouped_allreduce_tensors``.

    Cost of a step beside the bytes: an operation for each bucket.
    """
    name = name or "grouped_allreduce"
    tag = unique_name(valid_name(name))
    places = reversed_buckets([(tensor.shape.num_elements() or 0) * tensor.dtype.size for tensor in tensors])
    under_way: dict[int, handles.Handle[list[np.ndarray]]] = {}

    def submit(number: int) -> Callable[..., list[np.ndarray]]:
        def run(_: str, *arrays: np.ndarray) -> list[np.ndarray]:
            bucket = arrays[: len(places[number])]
            begun = grouped.grouped_allreduce_async(
                bucket, op, name=f"{tag}.{number}", compression=compression, **options
            )
            under_way[number] = finite.NamedHandle(begun, of and [of[place] for place in places[number]])
            os.sched_yield()  # to the engine: the sooner it has told the other ranks, the sooner the wire is at work
            return [np.int64(number)]

        return run

    def collect(_: str, *turns: np.ndarray) -> list[np.ndarray]:
        results: dict[int, np.ndarray] = {}
        reduced = handles.wait_for_all([under_way.pop(number) for number in range(len(turns))])
        for bucket, arrays in zip(places, reduced, strict=True):
            results.update(zip(bucket, arrays, strict=True))
        return [results[place] for place in range(len(tensors))]

    turns: list[tf.Tensor] = []
    for number, bucket in enumerate(places):
        # The turn of the bucket before is an argument, so that the calls follow each other in every kind of graph.
        inputs = [*(tensors[place] for place in bucket), *turns[-1:]]
        turns += call(submit(number), inputs, "grouped_allreduce", [()], [tf.int64], name=f"{name}.{number}")
    shapes, dtypes = [tensor.shape for tensor in tensors], [tensor.dtype for tensor in tensors]
    return call(collect, turns, "grouped_allreduce", shapes, dtypes, name=name)
