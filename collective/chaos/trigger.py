"""When a fault happens, in plain words: ``kill on rank 1 in all-reduce of step 12 after 3 ms``."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from collective.errors import ArgumentError

BEFORE_INIT, NEGOTIATION, ALLREDUCE = "before init", "in negotiation", "in all-reduce"
BETWEEN_STEPS, CHECKPOINT, RECOVERY = "between steps", "in checkpoint write", "in recovery"
MOMENTS = (BEFORE_INIT, NEGOTIATION, ALLREDUCE, BETWEEN_STEPS, CHECKPOINT, RECOVERY)
WORDS = re.compile(
    r"(?P<fault>[a-z0-9-]+) on rank (?P<rank>\d+) (?P<moment>[a-z -]+?) of step (?P<step>\d+) after (?P<delay>\d+) ms"
)


@dataclasses.dataclass(frozen=True)
class Trigger:
    """One fault, once in a job's life, restarts included.

    Attributes:
        fault: Its name in the table of faults.
        rank: The victim.
        moment: One of ``MOMENTS``.
        step: The step of training in which the moment counts.
        delay: Milliseconds from the moment to the fault; for moments that last.
    """

    fault: str
    rank: int
    moment: str
    step: int
    delay: int

    def __str__(self) -> str:
        return f"{self.fault} on rank {self.rank} {self.moment} of step {self.step} after {self.delay} ms"


def parse(text: str) -> Trigger:
    """Read what ``str`` made of a trigger.

    Raises:
        ArgumentError: when it is none.
    """
    found = WORDS.fullmatch(text)
    if not found or found["moment"] not in MOMENTS:
        raise ArgumentError(
            f"a fault is told as 'kill on rank 1 in all-reduce of step 12 after 3 ms', the moment one of "
            f"{', '.join(MOMENTS)}",
            received=text,
        )
    return Trigger(found["fault"], int(found["rank"]), found["moment"], int(found["step"]), int(found["delay"]))


def has_fired(folder: Path, number: int) -> bool:
    """Tell whether the fault of this number has happened already."""
    return _mark(folder, number).exists()


def fire(folder: Path, number: int) -> bool:
    """Claim the fault of this number; False: it has been claimed before."""
    try:
        _mark(folder, number).open("x").close()
    except FileExistsError:
        return False
    return True


def _mark(folder: Path, number: int) -> Path:
    return folder / f"fired-{number}"
