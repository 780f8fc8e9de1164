"""Operations of every size, dtype and kind in a row, without a barrier between them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collective
from collective import Average, Max, Sum
from collective.algorithms import ring
from collective.reduction import reduction_for

DTYPES = [np.float32, np.float64, np.int64, np.uint8, np.float16, ml_dtypes.bfloat16]
SIZES = [0, 1, 63, 1000, 5000, 20_000, 70_000, 400_000]
KINDS = [
    "new",
    "in place",
    "named",
    "group",
    "group in place",
    "any order",
    "resident",
    "gather",
    "broadcast",
    "scatter",
    "in process sets",
]


def halves():
    """The even and the odd ranks as process sets, registered once; none where the backend has no such."""
    if collective.size() < 3 or collective.world.backend().name != "mpi":
        return []
    wanted = [list(range(start, collective.size(), 2)) for start in (0, 1)]
    known = {tuple(each.ranks): each for each in collective.world.process_sets().values()}
    return [known.get(tuple(ranks)) or collective.add_process_set(ranks) for ranks in wanted]


class Steps:
    """Draws steps that are the same on all ranks, does them, and compares with what NumPy gets from all values."""

    def __init__(self, seed):
        self.rank, self.size = collective.rank(), collective.size()
        self.random = np.random.default_rng(seed)
        # Horovod carries operations out where they are called, so it wants the same order everywhere.
        self.own_order = self.rank if collective.world.backend().name == "mpi" else 0
        self.residents = {}
        self.halves = halves()
        self.kept = []  # results that a user holds on to, with what they were

    def values(self, length, dtype):
        """Every rank's values, small enough to be exact in half precision."""
        start = self.random.integers(0, 4, self.size)
        return [((np.arange(length) + offset) % 4).astype(dtype) for offset in start]

    def step(self, kind, length, dtype):
        everyone = self.values(length, dtype)
        total, mine = sum(value.astype(np.int64) for value in everyone), everyone[self.rank]
        result = getattr(self, kind.replace(" ", "_"))(mine, everyone)
        expected = {
            "gather": lambda: np.concatenate(everyone),
            "broadcast": lambda: everyone[length % self.size],
            "scatter": lambda: np.array_split(total, self.size)[self.rank],
        }.get(kind, lambda: total)()
        assert result.dtype == dtype
        np.testing.assert_array_equal(result.astype(np.int64), expected)
        if self.random.random() < 0.1:
            self.kept = [*self.kept[-5:], (result, result.copy())]
        for held, copy in self.kept:
            np.testing.assert_array_equal(held, copy)

    def new(self, mine, everyone):
        return collective.allreduce(mine, Sum)

    def in_place(self, mine, everyone):
        array = mine.copy()
        return collective.allreduce(array, Sum, out=array)

    def named(self, mine, everyone):
        return collective.allreduce(mine, Sum, name="a name that is used again and again")

    def group(self, mine, everyone, out=None):
        half = mine.size // 2
        pieces = [mine[:half], np.zeros(3, np.int32), mine[half:], np.ones((2, 2), np.float32)]
        results = collective.grouped_allreduce(pieces, Sum, out=out and [piece.copy() for piece in pieces])
        np.testing.assert_array_equal(results[3], np.full((2, 2), self.size))
        return np.concatenate([results[0], results[2]])

    def group_in_place(self, mine, everyone):
        return self.group(mine, everyone, out=True)

    def any_order(self, mine, everyone):
        """Three operations, started in another order on every rank."""
        handles = {}
        for number in np.random.default_rng([self.own_order, mine.size]).permutation(3):
            array = mine if number == 1 else np.full(10 ** (number + 1), self.rank, np.float32)
            handles[number] = collective.allreduce_async(array, (Max, Sum, Average)[number], name=f"tensor {number}")
        assert (handles[0].wait() == self.size - 1).all()
        assert (handles[2].wait() == np.float32((self.size - 1) / 2)).all()
        return handles[1].wait()

    def resident(self, mine, everyone):
        key = (mine.size, mine.dtype)
        if key not in self.residents:
            if len(self.residents) > 4:
                self.residents.clear()
            self.residents[key] = collective.empty(*key)
        self.residents[key][:] = mine
        return collective.allreduce(self.residents[key], Sum, out=self.residents[key]).copy()

    def in_process_sets(self, mine, everyone):
        """The sums of two halves, then theirs; no half waits for the other."""
        if not self.halves:
            return collective.allreduce(mine, Sum)
        (half,) = [each for each in self.halves if each.included()]
        part = collective.allreduce(mine, Sum, process_set=half)
        return collective.allreduce(part if half.rank() == 0 else np.zeros_like(part), Sum)

    def gather(self, mine, everyone):
        return collective.allgather(mine)

    def broadcast(self, mine, everyone):
        return collective.broadcast(mine, mine.size % self.size)

    def scatter(self, mine, everyone):
        return collective.reducescatter(mine, Sum)


@given(
    calls=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from(SIZES), st.sampled_from(DTYPES)), min_size=1, max_size=10
    ),
    seed=st.integers(0, 2**20),
)
def test_operations_of_every_kind_follow_each_other(calls, seed):
    steps = Steps(seed)
    for kind, length, dtype in calls:
        steps.step(kind, length, dtype)


@pytest.mark.timeout(600)
def test_a_thousand_steps_stay_right():
    steps = Steps(7)
    for _ in range(1000):
        kind = KINDS[steps.random.integers(len(KINDS))]
        steps.step(kind, int(steps.random.choice(SIZES[:-1])), np.dtype(DTYPES[steps.random.integers(len(DTYPES))]))


def test_long_messages_come_through_while_their_sender_waits_for_a_flag(rank, size):
    """MPI moves what a rank has sent only while that rank calls MPI; a wait for a flag has to call it as well."""
    backend = collective.world.backend()
    if size == 1 or backend.name != "mpi":
        pytest.skip("one rank, or another's core, sends no messages of ours")
    reduction = reduction_for(Sum, np.dtype(np.float32), size)
    for number in range(6):
        array = np.full(15_000_000, rank + number, np.float32)
        ring.all_reduce(backend.transport, array, reduction, 256 * 1024)
        collective.barrier()
        assert (array == size * (size - 1) / 2 + size * number).all()
