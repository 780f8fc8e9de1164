"""Which cases there are: fault x moment x level x network, and the victims and steps that a seed draws for them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from collective.chaos import trigger
from collective.chaos.faults import ANY, ENDS, FAULTS, FIRST, GOES_ON, Fault
from collective.chaos.trigger import BEFORE_INIT, CHECKPOINT, RECOVERY, Trigger

LEVELS = ("L0", "L1", "L2", "L3")
# What a fault at this level means: the job ends, or another goes on from what was kept.
COMES_BACK = "comes back"
# Between hosts, over TCP; inside a host, through shared memory.
HOSTS, SHARED_MEMORY = "hosts", "shared memory"
# Faults strike when a checkpoint or two have been kept, and enough is left to do.
FIRST_STEP, LAST_STEP = 12, 30
LONGEST_DELAY = 15
# That a second fault finds recovery under way: by then a job that starts again is between its start and its first step.
LONGEST_RECOVERY = 800
# Seconds that ranks wait for one that doesn't come to a start or to going on: nobody knows before. Added to the bound.
START = 8.0
# Deaths come again while the first is recovered from; a fault of the program's would be the same as before.
SECOND = ("exception", "kill", "exit-7", "stop")
# Those that are about checkpoints.
OF_CHECKPOINTS = ("disk-full", "truncated-checkpoint", "damaged-checkpoint")


@dataclasses.dataclass(frozen=True)
class Case:
    """One job that is disturbed.

    Attributes:
        level: L0 to L3.
        network: ``shared memory`` or ``hosts``.
        ranks: Of the job.
        triggers: The faults, in their order.
        repeat: Which repetition this is, from 0.
    """

    level: str
    network: str
    ranks: int
    triggers: tuple[Trigger, ...]
    repeat: int = 0

    @property
    def fault(self) -> Fault:
        """The last one, which decides."""
        return FAULTS[self.triggers[-1].fault]

    @property
    def moment(self) -> str:
        """When it strikes."""
        return self.triggers[-1].moment

    @property
    def then(self) -> str:
        """What the job has to do."""
        return self.fault.then if self.level == "L0" or self.fault.then == GOES_ON else COMES_BACK

    @property
    def seconds(self) -> float:
        """From the fault to what has to be done about it, at most."""
        return max(FAULTS[each.fault].seconds for each in self.triggers) + (START if self._at_start else 0)

    @property
    def settings(self) -> dict[str, str]:
        """The library's settings, by variable."""
        told = {"COLLECTIVE_RECOVERY_SECONDS": str(START)} if self.level == "L3" else {}
        told |= {name: value for each in self.triggers for name, value in FAULTS[each.fault].settings}
        if self._at_start:
            told |= {"COLLECTIVE_TIMEOUT_SECONDS": str(START), "COLLECTIVE_RECOVERY_SECONDS": str(START)}
        return told

    @property
    def _at_start(self) -> bool:
        """Whether it strikes where only waiting shows that a rank is gone."""
        return self.moment in (BEFORE_INIT, RECOVERY)

    def __str__(self) -> str:
        return f"{self.level} {self.network}: {', then '.join(map(str, self.triggers))}"


def draw(
    faults: Sequence[str],
    moments: Sequence[str],
    levels: Sequence[str],
    networks: Sequence[str],
    ranks: int,
    seed: int,
    repeats: int,
) -> Iterator[Case]:
    """All cases, each drawn from the seed by itself, so that it stays the same whichever others there are."""
    for repeat in range(repeats):
        for network in networks:
            for level in levels:
                for fault in faults:
                    for moment in moments:
                        if is_possible(fault, moment, level, network):
                            luck = random.Random(f"{seed} {network} {level} {fault} {moment} {repeat}")  # noqa: S311
                            yield Case(level, network, ranks, _triggers(fault, moment, level, ranks, luck), repeat)


def is_possible(fault: str, moment: str, level: str, network: str) -> bool:
    """Tell whether a fault can be tried so."""
    needs = FAULTS[fault].needs
    if "hosts" in needs and network != HOSTS:
        return False
    if needs.startswith("small") and network == HOSTS:
        return False  # they are around the processes of this machine
    if needs == "small shared memory" and level in ("L2", "L3"):
        return False  # they keep the state there
    if (level != "L1" and fault in OF_CHECKPOINTS) or (level == "L0" and moment in (CHECKPOINT, RECOVERY)):
        return False
    if moment == RECOVERY:
        return fault in SECOND
    return moment in FAULTS[fault].moments


def _triggers(fault: str, moment: str, level: str, ranks: int, luck: random.Random) -> tuple[Trigger, ...]:
    victim = _victim(FAULTS[fault], moment, ranks, luck)
    # What is written may be written before anybody has looked; then it is the next one's turn.
    last = LAST_STEP if moment != CHECKPOINT else LAST_STEP // 2
    step = 0 if moment == BEFORE_INIT else luck.randint(FIRST_STEP, last)
    if moment == RECOVERY:
        # In place, who recovers is who is left.
        first = (victim + 1) % ranks if level == "L3" else luck.randrange(ranks)
        return Trigger("kill", first, trigger.BETWEEN_STEPS, step, 0), Trigger(
            fault, victim, moment, step, luck.randint(0, LONGEST_RECOVERY)
        )
    delay = luck.randint(0, LONGEST_DELAY) if moment in (trigger.ALLREDUCE, CHECKPOINT) else 0
    return (Trigger(fault, victim, moment, step, delay),)


def _victim(fault: Fault, moment: str, ranks: int, luck: random.Random) -> int:
    if fault.victim == FIRST or moment == CHECKPOINT:  # rank 0 writes
        return 0
    # What differs on rank 0 only is told as the others' fault.
    return luck.randrange(ranks) if fault.victim == ANY and fault.then == ENDS else ranks - 1
