"""The program that is disturbed: ``collective run -np 2 -- python -m collective.chaos.victim FOLDER MODE FAULT...``.

It trains (``training``), keeps its state as its level does (``keepers``), and tells the judge how far it is.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import collective
from collective import launched, settings
from collective.chaos import faults, keepers, training, trigger
from collective.chaos.scene import Scene, in_main_thread, listen, say
from collective.chaos.trigger import Trigger
from collective.replicas import check_replicas

CHECK_EVERY = 5
# Float64; it takes long enough that a fault can strike while it is under way.
LARGE = np.zeros(2**22)
POLL = 2e-4
# What is being written has such a name, for some milliseconds.
SCRATCH = ".step-*"


class Victim:
    """One rank: it trains, and knows when a fault is due.

    Args:
        scene: This rank.
        triggers: The faults of the case, in the order in which they may happen; the same on all ranks.
        in_place: Whether the ranks that are left recover; else others do, which are started for it.
    """

    def __init__(self, scene: Scene, triggers: Sequence[Trigger], in_place: bool) -> None:
        self.scene, self.triggers, self.in_place = scene, list(enumerate(triggers)), in_place
        memory = settings.from_environment(os.environ).snapshot_folder
        self._memory = Path(memory) if memory else None

    def reached(self, moment: str) -> None:
        """Do what is due at this moment of this step."""
        for number, due in self.triggers:
            if (due.moment, due.rank) == (moment, self.scene.rank) and due.step == self.scene.model.step:
                self._strike(number, due)

    def begin(self) -> None:
        """Make ready what strikes by itself: while a checkpoint is written, or the first fault is recovered from."""
        again = trigger.has_fired(self.scene.folder, 0)
        for number, due in self.triggers:
            if due.rank != self.scene.rank:
                continue
            if due.moment == trigger.CHECKPOINT:
                self._watch(number, due, functools.partial(self._is_written, due.step))
            if due.moment == trigger.RECOVERY and (again or self.in_place):
                self._watch(number, due, lambda: trigger.has_fired(self.scene.folder, 0))
        if again:
            (self.scene.checkpoints / faults.FILLER).unlink(missing_ok=True)

    def step(self) -> None:
        """Take a step of training; called by all ranks."""
        scene = self.scene
        scene.gradient = training.gradient(scene.model, scene.rank)
        scene.name, scene.op = "gradient", collective.Sum
        self.reached(trigger.BETWEEN_STEPS)
        self._large()
        total = self._sum()
        scene.model = training.update(scene.model, total, collective.size())
        if scene.model.step % CHECK_EVERY == 0:
            check_replicas(scene.model.arrays)

    def _sum(self) -> np.ndarray:
        """Sum the gradients, beside another operation that the victim submits in the other order."""
        scene = self.scene
        if any(due.rank == scene.rank for _, due in self.triggers):
            loss = collective.allreduce_async(np.float64(scene.rank), collective.Sum, name="loss")
            self.reached(trigger.NEGOTIATION)
            total = collective.allreduce_async(scene.gradient, scene.op, name=scene.name)
        else:
            total = collective.allreduce_async(scene.gradient, scene.op, name=scene.name)
            loss = collective.allreduce_async(np.float64(scene.rank), collective.Sum, name="loss")
        loss.wait()
        return np.asarray(total.wait())

    def _large(self) -> None:
        """Reduce something large where a fault is to strike while bytes flow."""
        due = [each for _, each in self.triggers if each.moment == trigger.ALLREDUCE]
        if any(each.step == self.scene.model.step for each in due):
            self.reached(trigger.ALLREDUCE)
            collective.allreduce(LARGE, collective.Sum, name="large")

    def _strike(self, number: int, due: Trigger) -> None:
        if due.moment == trigger.ALLREDUCE:
            timer = threading.Timer(due.delay / 1000, self._act_aside, (number, due))
            timer.daemon = True
            timer.start()
        else:
            self._act(number, due)

    def _act(self, number: int, due: Trigger) -> None:
        if trigger.fire(self.scene.folder, number):
            say("fault", rank=due.rank, step=self.scene.model.step, fault=due.fault)
            faults.FAULTS[due.fault].act(self.scene)

    def _act_aside(self, number: int, due: Trigger) -> None:
        """Act while the main thread is busy; in it, if the fault takes that."""
        if faults.FAULTS[due.fault].main:
            in_main_thread(lambda: self._act(number, due))
        else:
            self._act(number, due)

    def _watch(self, number: int, due: Trigger, is_time: Callable[[], bool]) -> None:
        """Strike as soon as ``is_time`` says so, and the delay has passed."""

        def watch() -> None:
            while not is_time():
                time.sleep(POLL)
            time.sleep(due.delay / 1000)
            self._act_aside(number, due)

        sys.setswitchinterval(POLL)  # what is written to memory takes less time than threads have in turn
        threading.Thread(target=watch, daemon=True).start()

    def _is_written(self, step: int) -> bool:
        """Whether a checkpoint or a snapshot is being written, from a step on."""
        if self.scene.model.step < step:
            return False
        on_disk = self.scene.checkpoints.glob(SCRATCH)
        in_memory = self._memory.glob(f"*/{SCRATCH}") if self._memory else ()
        return any(on_disk) or any(in_memory)


def train(victim: Victim, model: training.Model, keep: keepers.Keep) -> None:
    """Train from a state to the end; called by all ranks."""
    scene = victim.scene
    scene.model, scene.rank = model, collective.rank()
    say("start", scene.record, rank=scene.rank, size=collective.size(), step=scene.model.step)
    while scene.model.step < training.STEPS and not scene.ends_early:
        collective.report_step(scene.model.step)
        victim.step()
        say("step", rank=scene.rank, step=scene.model.step)
        keep(scene.model)


def main(words: Sequence[str] | None = None) -> None:
    """Be one rank of the job."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--group", default="")
    parser.add_argument("folder", type=Path)
    parser.add_argument("level", choices=keepers.LEVELS)
    parser.add_argument("triggers", nargs="*", type=trigger.parse)
    told = parser.parse_args(words)
    launch = launched.detect(os.environ)
    scene = Scene(told.folder, told.group, launch.rank if launch else 0)
    victim = Victim(scene, told.triggers, in_place=told.level == "L3")
    listen()
    victim.begin()
    victim.reached(trigger.BEFORE_INIT)
    collective.init()
    keepers.LEVELS[told.level](functools.partial(train, victim), scene.checkpoints)
    say("finished", scene.record, rank=collective.rank(), digest=training.digest(scene.model))


if __name__ == "__main__":
    main()
