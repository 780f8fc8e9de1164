"""A small training in an elastic job, disturbed as told: FOLDER STEPS [WHAT@RANK@STEP ...]

What happens on that rank in that step: ``before`` it shares its gradient, ``within`` or ``after`` that, it dies;
``late``: it computes for 5 seconds; ``raise``: its program fails; ``ask``: it asks for one rank more.
``recovering@RANK@0``: it dies in the midst of going on, after the others have met.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

import collective
from collective import world
from collective.common import elastic
from collective.transport import recovery

FOLDER, STEPS, FAULTS = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
COMMIT_EVERY, ROWS, COLUMNS = 3, 12, 40
WITHIN = any(fault.startswith("within") for fault in FAULTS)
LARGE = 2**20


def gradient(weights, step, rank, size):
    """Of the rows that this rank has in this step."""
    rows = np.random.default_rng(step).normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return (weights - rows[rank * ROWS // size : (rank + 1) * ROWS // size]).sum(axis=0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError("bad data")


def ask():
    elastic.ask_for_ranks(collective.size() + 1)


ACTIONS = {"late": lambda: time.sleep(5), "raise": fail, "ask": ask, "before": die, "within": die, "after": die}


def disturb(what, step):
    """Do what is to happen now; once, however often the step is done, and by whom."""
    done = FOLDER / f"{what}.done"
    if f"{what}@{collective.rank()}@{step}" in FAULTS and not done.exists():
        done.write_text(str(time.time()))
        ACTIONS[what]()


@elastic.run
def train(state):
    for done in FOLDER.glob("*.done"):
        seconds = time.time() - float(done.read_text())
        print(f"at step {state.step} {seconds:.3f} s after {done.stem}", flush=True)
    while state.step < STEPS:
        rank, size = collective.rank(), collective.size()
        for what in ("late", "raise", "ask", "before"):
            disturb(what, state.step)
        if WITHIN:
            threading.Timer(5e-3, disturb, ("within", state.step)).start()
            for _ in range(20):
                assert collective.allreduce(np.full(LARGE, rank, np.float32), collective.Sum)[-1] == sum(range(size))
        total = collective.allreduce(gradient(state.weights, state.step, rank, size), collective.Sum)
        disturb("after", state.step)
        state.weights = state.weights - np.float32(0.01) * total
        state.sizes = [*state.sizes, size]
        state.step += 1
        if state.step % COMMIT_EVERY == 0:
            state.commit()


def main():
    collective.init()
    if f"recovering@{collective.rank()}@0" in FAULTS:
        recovery._tried = lambda communicator: die()
    state = elastic.ObjectState(step=0, sizes=[], weights=np.zeros(COLUMNS, np.float32))
    train(state)
    result = {"sizes": state.sizes, "weights": state.weights.tobytes().hex(), "newcomer": world.backend().is_newcomer}
    (FOLDER / f"rank{collective.rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
