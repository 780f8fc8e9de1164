"""Run a case, and judge whether the job did what it has to, in time, with the right bits, and left nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from collective.chaos import job, leftovers, surroundings, training
from collective.chaos.cases import COMES_BACK, HOSTS, Case
from collective.chaos.faults import ENDS, GOES_ON
from collective.chaos.job import Event, Job
from collective.chaos.scene import RECORD
from collective.chaos.surroundings import Network, Surroundings

# Seconds for a start, with all imports; for a whole training; and more than a bound, until a hang is called one.
START, TRAINING, HANG = 30.0, 30.0, 10.0
# From a fault to the first step after it, at most: the time to notice it, and this.
RESUME = 15.0
RESTARTS = "3"
OPTIONS = {
    "L0": (),
    "L1": ("--restarts", RESTARTS),
    "L2": ("--restarts", RESTARTS),
    "L3": ("--elastic", "--restarts", RESTARTS),
}
# Lines that tell of a failure, from whoever notices it first.
NOTICE = re.compile(r"rank|signal|exit|error|abort|lost|kill|process \d", re.IGNORECASE)
KILLED = "it had to be killed"


@dataclasses.dataclass
class Judgement:
    """What came out of a case.

    Attributes:
        case: The case in words.
        level: Its level.
        network: Its network.
        fault: Its fault; of two, the second.
        moment: When the fault struck.
        complaints: What wasn't as it has to be; empty: nothing.
        not_tried: Why it wasn't tried; empty: it was.
        status: The job's exit status; None: it had to be killed.
        detected: Seconds from the fault to the first line about it on stderr.
        ended: Seconds from the fault to the end of the job, where it ends.
        resumed: Seconds from the fault to the first step after it, where it comes back.
        steps_lost: Steps that were taken again.
        sizes: Number of ranks, for each start.
        left: Processes and files that were left behind.
        said: What stood on stderr, for those who look into it.
    """

    case: str
    level: str
    network: str
    fault: str
    moment: str
    complaints: list[str] = dataclasses.field(default_factory=list)
    not_tried: str = ""
    status: int | None = None
    detected: float | None = None
    ended: float | None = None
    resumed: float | None = None
    steps_lost: int | None = None
    sizes: list[int] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    said: str = ""


def judge(case: Case, network: Network, folder: Path | None = None, patience: float = 1.0) -> Judgement:
    """Run a case; in a process that nothing else is started from meanwhile.

    Args:
        case: What is tried.
        network: Where its ranks run.
        folder: Where its files are, which all hosts see; None: among the temporary ones.
        patience: A factor for all bounds, on machines that do other things too.
    """
    found = Judgement(str(case), case.level, case.network, case.triggers[-1].fault, case.moment)
    found.not_tried = surroundings.obstacle(case, network)
    if found.not_tried:
        return found
    leftovers.adopt_orphans()
    before, known = _files(), leftovers.descendants(os.getpid())
    with surroundings.set_up(case, network, folder) as around:
        report = around.folder / "report.json"
        done = job.run(_command(case, network, around, report), _environment(case, around), _deadline(case, patience))
        done.record = _recorded(around.folder / RECORD)
        may_stay = case.fault.leaves
        found.left = [
            f"process {words}" for words in leftovers.end_all(known) if not re.search(may_stay or "$^", words)
        ]
        if done.status is not None:  # else what is there is the judge's doing
            found.left += sorted(_files(around.temporary) - before)
        found.complaints = list(_complaints(case, done, patience))
        found.complaints += _report_complaints(case, done, report)
    found.complaints += [f"left behind: {what}" for what in found.left]
    _measure(found, case, done)
    return found


def _process(event: Event) -> tuple[str, int]:
    return event.get("host", ""), event["process"]


def _recorded(file: Path) -> list[Event]:
    """What the ranks wrote down; nothing if none came so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _command(case: Case, network: Network, around: Surroundings, report: Path) -> list[str]:
    options = ["-np", str(case.ranks), *OPTIONS[case.level], "--report", str(report)]
    options += network.options if case.network == HOSTS else ()
    victim = [sys.executable, "-m", "collective.chaos.victim", "--group", around.group, str(around.folder), case.level]
    return [*job.launcher(*options), "--", *victim, *map(str, case.triggers)]


def _environment(case: Case, around: Surroundings) -> dict[str, str]:
    return {**os.environ, **case.settings, "TMPDIR": str(around.temporary)}


def _deadline(case: Case, patience: float) -> Callable[[Job], float]:
    """When a job is called hung, by what it has told so far."""

    def deadline(done: Job) -> float:
        struck = done.all("fault")
        if not struck:
            return patience * (START + TRAINING)
        more = case.seconds + HANG if case.then == ENDS else case.seconds + RESUME + TRAINING
        return float(struck[-1]["at"]) + patience * more

    return deadline


