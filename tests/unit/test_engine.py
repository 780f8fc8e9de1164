"""The engine on threads as ranks: operations are matched by name, whatever order they come in."""

import concurrent.futures
import itertools
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective.algorithms import words
from collective.engine import tuning
from collective.engine.arena import Arena, rounded
from collective.engine.calls import DIGEST_BITS, JOIN, SHUTDOWN, Call, kinds
from collective.engine.engine import Engine
from collective.engine.fusion import Layout, buckets, reversed_buckets
from collective.engine.matching import BUSY
from collective.engine.operations import AllGather, AllReduce, Broadcast, Together
from collective.engine.planner import Planner
from collective.engine.stand_in import stand_in
from collective.engine.ways import Resources
from collective.errors import ArgumentError, MismatchError, TransportError
from collective.reduce_ops import Average, Sum
from collective.settings import Settings
from collective.transport.memory import run_ranks
from collective.transport.patience import Patience
from collective.transport.shared import SharedMemory, flag_bytes


def segment_bytes(size):
    return 4 * size * size * 64 if size > 1 else 0


class Ranks:
    """One rank's engine and the operations it is given."""

    def __init__(self, transport, may_call_more=True, **options):
        self.patience = Patience(0, options.pop("timeout", 20))
        # The ranks are threads of one process, so how many threads a rank has is told, not counted.
        where = f"rank {transport.rank} of {transport.size}"
        threads = 1000 if may_call_more else 0
        self.engine = Engine(transport, self.patience, self.stand_in, where, lambda: threads)
        self.resources = Resources.for_transport(transport, Settings(**options), self.patience)
        self.planner = Planner(self.resources, {key: [(1000, "exchange")] for key in ("in place", "new")})

    def stand_in(self, call, name):
        return stand_in(call, name, self.engine, self.planner)

    def join(self):
        return Together(self.engine, Call(JOIN), JOIN, self.engine.last_to_join).wait()

    def plan(self, arrays, op=Sum, in_place=False):
        return self.planner[kinds(arrays), op, in_place, None, ""]

    def allreduce(self, name, array, op=Sum, in_place=False):
        return AllReduce(self.engine, self.plan([array], op, in_place), [array], name)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 4), count=st.integers(1, 8), seed=st.integers(0, 2**20), shared=st.booleans())
def test_ranks_start_operations_in_any_order(size, count, seed, shared):
    def one_rank(transport):
        ranks = Ranks(transport)
        order = np.random.default_rng([seed, transport.rank])
        results = []
        for _ in range(3):
            operations = {}
            for number in order.permutation(count):
                array = np.full(1 + 300 * int(number), float(transport.rank + number))
                operations[number] = ranks.allreduce(f"gradient {number}", array)
                if order.random() < 0.8:
                    operations[number].start()
            # Those that were not started are begun where they are waited for: that order has to be the same.
            results.append([operations[number].wait()[0] for number in range(count)])
        ranks.engine.close()
        return results

    for steps in run_ranks(size, one_rank, shared_bytes=segment_bytes(size) if shared else 0):
        for results in steps:
            for number, result in enumerate(results):
                np.testing.assert_array_equal(result, np.full(1 + 300 * number, size * (size - 1) / 2 + size * number))


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
    shared=st.booleans(),
)
def test_ranks_join_after_any_number_of_batches(batches, lengths, shared):
    def one_rank(transport):
        ranks = Ranks(transport)
        sums = []
        for step in range(batches[transport.rank]):
            operations = [
                ranks.allreduce(f"{step}.{number}", np.full(length, 1.0)) for number, length in enumerate(lengths)
            ]
            for operation in operations if step % 2 else operations[:0]:
                operation.start()
            sums.append([operation.wait()[0][-1] for operation in operations])
        last = ranks.join()
        after = ranks.allreduce("after", np.ones(3)).wait()[0][0]
        ranks.engine.close()
        return sums, last, after

    size = len(batches)
    results = run_ranks(size, one_rank, shared_bytes=segment_bytes(size) if shared else 0)
    for rank, (sums, last, after) in enumerate(results):
        assert sums == [[float(sum(step < other for other in batches))] * len(lengths) for step in range(batches[rank])]
        assert batches[last] == max(batches)
        assert after == size


