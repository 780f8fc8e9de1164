"""Data by rank: which samples each rank trains on, with the same number of steps on every rank by construction."""

from collective.data.arrays import batches as batches
from collective.data.position import Position as Position
from collective.data.shard import Batch as Batch
from collective.data.shard import Shard as Shard

__all__ = ["Batch", "Position", "Shard", "batches"]
