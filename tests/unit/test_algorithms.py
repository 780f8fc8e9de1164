"""Every algorithm on the memory transport, for any number of ranks, length, segment size and order of operations."""

import functools
import subprocess

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.algorithms import adaptive, direct, pairwise, ring, shared_memory, tree, words
from collective.algorithms.choice import ALL_REDUCE, by_name
from collective.algorithms.segments import even_bounds, segments
from collective.errors import TransportError
from collective.reduce_ops import Average, Max, Min, Product, Sum
from collective.reduction import reduction_for
from collective.transport.memory import run_ranks
from collective.transport.patience import Patience
from collective.transport.peers import Peers, address_of

RANKS = st.integers(1, 9)
SEGMENT = st.sampled_from([64, 96, 1000, 1 << 20])
FAST = settings(max_examples=120, deadline=None)


def integers(rank, length, seed, dtype=np.float64):
    return np.random.default_rng([seed, rank]).integers(-50, 50, length).astype(dtype)


@pytest.mark.parametrize("name", ALL_REDUCE)
@FAST
@given(
    size=RANKS,
    length=st.integers(0, 700),
    segment=SEGMENT,
    op=st.sampled_from([Sum, Average, Min, Max, Product]),
    dtype=st.sampled_from([np.float64, np.float32, np.int16, np.uint8, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 99),
)
def test_all_reduce_equals_numpy(name, size, length, segment, op, dtype, seed):
    dtype = np.dtype(dtype)
    inputs = [(integers(rank, length, seed) % 3).astype(dtype) for rank in range(size)]

    def one_rank(transport):
        array = inputs[transport.rank].copy()
        reduction = reduction_for(op, dtype, size)
        by_name(name, transport)(transport, array, reduction, segment)
        return array

    results = run_ranks(size, one_rank, shared_bytes=4 * size * size * 64 if size > 1 else 0)
    ufunc = {Sum: np.add, Average: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}[op]
    with np.errstate(all="ignore"):
        expected = functools.reduce(ufunc, [i.astype(np.float64) if dtype.kind not in "iu" else i for i in inputs])
        if op is Average:
            expected = expected / size if dtype.kind not in "iu" else (expected // size)
    tolerance = 0 if dtype.kind in "iu" else {2: 0.05, 4: 1e-5, 8: 1e-12}[dtype.itemsize]
    np.testing.assert_allclose(results[0].astype(np.float64), np.float64(expected), rtol=tolerance, atol=tolerance)
    assert all(result.tobytes() == results[0].tobytes() for result in results)


@FAST
@given(size=RANKS, lengths=st.lists(st.integers(0, 60), min_size=9, max_size=9), segment=SEGMENT)
def test_ring_all_gather_fills_in_uneven_parts(size, lengths, segment):
    bounds = np.concatenate([[0], np.cumsum(lengths[:size])]).tolist()

    def one_rank(transport):
        array = np.full(bounds[-1], -1.0)
        start, stop = bounds[transport.rank], bounds[transport.rank + 1]
        array[start:stop] = np.arange(start, stop)
        ring.all_gather(transport, array, bounds, segment)
        return array

    for result in run_ranks(size, one_rank):
        np.testing.assert_array_equal(result, np.arange(bounds[-1]))


@FAST
@given(size=RANKS, length=st.integers(0, 300), segment=SEGMENT)
def test_ring_reduce_scatter_gives_each_rank_its_part(size, length, segment):
    bounds = even_bounds(length, size)

    def one_rank(transport):
        array = integers(transport.rank, length, 0)
        ring.reduce_scatter(transport, array, bounds, reduction_for(Sum, array.dtype, size), segment)
        return array[bounds[transport.rank] : bounds[transport.rank + 1]]

    expected = sum(integers(rank, length, 0) for rank in range(size))
    np.testing.assert_array_equal(np.concatenate(run_ranks(size, one_rank)), expected)


@FAST
@given(size=RANKS, root=st.integers(0, 8), length=st.integers(0, 300), segment=SEGMENT)
def test_tree_broadcast_reaches_all(size, root, length, segment):
    root %= size

    def one_rank(transport):
        array = integers(transport.rank, length, 1)
        tree.broadcast(transport, array, root, segment)
        return array

    for result in run_ranks(size, one_rank):
        np.testing.assert_array_equal(result, integers(root, length, 1))


@FAST
@given(size=RANKS, seed=st.integers(0, 99))
def test_pairwise_all_to_all_transposes(size, seed):
    lengths = np.random.default_rng(seed).integers(0, 9, (size, size))

    def one_rank(transport):
        me = transport.rank
        outgoing = [np.full(lengths[me, to], 100 * me + to) for to in range(size)]
        incoming = [np.empty(lengths[source, me], np.int64) for source in range(size)]
        pairwise.all_to_all(transport, outgoing, incoming)
        return incoming

    for me, incoming in enumerate(run_ranks(size, one_rank)):
        for source, part in enumerate(incoming):
            np.testing.assert_array_equal(part, np.full(lengths[source, me], 100 * source + me))


@FAST
@given(
    size=st.integers(2, 5),
    calls=st.lists(
        st.tuples(st.sampled_from([*ALL_REDUCE, "large"]), st.integers(0, 400), st.sampled_from(["f4", "i8"])),
        min_size=2,
        max_size=8,
    ),
    segment=SEGMENT,
)
def test_algorithms_that_follow_each_other_do_not_interfere(size, calls, segment):
    def one_rank(transport):
        results = []
        for number, (name, length, dtype) in enumerate(calls):
            array = integers(transport.rank, length, number, dtype)
            by_name(name, transport)(transport, array, reduction_for(Sum, array.dtype, size), segment)
            results.append(array)
        return results

    for results in run_ranks(size, one_rank, shared_bytes=4 * size * size * 64):
        for number, (result, (_, length, dtype)) in enumerate(zip(results, calls, strict=True)):
            np.testing.assert_array_equal(result, sum(integers(rank, length, number, dtype) for rank in range(size)))


@given(length=st.integers(0, 1000), parts=st.integers(1, 20))
def test_even_bounds_differ_by_one_at_most(length, parts):
    lengths = np.diff(even_bounds(length, parts))
    assert lengths.sum() == length
    assert sorted(lengths, reverse=True) == list(lengths)
    assert lengths.max() - lengths.min() <= 1


@given(length=st.integers(0, 1000), segment_bytes=st.integers(64, 500))
def test_segments_cover_an_array_within_their_size(length, segment_bytes):
    array = np.arange(length, dtype=np.float32)
    parts = segments(array, segment_bytes)
    np.testing.assert_array_equal(np.concatenate(parts), array)
    assert all(part.nbytes <= segment_bytes + 4 for part in parts)


def test_the_memory_transport_refuses_a_receive_of_another_size():
    def one_rank(transport):
        if transport.rank == 0:
            transport.send(np.zeros(3), 1).wait()
        else:
            transport.receive(np.zeros(2), 0).wait()

    with pytest.raises(TransportError, match="sent=24 bytes, receive=16 bytes"):
        run_ranks(2, one_rank)


def test_the_memory_transport_gives_up_on_a_message_that_never_comes():
    with pytest.raises(TransportError, match=r"nothing in 0\.2 s"):
        run_ranks(2, lambda transport: transport.receive(np.zeros(1), 1 - transport.rank).wait(), timeout=0.2)


@FAST
@given(
    size=st.integers(2, 5),
    calls=st.lists(
        st.tuples(
            st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "broadcast", "words", "ring"]),
            st.integers(0, 900),
            st.sampled_from(["f4", "i8", "i1", "f2"]),
        ),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 99),
)
def test_shared_memory_operations_follow_each_other_without_a_barrier(size, calls, seed):
    """A prototype gave wrong sums exactly where operations of different sizes used the same slots."""
    piece = 64

    def one_rank(transport):
        results = []
        for number, (kind, length, dtype) in enumerate(calls):
            array = integers(transport.rank, length, seed + number) % 5
            array = array.astype(dtype)
            reduction = reduction_for(Sum, array.dtype, size)
            bounds = uneven_bounds(length, size, seed)
            mine = slice(bounds[transport.rank], bounds[transport.rank + 1])
            if kind == "ring":
                ring.all_reduce(transport, array, reduction, 64)
            elif kind == "all_reduce":
                shared_memory.all_reduce(transport, array, reduction, 0)
            elif kind == "broadcast":
                shared_memory.broadcast(transport, array, length % size, 0)
            elif kind == "words":
                told = words.all_gather(transport.shared, 100 * number + transport.rank)
                assert told == [100 * number + rank for rank in range(size)]
            elif kind == "reduce_scatter":
                shared_memory.reduce_scatter(transport, array, bounds, reduction, 0)
                array = array[mine]
            else:
                shared_memory.all_gather(transport, array, bounds, 0)
            results.append((mine, array))
        return results

    for results in run_ranks(size, one_rank, shared_bytes=4 * size * size * piece):
        for number, ((mine, result), (kind, length, dtype)) in enumerate(zip(results, calls, strict=True)):
            everyone = [(integers(rank, length, seed + number) % 5).astype(dtype) for rank in range(size)]
            bounds = uneven_bounds(length, size, seed)
            if kind == "words":
                continue
            if kind == "broadcast":
                expected = everyone[length % size]
            elif kind == "all_gather":
                expected = np.concatenate([e[a:b] for e, a, b in zip(everyone, bounds, bounds[1:], strict=False)])
            else:
                expected = sum(everyone)[mine] if kind == "reduce_scatter" else sum(everyone)
            np.testing.assert_array_equal(result, expected)


