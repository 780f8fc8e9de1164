"""Hosts with several ranks each: finding them, and the all-reduce over them for any numbers of ranks a host."""

import collections
import itertools
import logging

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.algorithms import hierarchical, ring, shared_memory
from collective.errors import SharedMemoryError
from collective.reduce_ops import Average, Max, Min, Product, Sum
from collective.reduction import reduction_for
from collective.transport import hosts as placing
from collective.transport import segment
from collective.transport.memory import run_ranks
from collective.transport.patience import Patience

BFLOAT16, FLOAT16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
UFUNCS = {Sum: np.add, Average: np.add, Min: np.minimum, Max: np.maximum, Product: np.multiply}
# Ranks of each host: equal and unequal, and one among several.
RANKS_OF_HOSTS = st.lists(st.integers(1, 4), min_size=2, max_size=4).filter(lambda ranks: max(ranks) > 1)


def placed(ranks_of_hosts, in_turn):
    """The host of every rank."""
    names = [[f"host{number}"] * ranks for number, ranks in enumerate(ranks_of_hosts)]
    if in_turn:
        return [name for row in itertools.zip_longest(*names) for name in row if name]
    return list(itertools.chain(*names))


def tiny_segments(ranks):
    """So small that an array takes several turns through one."""
    return 4 * ranks * ranks * 64


