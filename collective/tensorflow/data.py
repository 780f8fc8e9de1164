"""`tf.data` by rank: the same number of full batches on every rank, ready for ``model.fit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from collective.data import arrays
from collective.data.position import Position
from collective.data.shard import Options, Shard, check_number
from collective.errors import ArgumentError
from collective.tensorflow.graph import as_written

if TYPE_CHECKING:
    from typing_extensions import Unpack


def batches(
    data: Any, batch_size: int, *, position: Position | None = None, **options: Unpack[Options]
) -> tf.data.Dataset:
    """Return this rank's batches of arrays in memory or memory maps, with sample weights as Keras takes them.

    `collective.data.batches` for ``model.fit``: each pass is the next epoch, in the order that belongs to it. All ranks
    make the same number of passes; `CheckpointCallback` sees to it that they are at the same epoch. No messages.

        model.fit(batches((images, labels), 32, order="shuffled"), epochs=20)

    Args:
        data: As `collective.data.batches` takes it, of arrays only: x, (x, y) or (x, y, sample_weight).
        batch_size: Samples of one rank in one step.
        position: Where reading begins, for what resumes training in the middle of an epoch; None: at the start.
        options: order, uneven, seed, rank, size: see `collective.data.Shard`.

    Returns:
        As `shard`.

    Raises:
        ArgumentError: for parts of different lengths, what Keras can't take, and what `Shard` refuses.
    """
    position = position or Position()
    position.plan = Shard(arrays.length_of(data), batch_size, **options)
    plan = position.plan
    spec = _spec(data, batch_size)
    _check_element(spec)

    def one_pass() -> Iterator[tuple[Any, Any]]:
        for indexes, weights in plan.batches(*position.begin()):
            yield arrays.take(data, indexes), weights

    signature = (spec, tf.TensorSpec([batch_size], tf.float32))
    passes = tf.data.Dataset.from_generator(one_pass, output_signature=signature)
    counted = passes.apply(tf.data.experimental.assert_cardinality(plan.steps)).map(_with_weights)
    return counted.prefetch(tf.data.AUTOTUNE).with_options(_options())


def shard(
    dataset: tf.data.Dataset,
    batch_size: int,
    *,
    length: int | None = None,
    shuffle_buffer: int | None = None,
    position: Position | None = None,
    **options: Unpack[Options],
) -> tf.data.Dataset:
    """Return this rank's part of ``dataset`` in batches of static shape, with sample weights as Keras takes them.

    Every rank gets the same number of steps, and the result's cardinality says it. No messages; need not be called by
    all ranks. Orders and weights are those of `collective.data.Shard`, sample by sample, but for one: ``shuffled``
    deals the samples out strided once, then each rank shuffles its own anew for every pass. So no sample gets lost
    when one rank makes a pass more than the others (a look at the first batch, say).

    Reads: strided and shuffled, every rank reads the whole dataset and keeps its own, so shard file names or records
    and decode them in a ``map`` *after* this function; contiguous, it skips what comes before its block.

    Keras leaves sample weights out of ``metrics``: pass them as ``weighted_metrics``, so that unfilled slots don't
    count. For them to be exact over an epoch use ``uneven="mask"``, the choice for evaluation. New Keras warns that it
    doesn't shuffle a dataset: ``fit(..., shuffle=False)`` says that it need not.

    Args:
        dataset: Single samples, not batches: x, (x, y) or (x, y, sample_weight), in the same order on every rank. So
            don't shuffle it before, but by ``order="shuffled"``.
        batch_size: Samples of one rank in one step.
        length: Number of samples, for a ``dataset`` that doesn't know it itself; a longer one is cut there, running out
            of a shorter one is an error.
        shuffle_buffer: Samples in memory for the shuffled order; default: all of this rank's, an even shuffle.
        position: Where reading begins, for what resumes training in the middle of an epoch: what comes before is read
            and dropped. Each pass is the next epoch then, and its order belongs to it. None: at the start of a pass.
        options: order, uneven, seed, rank, size: see `collective.data.Shard`.

    Returns:
        A dataset of (x, y, sample_weight): y is None where ``dataset`` has none, sample_weight is float32[batch_size]
        or, where ``dataset`` has one, that times ours.

    Raises:
        ArgumentError: for a dataset of unknown or endless length, elements Keras can't take, and what `Shard` refuses.
    """
    _check_element(dataset.element_spec)
    plan = Shard(_length(dataset, length), batch_size, **options)
    if length is not None:
        dataset = dataset.take(length).apply(tf.data.experimental.assert_cardinality(length))

    def one_pass(seed: Any, anew: bool) -> tf.data.Dataset:
        samples = _samples(dataset, plan, shuffle_buffer, seed, anew).batch(batch_size, drop_remainder=True)
        return tf.data.Dataset.zip(samples, _weights(plan)).map(_with_weights)

    if position is None:
        # Ranks with one seed would shuffle alike, and neighbouring samples meet in the same step for ever.
        return one_pass(_seed(plan.seed, plan.rank), True).with_options(_options())
    position.plan = plan

    def begin() -> Iterator[tuple[int, int]]:
        epoch, start = position.begin()
        yield _seed(plan.seed, plan.rank, epoch), start

    number = tf.TensorSpec([], tf.int64)
    beginnings = tf.data.Dataset.from_generator(begin, output_signature=(number, number))

    @as_written
    def from_there(seed: tf.Tensor, start: tf.Tensor) -> tf.data.Dataset:
        # A shuffle mixes it into its own seed, and the program may set another one when it is started again.
        tf.compat.v1.get_default_graph().seed = 1 + plan.seed  # of 0 TensorFlow asks whether the other is 0, too
        return one_pass(seed, False).skip(start)

    passes = beginnings.flat_map(from_there)
    return passes.apply(tf.data.experimental.assert_cardinality(plan.steps)).with_options(_options())


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _spec(data: Any, batch_size: int) -> Any:
    """What a batch of arrays is, as ``tf.data`` has to know before."""
    if isinstance(data, Mapping):
        return {key: _spec(part, batch_size) for key, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_spec(part, batch_size) for part in data)
    if not isinstance(data, np.ndarray):
        raise ArgumentError(
            "batches for Keras are taken out of arrays",
            received=f"a {type(data).__name__}",
            fix="Pass NumPy arrays, or shard a tf.data.Dataset",
        )
    return tf.TensorSpec([batch_size, *data.shape[1:]], data.dtype)


def _check_element(spec: Any) -> None:
    if isinstance(spec, tuple) and not 1 <= len(spec) <= 3:
        raise ArgumentError(
            "an element of the dataset is x, (x, y) or (x, y, sample_weight)",
            received=f"a tuple of {len(spec)}",
            fix="Put several inputs or targets into one nested tuple or dict: ((a, b), y)",
        )


def _length(dataset: tf.data.Dataset, length: int | None) -> int:
    known = int(dataset.cardinality())
    if length is None and known < 0:
        raise ArgumentError(
            "the number of samples is known and finite, or ranks could take different numbers of steps",
            received=f"a dataset of {'endless' if known == tf.data.INFINITE_CARDINALITY else 'unknown'} length",
            fix="Pass length=... or apply tf.data.experimental.assert_cardinality(...) to the dataset",
        )
    if length is not None and 0 <= known < length:
        raise ArgumentError(
            "the dataset has as many samples as length says",
            received=f"length={length} for a dataset of {known}",
            fix="Leave length out",
        )
    return known if length is None else length


def _samples(
    dataset: tf.data.Dataset, plan: Shard, shuffle_buffer: int | None, seed: Any, anew: bool
) -> tf.data.Dataset:
    if plan.order != "shuffled":
        if shuffle_buffer is not None:
            raise ArgumentError(
                "shuffle_buffer belongs to the shuffled order",
                received=f"shuffle_buffer={shuffle_buffer}, order={plan.order!r}",
                fix="Pass order='shuffled', or leave shuffle_buffer out",
            )
        return _from_slot(dataset, plan, 0).take(plan.steps * plan.batch_size)
    buffer = plan.length // plan.size + 1 if shuffle_buffer is None else shuffle_buffer
    check_number("shuffle_buffer", buffer, 1, fix="Pass the number of samples to hold in memory")
    own = dataset.shard(plan.size, plan.rank).shuffle(buffer, seed=seed, reshuffle_each_iteration=anew)
    # Filling goes behind the shuffle: weights go by place.
    return own.concatenate(_from_slot(dataset, plan, plan.samples)).take(plan.steps * plan.batch_size)


def _from_slot(dataset: tf.data.Dataset, plan: Shard, slot: int) -> tf.data.Dataset:
    """Return the endless dataset of this rank's samples from ``slot`` on, as `Shard.positions` goes on past the end."""
    if plan.length == 0:
        return dataset
    first = int(plan.positions(np.array([slot]))[0])
    return dataset.repeat().skip(first).shard(1 if plan.order == "contiguous" else plan.size, 0)


def _weights(plan: Shard) -> tf.data.Dataset:
    """Return the weights of all steps; only the last step's differ from 1."""
    full = tf.data.Dataset.from_tensors(tf.ones(plan.batch_size)).repeat(max(plan.steps - 1, 0))
    return full.concatenate(tf.data.Dataset.from_tensors(plan.weights(max(plan.steps - 1, 0)))).take(plan.steps)


def _with_weights(batch: Any, weights: tf.Tensor) -> tuple[Any, Any, Any]:
    parts = batch if isinstance(batch, tuple) else (batch,)
    x, y, own = (*parts, None, None)[:3]
    return x, y, weights if own is None else tf.nest.map_structure(lambda part: _product(part, weights), own)


def _product(own: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Multiply sample weights [batch] or [batch, ...] with ours, in their own floating dtype or float32."""
    own = own if own.dtype.is_floating else tf.cast(own, weights.dtype)
    return own * tf.cast(tf.reshape(weights, [-1] + [1] * (own.shape.rank - 1)), own.dtype)


def _options() -> tf.data.Options:
    options = tf.data.Options()
    # A strategy must not shard a shard again, and a parallel map must keep the order: ranks deal out by number.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    return options
