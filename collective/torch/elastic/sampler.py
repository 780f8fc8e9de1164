"""Which samples a rank reads, and which are still to be read when a job goes on with another number of ranks."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from collective import objects, world


class ElasticSampler(Sampler):
    """Deals a dataset out to the ranks, and after an interruption in an epoch only what nobody has read.

    The training loop tells what was read by ``record_batch``; ``state_dict`` goes into a checkpoint. Every rank gets
    the same number of samples: where they don't divide evenly, the first ones are read twice.

    Args:
        dataset: What is read; only its length matters.
        shuffle: Whether the order is another one in every epoch.
        seed: Begins the random numbers of the order, the same on all ranks.

    Example::

        for number, (images, labels) in enumerate(DataLoader(dataset, batch_size, sampler=sampler)):
            ...
            sampler.record_batch(number, batch_size)
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset, self.shuffle, self.seed = dataset, shuffle, seed
        self.epoch = 0
        self.processed_indices: set[int] = set()
        # What was read before samples were dealt out; and how many of these this rank began with, and has read.
        self._before: list[int] = []
        self._begun = self._read = 0
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: all samples are to be read again, in its own order."""
        self.epoch = epoch
        self.processed_indices = set()
        self.reset()

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """Note that this rank has read the batch of this number, since the last ``reset``."""
        self.record_indices(self.get_indices(batch_idx, batch_size))
        self._read = max(self._read, self._begun + min((batch_idx + 1) * batch_size, len(self.indices)))

    def record_indices(self, indices: Iterable[int]) -> None:
        """Note that these samples were read."""
        self.processed_indices.update(indices)

    def get_indices(self, batch_idx: int, batch_size: int) -> list[int]:
        """The samples of one of this rank's batches."""
        return self.indices[batch_idx * batch_size : (batch_idx + 1) * batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and the samples that this rank knows to be read; after ``sync`` those of all ranks."""
        return {"epoch": self.epoch, "processed_indices": sorted(self.processed_indices)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken, with any number of ranks."""
        self.epoch = state_dict["epoch"]
        self.processed_indices = set(state_dict["processed_indices"])
        self.reset()

    def sync(self, root_rank: int = 0) -> None:
        """Let all ranks know what any has read, in the epoch of rank ``root_rank``; called by all ranks.

        Cost: an all-gather of 2 to 8 bytes a sample read.
        """
        everyone = objects.allgather_object([self.epoch, sorted(self.processed_indices)], name="samples read")
        epoch = everyone[root_rank][0]
        read = set().union(*(indices for of, indices in everyone if of == epoch))
        self.load_state_dict({"epoch": epoch, "processed_indices": read})

    def reset(self) -> None:
        """Deal what is left out to the ranks there are now; the number of batches begins at 0 again."""
        left = [index for index in range(len(self.dataset)) if index not in self.processed_indices]
        if self.shuffle:
            random.Random(self.seed + self.epoch).shuffle(left)  # noqa: S311  # no secret
        size, rank = world.size(), world.rank()
        own = -(-len(left) // size)
        # Fewer samples than ranks are read more than twice.
        dealt = (left * -(-size * own // len(left)))[: size * own] if left else []
        self.indices = dealt[rank::size]
        self._before, self._begun, self._read = sorted(self.processed_indices), 0, 0

    def position(self) -> dict[str, Any]:
        """Where this rank is, as plain values for ``go_on``; needs ``record_batch``."""
        known = np.array(sorted(self.processed_indices), np.int64)
        return {"epoch": self.epoch, "before": np.array(self._before, np.int64), "read": self._read, "known": known}

    def go_on(self, positions: Sequence[dict[str, Any]]) -> None:
        """Go on where the ranks were, with all their positions: as many ranks read on in the same order.

        To more or fewer ranks what nobody has read is dealt out anew.
        """
        if len(positions) != world.size():
            read = np.concatenate([position["known"] for position in positions]).tolist()
            self.load_state_dict({"epoch": positions[0]["epoch"], "processed_indices": read})
            return
        mine = positions[world.rank()]
        self.load_state_dict({"epoch": mine["epoch"], "processed_indices": mine["before"].tolist()})
        self.processed_indices = set(mine["known"].tolist())
        self._begun = self._read = mine["read"]
        self.indices = self.indices[self._begun :]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