@settings(max_examples=150, deadline=None)
@given(
    ranks_of_hosts=RANKS_OF_HOSTS,
    in_turn=st.booleans(),
    calls=st.lists(
        st.tuples(
            st.integers(0, 900),
            st.sampled_from([np.float32, np.float64, np.int32, np.float16, ml_dtypes.bfloat16]),
            st.sampled_from(list(UFUNCS)),
            st.sampled_from([None, FLOAT16, BFLOAT16]),
            st.sampled_from(["hierarchical", "hierarchical", "ring"]),
        ),
        min_size=1,
        max_size=4,
    ),
    piece_bytes=st.sampled_from([64, 256, 1000, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_all_reduces_over_hosts_equal_numpy(ranks_of_hosts, in_turn, calls, piece_bytes, seed):
    """Several operations one after the other, of any kind, without a barrier."""
    hosts = placed(ranks_of_hosts, in_turn)
    size = len(hosts)

    def values(rank, number):
        length, dtype, *_ = calls[number]
        return np.random.default_rng([seed, number, rank]).integers(-2, 3, length).astype(dtype)

    def one_rank(transport):
        placing.share_memory(transport, hosts, tiny_segments, Patience(0))
        assert transport.hierarchy.lanes == min(ranks_of_hosts)
        results = []
        for number, (_, dtype, op, wire, name) in enumerate(calls):
            array = values(transport.rank, number)
            reduction = reduction_for(op, np.dtype(dtype), size, wire)
            algorithm = {"ring": ring, "hierarchical": hierarchical}[name]
            algorithm.all_reduce(transport, array, reduction, piece_bytes)
            results.append(array)
        return results

    results = run_ranks(size, one_rank)
    for number, (_, dtype, op, wire, _) in enumerate(calls):
        dtype = np.dtype(dtype)
        expected = UFUNCS[op].reduce([values(rank, number).astype(np.float64) for rank in range(size)])
        if op is Average:
            expected = np.trunc(expected / size) if dtype == np.int32 else expected / size
        result = results[0][number]
        assert all(other[number].tobytes() == result.tobytes() for other in results)
        tolerance = 0.2 if dtype.itemsize == 2 or wire else 1e-5
        np.testing.assert_allclose(result.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def place(hosts):
    def one_rank(transport):
        placing.share_memory(transport, hosts, tiny_segments, Patience(0))
        return transport.shared, transport.hierarchy

    return run_ranks(len(hosts), one_rank)


def test_ranks_of_one_host_share_memory():
    for rank, (shared, hierarchy) in enumerate(place(["a"] * 3)):
        assert (shared.rank, shared.size, hierarchy) == (rank, 3, None)


@pytest.mark.parametrize("hosts", [["a"], ["a", "b", "c"]])
def test_ranks_with_a_host_each_share_nothing(hosts):
    assert place(hosts) == [(None, None)] * len(hosts)


def test_every_host_has_as_many_lanes_as_the_smallest_has_ranks():
    found = [hierarchy for _, hierarchy in place(["a", "b", "a", "a", "b"])]
    assert [place.lanes for place in found] == [2] * 5
    assert [(place.host, place.hosts) for place in found] == [(0, 2), (1, 2), (0, 2), (0, 2), (1, 2)]
    assert [(place.local.rank, place.local.size) for place in found] == [(0, 3), (0, 2), (1, 3), (2, 3), (1, 2)]
    assert [place.cross and (place.cross.rank, place.cross.size) for place in found] == [
        (0, 2), (1, 2), (0, 2), None, (1, 2),
    ]  # fmt: skip


def test_a_host_with_one_rank_needs_no_memory():
    found = [hierarchy for _, hierarchy in place(["a", "b", "b"])]
    assert [place.local.shared is None for place in found] == [True, False, False]
    assert [place.lanes for place in found] == [1, 1, 1]


@pytest.mark.parametrize("hosts", [["a"] * 3, ["a", "b", "a", "b"], ["a", "a", "b"]])
def test_all_go_by_messages_when_one_host_cannot_share(hosts, monkeypatch, caplog):
    create = segment.create

    def fails_on_a(transport, *arguments):
        if hosts[transport.members[0]] == "a":
            raise SharedMemoryError("the ranks of one host share memory", received="No space left on device")
        return create(transport, *arguments)

    monkeypatch.setattr(segment, "create", fails_on_a)
    with caplog.at_level(logging.WARNING):
        assert place(hosts) == [(None, None)] * len(hosts)
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text


def test_the_segment_of_shared_memory_that_is_used_for_real():
    """Of whole size, and an array of several pieces a lane."""
    hosts = ["a", "b", "a", "b", "a"]
    inputs = np.random.default_rng(5).integers(-99, 99, (len(hosts), 300_001)).astype(np.float32)

    def one_rank(transport):
        placing.share_memory(transport, hosts, shared_memory.segment_size, Patience(0))
        array = inputs[transport.rank].copy()
        hierarchical.all_reduce(transport, array, reduction_for(Sum, array.dtype, len(hosts)), 64 * 1024)
        return array

    for result in run_ranks(len(hosts), one_rank):
        np.testing.assert_array_equal(result, inputs.sum(0))


class Lazy:
    """Moves messages only while it is called, as MPI does: one of those sent leaves when its rank has asked often."""

    native = shared = hierarchy = None

    def __init__(self, transport):
        self.rank, self.size, self.transport = transport.rank, transport.size, transport
        self.members = transport.members
        self.unsent, self.asked = collections.deque(), 0
        self.patience = 1 + transport.rank * 17 % 40

    def push(self):
        self.asked += 1
        if self.unsent and self.asked % self.patience == 0:
            request, buffer, to = self.unsent.popleft()
            request.request = self.transport.send(buffer, to)

    def send(self, buffer, to):
        request = LazyRequest(self)
        self.unsent.append((request, buffer, to))
        return request

    def receive(self, buffer, source):
        return LazyRequest(self, self.transport.receive(buffer, source))


class LazyRequest:
    def __init__(self, transport, request=None):
        self.transport, self.request = transport, request

    def done(self):
        self.transport.push()
        return self.request is not None and self.request.done()

    def wait(self):
        Patience(0, timeout_seconds=20).wait(self.done)


@pytest.mark.parametrize("ranks_of_hosts", [[2, 2], [3, 2, 2], [1, 2]])
def test_messages_move_on_while_a_rank_waits_for_its_host(ranks_of_hosts):
    """Else each of two lanes may wait for a message that the other's neighbour has begun to send."""
    hosts = placed(ranks_of_hosts, in_turn=False)
    inputs = np.random.default_rng(6).integers(-99, 99, (len(hosts), 5000)).astype(np.float32)

    def one_rank(transport):
        lazy = Lazy(transport)
        patience = Patience(0, timeout_seconds=10)
        patience.progress = lazy.push
        placing.share_memory(lazy, hosts, tiny_segments, patience)
        array = inputs[transport.rank].copy()
        hierarchical.all_reduce(lazy, array, reduction_for(Sum, array.dtype, len(hosts)), 256)
        return array

    for result in run_ranks(len(hosts), one_rank):
        np.testing.assert_array_equal(result, inputs.sum(0))
