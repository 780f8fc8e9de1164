"""Batch normalisation by the statistics of all ranks' batches together."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from collective import collectives, world
from collective.errors import ArgumentError
from collective.process_sets import global_process_set
from collective.reduce_ops import Sum
from collective.torch.arrays import array_of, tensor_of
from collective.torch.operations import gathered


class SyncBatchNorm(_BatchNorm):
    """A batch normalisation whose mean and variance are those of the batches of all ranks, as one process sees them.

    Each forward pass in training is called by all ranks, and its backward pass as well; ranks may have different
    numbers of samples, as few as none. In evaluation it is an ordinary batch normalisation. For inputs of
    [samples, num_features, ...], on any device.

    Args:
        num_features: Number of channels, the length of axis 1.
        eps: Added to the variance, as in ``torch.nn.BatchNorm2d``.
        momentum: Weight of the new statistics in the running ones; None: their plain average.
        affine: Whether it has a weight and a bias.
        track_running_stats: Whether it keeps running statistics; else evaluation goes by the batch, too.

    Cost per rank of a pass:
        An all-gather of 2 x num_features + 1 floats, forward; an all-reduce of N times as many, backward.
    """

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ArgumentError(
                "SyncBatchNorm takes [samples, features, ...]",
                received=f"shape={list(input.shape)}",
                where=world.topology().where,
            )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise a batch."""
        self._check_input_dim(input)
        if world.size() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        wide = input if input.dtype is torch.float64 else input.float()
        mean, variance, count = _statistics(wide)
        if self.training and self.track_running_stats:
            with torch.no_grad():
                self._remember(mean, variance * (count / (count - 1)))
        shape = [1, -1, *[1] * (input.dim() - 2)]
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        # The mean first: what it hides is small beside it.
        result = (wide - mean.view(shape)) * scale.view(shape)
        if self.affine:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        self.num_batches_tracked += 1
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(variance.to(self.running_var.dtype), weight)


def _statistics(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and variance of each channel over all ranks, and the number of values they are taken of.

    From the ranks' own: the mean of means, and the mean of variances plus the variance of means, each weighted by the
    numbers. Sums of squares would lose what is small beside the mean.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    channels = values.shape[1]
    own = values.transpose(0, 1).reshape(channels, -1)
    count = own.shape[1]
    if count:
        variance, mean = torch.var_mean(own, dim=1, correction=0)
    else:  # sums of nothing: zeros that autograd knows, so that this rank takes part in the backward pass
        variance, mean = own.sum(1), own.sum(1)
    mine = torch.cat([mean, variance, mean.new_tensor([float(count)])])
    (everyone,) = gathered(_rows_of_all, [mine[None]], None, global_process_set, Sum)
    counts = everyone[:, -1:].detach()
    total = counts.sum()
    if total < 2:
        raise ArgumentError(
            "a batch has at least two values for each feature, over all ranks",
            received=f"{int(total)} values",
            operation="SyncBatchNorm",
            where=world.topology().where,
        )
    means, variances = everyone[:, :channels], everyone[:, channels:-1]
    mean = (means * counts).sum(0) / total
    variance = ((variances + (means - mean) ** 2) * counts).sum(0) / total
    return mean, variance, float(total)


def _rows_of_all(mine: torch.Tensor) -> list[torch.Tensor]:
    return [tensor_of(collectives.allgather(array_of(mine)), mine.device)]
