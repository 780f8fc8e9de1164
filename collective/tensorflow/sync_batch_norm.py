"""Batch normalization with the statistics of all ranks' batches together."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from collective import world
from collective.errors import ArgumentError
from collective.reduce_ops import Sum
from collective.tensorflow.operations import allreduce_tensor


@keras.saving.register_keras_serializable(package="collective")
class SyncBatchNormalization(keras.layers.BatchNormalization):
    """A ``keras.layers.BatchNormalization`` that computes mean and variance over the batches of all ranks.

    Ranks may differ in the sizes of their batches. Called by all ranks in training; otherwise, nothing is sent.

    Args:
        fused: False; there is no fused kernel that waits for other ranks.
        kwargs: As ``keras.layers.BatchNormalization`` takes them.

    Raises:
        ArgumentError: for ``fused=True`` or None; a ValueError.

    Cost of a training step:
        An all-reduce of three numbers for each channel, and one for their gradients.
    """

    def __init__(self, fused: bool | None = False, **kwargs: Any) -> None:
        if fused is None or fused:
            raise ArgumentError("statistics of all ranks need fused=False", received=f"fused={fused}")
        kwargs["name"] = kwargs.get("name") or "sync_batch_normalization"
        super().__init__(**kwargs)

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        mean, variance = super()._moments(inputs, mask)
        if world.size() == 1:
            return mean, variance
        rows = tf.shape(inputs)[0] if mask is None else tf.math.count_nonzero(mask)
        weight = tf.fill(tf.shape(mean), tf.cast(rows, mean.dtype))
        sums = allreduce_tensor(tf.stack([mean * weight, (variance + mean**2) * weight, weight]), op=Sum)
        mean_of_all, mean_of_squares = sums[0] / sums[2], sums[1] / sums[2]
        return mean_of_all, mean_of_squares - mean_of_all**2