def test_threads_wait_for_operations_in_any_order():
    def one_rank(transport):
        ranks = Ranks(transport)
        results = {}

        def work(number):
            time.sleep(0.002 * ((number + transport.rank) % 3))
            results[number] = ranks.allreduce(f"of thread {number}", np.full(3, float(number))).wait()[0]

        for _ in range(10):
            threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        ranks.engine.close()
        return [results[number].tolist() for number in range(5)]

    assert run_ranks(3, one_rank) == [[[3.0 * number] * 3 for number in range(5)]] * 3


def test_every_rank_is_told_of_a_mismatch_and_the_next_operation_works():
    def one_rank(transport):
        ranks = Ranks(transport)
        with pytest.raises(MismatchError, match=r"ranks 0, 2: .*float64\[4\].*; rank 1: .*float64\[3\]") as caught:
            ranks.allreduce("weights", np.ones(3 if transport.rank == 1 else 4)).wait()
        return caught.value.received, ranks.allreduce("weights", np.ones(2)).wait()[0].tolist()

    results = run_ranks(3, one_rank)
    assert results == [results[0]] * 3
    assert results[0][1] == [3.0, 3.0]


def test_operations_that_differ_only_in_what_is_not_told_in_full_are_told_apart():
    def one_rank(transport):
        ranks = Ranks(transport)
        arrays = [np.ones(1)] * 500 + [np.ones(1 + transport.rank)]
        with pytest.raises(MismatchError):
            AllReduce(ranks.engine, ranks.plan(arrays), arrays, "many").wait()

    run_ranks(2, one_rank)


def test_ranks_that_wait_for_different_operations_and_call_nothing_more_are_told():
    def one_rank(transport):
        ranks = Ranks(transport, may_call_more=False)
        with pytest.raises(MismatchError, match=r"rank 0: allreduce 'a'.*; rank 1: allgather 'b'"):
            if transport.rank == 0:
                ranks.allreduce("a", np.ones(2)).wait()
            else:
                AllGather(ranks.engine, ranks.resources, np.ones(2), "b").wait()
        return ranks.allreduce("c", np.ones(1)).wait()[0].tolist()

    assert run_ranks(2, one_rank) == [[2.0], [2.0]]


def test_a_rank_that_leaves_is_told_to_those_that_wait_though_they_may_call_more():
    def one_rank(transport):
        ranks = Ranks(transport)
        with pytest.raises(MismatchError, match="rank 1: shutdown"):
            if transport.rank == 0:
                ranks.allreduce("a", np.ones(2)).wait()
            else:
                Together(ranks.engine, Call(SHUTDOWN), SHUTDOWN).wait()

    run_ranks(2, one_rank)


def test_an_operation_that_another_rank_never_calls_ends_in_an_error_on_all_that_names_both():
    def one_rank(transport):
        ranks = Ranks(transport, timeout=0.5)
        ranks.allreduce("a" if transport.rank else "b", np.ones(2)).start()
        operation = ranks.allreduce("c" if transport.rank else "d", np.ones(2))
        with pytest.raises(TransportError, match=r"allreduce 'a' .* \(not called on rank 0\)"):
            operation.wait()
        with pytest.raises(TransportError, match="within 0.5 s"):  # lost is lost
            ranks.allreduce("e", np.ones(1)).wait()

    run_ranks(2, one_rank)


def test_a_name_is_pending_once():
    def one_rank(transport):
        ranks = Ranks(transport)
        first, second = (ranks.allreduce("twice", np.ones(1)) for _ in range(2))
        if transport.rank == 0:
            first.start()
            with pytest.raises(ArgumentError, match="'twice' while allreduce 'twice' of .* is pending"):
                second.start()
            with pytest.raises(ArgumentError):
                ranks.allreduce("twice", np.ones(1)).wait()
            return first.wait()[0].tolist()
        time.sleep(0.3)
        return first.wait()[0].tolist()

    assert run_ranks(2, one_rank) == [[2.0], [2.0]]


def test_handles_tell_when_they_are_done():
    looked = threading.Event()

    def one_rank(transport):
        ranks = Ranks(transport)
        operation = ranks.allreduce("late", np.ones(1))
        if transport.rank == 1:
            assert looked.wait(10)  # rank 0's can't be done before this one has begun
        operation.start()
        early = operation.done() if transport.rank == 0 else None
        looked.set()
        return early, operation.wait()[0].tolist(), operation.done()

    assert run_ranks(2, one_rank) == [(False, [2.0], True), (None, [2.0], True)]