@FAST
@given(
    size=st.integers(2, 5),
    lengths=st.lists(st.integers(0, 900), min_size=1, max_size=12),
    op=st.sampled_from([Sum, Average, Max]),
    dtype=st.sampled_from(["f4", "i8", "f2"]),
    piece=st.sampled_from([64, 200, 1 << 20]),
)
def test_direct_operations_follow_each_other_and_shared_memory(size, lengths, op, dtype, piece):
    """Ranks that are threads reach each other's arrays through the kernel like ranks that are processes."""

    def one_rank(transport):
        transport.shared.peers = direct.connect(transport.shared)
        assert transport.shared.peers
        results = []
        for number, length in enumerate(lengths):
            array = (integers(transport.rank, length, number) % 4).astype(dtype)
            algorithm = (direct, shared_memory, adaptive, adaptive)[number % 4]
            algorithm.all_reduce(transport, array, reduction_for(op, array.dtype, size), 0)
            assert transport.shared.exposed is None
            results.append(array)
        return results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "PIECE_BYTES", piece)
        everyone = run_ranks(size, one_rank, shared_bytes=4 * size * size * 64)
    for results in everyone:
        for number, (result, length) in enumerate(zip(results, lengths, strict=True)):
            values = np.array([integers(rank, length, number) % 4 for rank in range(size)])
            expected = values.max(0) if op is Max else values.sum(0) if op is Sum else values.sum(0) / size
            if dtype == "i8" and op is Average:
                expected = values.sum(0) // size
            np.testing.assert_allclose(result.astype(np.float64), expected, rtol=2e-3)
            assert result.tobytes() == everyone[0][number].tobytes()


