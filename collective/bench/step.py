"""A training step of Keras on TensorFlow, without averaging, with ours and with Horovod's.

What communication adds to the step is *exposed*; the rest is hidden behind the computation. Steps are calls of the
model's ``train_function`` on one iterator: ``model.fit`` costs a tenth of a second an epoch beside its steps.
Horovod runs in processes of its own: its thread slows down even the steps without averaging.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import collective
from collective import world
from collective.bench.contenders import OURS, gloo
from collective.bench.measure import from_all_ranks, summarize
from collective.bench.rows import Progress, Row
from collective.bench.subject import Events, Subject
from collective.bench.units import count_of, milliseconds, names_of, ratio
from collective.errors import CollectiveError

if TYPE_CHECKING:
    from collective.bench.models import Model

TABLE = "Keras on TensorFlow, Adam"
MODELS = ("mlp", "wide", "cnn")
ALONE = "alone"
# These average nothing, so the ranks' weights differ: a meeting in every step, one with copies as results, and Gloo
# that begins with the step.
MEETING, COPIES, AHEAD = "barrier", "copies", "gloo-ahead"
# Contenders take turns by blocks of steps: one alone would find another's weights in the cache.
BLOCK = 10
RATE = 1e-3


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Declare which models are trained, and for how long."""
    parser.add_argument(
        "--models", type=names_of(MODELS), default=",".join(MODELS), metavar="NAME,...", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument("--steps", type=count_of, default=100, metavar="N", help="of each contender (default: 100)")


def measure_all(arguments: argparse.Namespace, names: Sequence[str]) -> Events:
    """Train every model with every contender, and without averaging; called by all ranks."""
    collective.init()
    from collective.bench.models import MODELS as models

    rounds = max(1, arguments.steps // BLOCK)
    for number, name in enumerate(arguments.models, 1):
        yield Progress(f"{name}, {' and '.join(names)}", number, len(arguments.models))
        yield measure_one(name, models[name], names, rounds)


def measure_one(name: str, model: Model, names: Sequence[str], rounds: int) -> Row:
    """Time ``rounds`` blocks of steps of each contender; called by all ranks."""
    from collective.bench import averaging

    trained = {name: model.build() for name in (ALONE, *names)}
    for contender, built in trained.items():
        averages = averaging.AVERAGING.get(contender, averaging.alone)
        _compile(built, averages)
    steps = {contender: _stepper(model, built) for contender, built in trained.items()}
    if AHEAD in steps:
        steps[AHEAD] = _ahead(steps[AHEAD], trained[AHEAD].count_params())
    _blocks([*steps.values()], 0)  # the first traces the graph
    own = np.concatenate([_blocks([*steps.values()], number) for number in range(rounds)])
    for contender in [name for name in names if name not in (MEETING, COPIES, AHEAD)]:
        _check(contender, trained[contender].get_weights())
    spreads = summarize(list(trained), from_all_ranks(own))
    # In another contender's processes the step without averaging is not the same.
    values = {_label(contender, names[0]): spread for contender, spread in spreads.items()}
    details = {"parameters": trained[ALONE].count_params(), "batch": model.batch}
    return Row(TABLE, name, len(own), values, details)


def _label(contender: str, first: str) -> str:
    return f"{ALONE} beside {first}" if contender == ALONE and first != OURS else contender


def _compile(model: Any, averages: Callable[[Any], Any]) -> None:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(averages(keras.optimizers.Adam(RATE)), loss, jit_compile=False)
    model.make_train_function()


def _stepper(model: Model, built: Any) -> Callable[[], None]:
    """One training step on this rank's own batch of random samples."""
    import tensorflow as tf

    from collective.bench.models import CLASSES

    random = np.random.default_rng(world.rank())
    samples = random.standard_normal((model.batch, *model.input_shape), np.float32)
    labels = random.integers(CLASSES, size=model.batch)
    iterator = iter(tf.data.Dataset.from_tensors((samples, labels)).repeat())
    return lambda: built.train_function(iterator)


def _ahead(step: Callable[[], None], parameters: int) -> Callable[[], None]:
    """The step while Gloo adds as many values, as if all gradients were there when it begins: the most to be hidden."""
    import torch.distributed

    gloo()  # connects the ranks
    values = torch.zeros(parameters)

    def run() -> None:
        under_way = torch.distributed.all_reduce(values, async_op=True)
        step()
        under_way.wait()

    return run


def _blocks(steps: Sequence[Callable[[], None]], number: int) -> np.ndarray:
    """Time a block of each contender's steps: float64[steps, contenders, 2], wall and CPU seconds of this rank."""
    seconds = np.empty((BLOCK, len(steps), 2))
    for place in np.random.default_rng(number).permutation(len(steps)):  # the same on all ranks
        collective.barrier()
        for count in range(BLOCK):
            cpu, start = time.process_time(), time.perf_counter()
            steps[place]()
            seconds[count, place] = time.perf_counter() - start, time.process_time() - cpu
    return seconds


def _check(contender: str, weights: Sequence[np.ndarray]) -> None:
    """See that averaging took place: ranks with different batches have the same weights."""
    checksum = 0
    for weight in weights:
        checksum = zlib.crc32(weight.tobytes(), checksum)
    checksums = set(collective.allgather(np.array([checksum])).tolist())
    if len(checksums) != 1:
        raise CollectiveError(
            "ranks that average have the same weights",
            received=f"{len(checksums)} different ones",
            operation=contender,
            where=world.topology().where,
        )


def cells(row: Row, arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:  # noqa: ARG001
    """Milliseconds of a step, and how many of them communication adds."""
    least, ours = row.values[ALONE].median, row.values[OURS].median
    told = {"model": row.label} | {name: f"{value:,}" for name, value in row.details.items()}
    told |= {f"{name}, ms": milliseconds(spread.median) for name, spread in row.values.items()}
    averaging = [name for name in row.values if not name.startswith(ALONE)]
    told |= {f"{name} exposed, ms": milliseconds(row.values[name].median - least) for name in averaging}
    others = [name for name in averaging if name != OURS]
    return told | {f"{name} / {OURS}": ratio(row.values[name].median, ours) for name in others}


SUBJECT = Subject(
    title="Training step",
    measure=measure_all,
    cells=cells,
    contenders={
        OURS: "tensorflow",
        MEETING: "tensorflow",
        COPIES: "tensorflow",
        AHEAD: "torch",
        "horovod": "horovod",
        "horovod-each": "horovod",
    },
    usual=(OURS, MEETING, "horovod", "horovod-each"),
    job_of=lambda name: "horovod" if name.startswith("horovod") else OURS,
)