def test_results_are_views_of_shared_memory_that_nobody_overwrites_while_they_are_held():
    def one_rank(transport):
        ranks = Ranks(transport)
        kept, memories = [], []
        for step in range(8):
            (result,) = ranks.allreduce("gradient", np.full(5000, float(step + transport.rank))).wait()
            memories.append(result.ctypes.data)
            if step in (1, 3, 4, 5):
                kept.append((step, result))
            del result
        for step, result in kept:
            np.testing.assert_array_equal(result, np.full(5000, 2 * step + 1.0))
        return memories, ranks.resources.arena.row_bytes

    for memories, row_bytes in run_ranks(2, one_rank, shared_bytes=segment_bytes(2)):
        assert memories[0] == memories[1]  # nobody held the first one
        assert len(set(memories)) >= 4
        assert row_bytes <= 3 * rounded(5000 * 8)


def test_a_result_held_by_one_rank_only_is_safe_as_well():
    def one_rank(transport):
        ranks = Ranks(transport)
        (first,) = ranks.allreduce("gradient", np.full(5000, 1.0)).wait()
        if transport.rank == 0:
            del first
        for step in range(3):
            ranks.allreduce("gradient", np.full(5000, float(step))).wait()
        return first.sum() if transport.rank else None

    assert run_ranks(2, one_rank, shared_bytes=segment_bytes(2))[1] == 10_000


@given(lengths=st.lists(st.integers(0, 50), max_size=12), limit=st.sampled_from([0, 64, 200, 10_000]))
def test_buckets_hold_every_array_once_in_order_and_within_their_size(lengths, limit):
    sizes = [4 * length for length in lengths]
    grouped = list(buckets(sizes, limit))
    assert [place for bucket in grouped for place in bucket] == list(range(len(sizes)))
    assert all(len(bucket) == 1 or sum(sizes[place] for place in bucket) <= limit for bucket in grouped)


@given(shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=9))
def test_a_layout_packs_and_gives_back_and_begins_every_array_at_a_cache_line(shapes):
    arrays = [np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) for rows, columns in shapes]
    layout = Layout(shapes, np.dtype(np.float32))
    flat = np.zeros(layout.elements, np.float32)
    layout.pack(arrays, flat)
    for array, view in zip(arrays, layout.views(flat), strict=True):
        np.testing.assert_array_equal(view, array)
        assert (view.ctypes.data - flat.ctypes.data) % 64 == 0 or not view.size
    flat *= 2
    layout.unpack(flat, arrays)
    for array, view in zip(arrays, layout.views(flat), strict=True):
        np.testing.assert_array_equal(array, view)


@given(
    shapes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), min_size=1, max_size=9),
    data=st.data(),
)
def test_a_layout_that_is_packed_between_two_places_leaves_the_rest_alone(shapes, data):
    arrays = [1 + np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) for rows, columns in shapes]
    layout = Layout(shapes, np.dtype(np.float32))
    start, stop = sorted(data.draw(st.integers(0, layout.elements)) for _ in range(2))
    whole, part = np.zeros((2, layout.elements), np.float32)
    layout.pack(arrays, whole)
    layout.pack(arrays, part, start, stop)
    np.testing.assert_array_equal(part[start:stop], whole[start:stop])
    assert not part[:start].any()
    assert not part[stop:].any()


def test_new_results_are_one_bucket_and_large_arrays_in_place_travel_alone():
    def work(transport):
        ranks = Ranks(transport, fusion_bytes=64, algorithm="ring")
        arrays = [np.zeros(length, np.float32) for length in (1, 1000, 2)]
        return [type(ranks.plan(arrays, in_place=in_place).way).__name__ for in_place in (False, True)]

    assert run_ranks(2, work) == [["Bucketed", "InTurn"]] * 2


@given(size=st.integers(0, 2**40))
def test_memory_is_rounded_up_by_an_eighth_at_most(size):
    assert size <= rounded(size) <= max(size * 9 / 8 + 64, 64)
    assert rounded(size) % 64 == 0


def test_an_arena_without_room_says_so():
    arena = Arena(2, lambda _: None)
    assert arena.next_place(100) == -1
    assert not arena.grow(100)


def test_a_wait_for_a_flag_that_never_comes_names_the_rank():
    memory = bytearray(flag_bytes(3) + 64)
    mine, other = (SharedMemory(rank, 3, memory, Patience(0, 0.2)) for rank in (0, 1))
    other.set_flag(0, 1)
    mine.wait_flag(0, 1, 1)
    mine.set_flag(0, 1)
    with pytest.raises(TransportError, match="rank 2 on this host"):
        mine.wait_flag(0, 2, 1)