def test_the_way_that_was_faster_lately_is_used_until_it_becomes_slower():
    lately = adaptive.Lately()
    used = []
    for seconds in ([9.0, 8.0], [3.0, 2.0], [3.0, 2.0], *[[3.0, 2.0]] * 4, *[[3.0, 5.0]] * 3, *[[3.0, 5.0]] * 4):
        for _ in range(2 if len(used) < 6 else 1):
            way = lately.fastest()
            used.append(way)
            lately.took(way, seconds[way])
    assert used[:6] == [0, 1, 0, 1, 0, 1]  # both are tried
    assert used[6:10] == [1] * 4
    assert used[10:12] == [1] * 2  # once may be chance
    assert used[-3:] == [0] * 3


@pytest.mark.parametrize("call", [Peers.read, Peers.write])
def test_memory_of_another_process_that_can_not_be_reached_is_an_error_that_names_it(call):
    with subprocess.Popen(["sleep", "30"]) as stranger:
        try:
            with pytest.raises(TransportError, match=f"Bad address at the memory of process {stranger.pid}"):
                call(Peers([stranger.pid]), 0, 4096, np.zeros(1))
        finally:
            stranger.kill()


def test_an_array_that_others_may_still_write_to_is_kept_when_the_operation_fails(monkeypatch):
    def one_rank(transport):
        transport.shared.peers = direct.connect(transport.shared)
        array = np.ones(transport.rank + 1)
        if transport.rank:
            transport.shared.peers.read = None  # fails where it is called
        try:
            direct.all_reduce(transport, array, reduction_for(Sum, array.dtype, 2), 0)
        except (TypeError, TransportError):
            return transport.shared.exposed is array

    monkeypatch.setattr("collective.transport.memory.Patience", lambda _: Patience(0, 0.5))
    assert run_ranks(2, one_rank, shared_bytes=4096) == [True, True]


def test_ranks_whose_writes_do_not_arrive_do_not_use_each_others_memory(monkeypatch):
    monkeypatch.setattr(Peers, "write", lambda *_: None)
    assert run_ranks(2, lambda transport: direct.connect(transport.shared), shared_bytes=4096) == [None, None]


def test_ranks_whose_numbers_mean_other_processes_do_not_read_each_other(monkeypatch):
    """As in containers: there is a process of that number, but not the rank's token at the address it told."""
    monkeypatch.setattr(direct, "address_of", lambda array: address_of(np.array([5], np.int64)))
    assert run_ranks(2, lambda transport: direct.connect(transport.shared), shared_bytes=4096) == [None, None]


def uneven_bounds(length, size, seed):
    cuts = np.sort(np.random.default_rng(seed).integers(0, length + 1, size - 1))
    return [0, *cuts.tolist(), length]
