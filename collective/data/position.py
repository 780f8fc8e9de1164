"""Where a dataset that is read epoch by epoch goes on: what a checkpoint keeps of it."""

from __future__ import annotations

from collective.data.shard import Shard, check_number


class Position:
    """The epoch and the batch in it at which the next pass over a dataset begins.

    Datasets that are given one (``collective.tensorflow.data``) begin there. Each pass after it begins the next epoch,
    unless ``seek`` says otherwise.

    Attributes:
        plan: How the dataset that reads it is dealt out; None: no dataset does.
        epoch: Of the next pass, from 0.
        start: The first batch of the next pass, from 0.
        is_read: Whether a pass has begun since ``seek``.
    """

    def __init__(self) -> None:
        self.plan: Shard | None = None
        self.epoch, self.start = 0, 0
        self.is_read = False

    def seek(self, epoch: int, start: int = 0) -> None:
        """Let the next pass begin at batch ``start`` of ``epoch``; the same on all ranks, without a message."""
        check_number("epoch", epoch, 0)
        check_number("start", start, 0, None if self.plan is None else self.plan.steps)
        self.epoch, self.start, self.is_read = epoch, start, False

    def begin(self) -> tuple[int, int]:
        """Return the epoch and the first batch of a pass that begins; the one after it begins the next epoch."""
        here = self.epoch, self.start
        self.epoch, self.start, self.is_read = self.epoch + 1, 0, True
        return here