@pytest.mark.parametrize("word", [0, 7, BUSY | 2**DIGEST_BITS - 1])
def test_an_equal_word_of_before_is_not_taken_for_the_one_that_is_waited_for(word):
    memory = bytearray(flag_bytes(2))
    mine, other = (SharedMemory(rank, 2, memory, Patience(0, 20)) for rank in (0, 1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number in range(6):
            told = pool.submit(words.all_gather, mine, word)
            with pytest.raises(concurrent.futures.TimeoutError):
                told.result(0.02)
            theirs = word if number < 5 else 1
            assert words.all_gather(other, theirs) == [word, theirs]
            assert told.result(20) == [word, theirs]


@pytest.mark.parametrize(
    ("seconds", "is_near", "again"), [(0.0, False, True), (0.01, False, False), (0.01, True, True)]
)
def test_after_a_yield_that_took_long_waits_for_messages_sleep(monkeypatch, seconds, is_near, again):
    """As beside threads that compute: a core that is yielded to them is gone for milliseconds."""
    yields = []
    monkeypatch.setattr(os, "sched_yield", lambda: (yields.append(1), time.sleep(seconds)))
    patience = Patience(0, 20)
    for count in (1, 2):
        answers = itertools.chain([False] * 25, itertools.repeat(True))
        patience.wait(lambda answers=answers: next(answers), is_near=is_near)
        if count == 1:
            first = len(yields)
    assert first > 0
    assert (len(yields) > first) is again


@given(sizes=st.lists(st.integers(0, 50), max_size=30), least=st.integers(1, 60))
def test_groups_of_gradients_begin_with_the_last_and_only_the_last_group_is_small(sizes, least):
    groups = reversed_buckets(sizes, least)
    assert [place for group in groups for place in group] == list(range(len(sizes)))[::-1]
    sums = [[sizes[place] for place in group] for group in groups]
    assert all(sum(group) >= least for group in sums[:-1])
    assert all(sum(group[:-1]) < least for group in sums)  # none is larger than it has to be


def test_broadcast_of_many_arrays_keeps_their_order():
    def one_rank(transport):
        ranks = Ranks(transport)
        arrays = [np.full(n, transport.rank * 10 + n, d) for n in range(4) for d in (np.float32, np.int64)]
        Broadcast(ranks.engine, ranks.resources, arrays, 1, "variables").wait()
        return [array.tolist() for array in arrays]

    expected = [[10 + n] * n for n in range(4) for _ in range(2)]
    assert run_ranks(3, one_rank) == [expected] * 3


@pytest.mark.parametrize("shared", [False, True])
def test_averages_of_many_arrays_are_right_in_place_and_not(shared):
    def one_rank(transport):
        ranks = Ranks(transport)
        results = []
        for in_place in (False, True):
            arrays = [np.full(n, transport.rank + n, d) for n in (1, 700, 5000) for d in ("f4", "f2", "i8")]
            operation = AllReduce(ranks.engine, ranks.plan(arrays, Average, in_place), arrays, "step")
            results.append([float(result[-1]) for result in operation.wait()])
        return results

    expected = [n + 1.0 for n in (1, 700, 5000) for _ in range(3)]
    expected[7] = float(np.float16(expected[7]))
    for results in run_ranks(3, one_rank, shared_bytes=segment_bytes(3) if shared else 0):
        for result in results:
            np.testing.assert_allclose(result, expected, rtol=1e-3)


def test_the_cut_between_small_and_large_is_where_all_sizes_together_take_the_least_time():
    def races(*small_to_large):
        return [{"native": ratio, "exchange": 9.0, "large": 1.0} for ratio in small_to_large]

    assert tuning._cut(races(0.2, 0.5, 0.9, 1.5, 2, 3, 4), "large") == [(4096, "native")]
    assert tuning._cut(races(0.2, 0.5, 1.2, 0.6, 2, 3, 4), "large") == [(16384, "native")]  # one race was disturbed
    assert tuning._cut(races(2, 2, 2, 2, 2, 2, 0.9), "large") == []
    assert tuning._cut(races(*[0.5] * 7), "large") == [(2**20, "native")]


def test_the_cache_of_measurements_forgets_the_oldest_places(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "MOST_KEPT", 2)
    for place in ("first", "second", "first", "third"):
        tuning._keep(place, {"in place": [(256, "native" if place == "third" else "exchange")], "new": []})
    assert tuning._kept() == {
        "first": {"in place": [(256, "exchange")], "new": []},
        "third": {"in place": [(256, "native")], "new": []},
    }
