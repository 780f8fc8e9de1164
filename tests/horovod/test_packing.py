"""How arrays become what Horovod carries; needs neither Horovod nor TensorFlow."""

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collective.backends import horovod
from collective.reduce_ops import Average, Max, Min, Product, Sum

DTYPES = [*map(np.dtype, "?bBhHiIlLefdgFDG"), np.dtype(ml_dtypes.bfloat16)]


@given(sizes=st.lists(st.integers(0, 40), max_size=6), limit=st.integers(1, 50))
def test_parts_are_full_and_go_back_where_they_came_from(sizes, limit):
    views = [np.arange(size) + 100 * place for place, size in enumerate(sizes)]
    expected = np.concatenate([*views, np.zeros(0)])
    messages = list(horovod._pack(views, limit))
    totals = [sum(part.size for part in parts) for parts in messages]
    assert all(total == limit for total in totals[:-1])
    assert all(0 < total <= limit for total in totals)
    np.testing.assert_array_equal(
        np.concatenate([np.zeros(0), *(np.concatenate(parts) for parts in messages)]), expected
    )
    for parts in messages:
        horovod._unpack(-np.concatenate(parts), parts)
    np.testing.assert_array_equal(np.concatenate([*views, np.zeros(0)]), -expected)


@given(
    rows=st.integers(0, 5),
    row=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(DTYPES),
)
def test_rows_of_any_dtype_survive_the_way(rows, row, dtype):
    array = (np.arange(rows * np.prod(row, dtype=int)) % 2).astype(dtype).reshape(rows, *row)
    sent = horovod._to_rows(array)
    assert sent.dtype in (np.int64, np.uint8)
    assert sent.ndim == 2
    assert sent.shape[0] == rows
    back = horovod._from_rows(sent, array)
    assert back.dtype == dtype
    assert back.shape == array.shape
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


@given(rows=st.integers(0, 50), size=st.integers(1, 9))
def test_first_ranks_get_one_row_more(rows, size):
    assert horovod._shares(rows, size) == [len(part) for part in np.array_split(np.zeros(rows), size)]


def test_horovod_reduces_only_what_it_reduces_right():
    for dtype in DTYPES:
        for op in (Sum, Average, Product):
            carrier = horovod.carrier_of(op, dtype)
            assert carrier is None or carrier.itemsize >= dtype.itemsize
            assert (carrier is None) == (dtype.itemsize < 2 or dtype.kind == "c" or dtype.char in "hHg")
        for op in (Min, Max):
            assert horovod.carrier_of(op, dtype) == (dtype if dtype.char in "bBil" else None)