def _complaints(case: Case, done: Job, patience: float) -> Iterator[str]:
    """What isn't as it has to be."""
    struck = done.all("fault")
    if len(struck) != len(case.triggers):
        yield f"{len(struck)} of {len(case.triggers)} faults happened"
        if not struck:
            return
    if done.status is None:
        yield KILLED
    if case.then == ENDS:
        if done.status == 0:
            yield "it ended with status 0"
        took = done.ended - struck[-1]["at"]
        if took > case.seconds * patience:
            yield f"it ended {took:.1f} s after the fault, more than {case.seconds * patience:.0f} s"
    else:
        yield from _end_complaints(case, done, patience)
    if case.level == "L0":
        for pattern in case.fault.says:
            text = pattern.format(rank=case.triggers[-1].rank)
            if not re.search(text, done.text):
                yield f"nothing said of {text}"


def _end_complaints(case: Case, done: Job, patience: float) -> Iterator[str]:
    """What isn't as it has to be in a job that comes to its end."""
    if done.status != 0:
        yield f"it ended with status {done.status}"
        return
    begun = [event for event in done.record if event["event"] == "start"]
    starts = len({event["process"] for event in begun if event["rank"] == 0})
    if case.then == GOES_ON and starts > 1:
        yield f"it was started {starts} times"
    sizes = schedule(begun)
    last = [_process(event) for event in begun[-sizes[-1] :]]
    finished = [event for event in done.record if event["event"] == "finished" and _process(event) in last]
    expected = training.undisturbed(sizes)
    wrong = [event["rank"] for event in finished if event["digest"] != expected]
    if len(finished) != sizes[-1]:
        yield f"{len(finished)} of {sizes[-1]} ranks came to their end"
    if wrong:
        yield f"other bits than an undisturbed job's on ranks {wrong}"
    resumed = _resumed(done) if case.then == COMES_BACK else None
    bound = patience * (case.seconds + RESUME)
    if resumed is not None and resumed > bound:
        yield f"it took its next step {resumed:.1f} s after the fault, more than {bound:.0f} s"


def schedule(starts: Sequence[Event]) -> list[int]:
    """On how many ranks each step was taken, of those that count."""
    sizes = [0] * training.STEPS
    for event in starts:
        sizes[event["step"] :] = [event["size"]] * (training.STEPS - event["step"])
    return sizes


def _resumed(done: Job) -> float | None:
    """Seconds from the last fault to the first step after it that a job which started since has taken."""
    fault = done.all("fault")[-1]
    starts = [event["at"] for event in done.all("start") if event["at"] > fault["at"]]
    if not starts:
        return None
    steps = [event["at"] for event in done.all("step") if event["at"] > starts[0]]
    return steps[0] - fault["at"] if steps else None


def _report_complaints(case: Case, done: Job, report: Path) -> Iterator[str]:
    """Whether the supervisor's report blames the victim, and says of what."""
    if case.then == GOES_ON:
        return
    try:
        attempts = [told for told in json.loads(report.read_text())["attempts"] if told["status"]]
    except (OSError, ValueError, KeyError) as error:
        yield f"no report: {error!r}"
        return
    if not attempts and case.level == "L3":  # where ranks go on in place nothing has failed
        return
    blamed = set[int]().union(*map(_blamed, attempts))
    victims = {each.rank for each in case.triggers}
    # Ranks that go on in place get other numbers.
    processes = {event["process"] for event in done.all("fault")}
    is_named = victims & blamed or any(told.get("process") in processes for told in attempts)
    if case.fault.blamed and not is_named:
        yield f"the report names ranks {blamed} and not {victims}: {[told.get('cause') for told in attempts]}"
    if not all(told.get("cause") for told in attempts):
        yield "the report names no cause"


def _blamed(told: Mapping[str, Any]) -> set[int]:
    """The ranks that a report blames. Before ``init`` they are told as processes."""
    if told.get("rank") is not None:
        return {int(told["rank"])}
    processes = re.match(r"process(?:es)? ([\d, ]+) of", told.get("launched_as") or told.get("cause") or "")
    return set(map(int, processes[1].split(","))) if processes else set()


def _measure(found: Judgement, case: Case, done: Job) -> None:
    """Fill in the figures."""
    found.status, found.said = done.status, done.text
    struck = done.all("fault")
    if not struck:
        return
    at = struck[-1]["at"]
    found.sizes = [event["size"] for event in done.all("start") if event["rank"] == 0]
    found.detected = next((when - at for when, line in done.said if when >= at and NOTICE.search(line)), None)
    if case.then == ENDS:
        found.ended = done.ended - at
    if case.then == COMES_BACK:
        found.resumed = _resumed(done)
        found.steps_lost = _steps_lost(done)


def _steps_lost(done: Job) -> int:
    """Steps that were taken more than once, on the rank that took the most."""
    taken: dict[int, int] = {}
    for event in done.all("step"):
        if event["rank"] == 0:
            taken[event["step"]] = taken.get(event["step"], 0) + 1
    return sum(taken.values()) - len(taken)


def _files(*more: Path) -> set[str]:
    return leftovers.files(leftovers.SHARED_MEMORY, *more)
