"""Collective operations on PyTorch tensors: against those on arrays, their gradients, their errors."""

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

torch.set_num_threads(1)

import collective
import collective.torch as hvd
from collective import Adasum, Max, Min, Product, Sum
from collective.errors import ArgumentError, MismatchError
from collective.torch.arrays import array_of

DTYPES = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64"]
LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": lambda t: t.t().contiguous().t(),
    "strided": lambda t: torch.stack([t, t], dim=2)[:, :, 1],
    "expanded": lambda t: t[:1].expand(t.shape),
}


def values(rank, shape=(4, 3), dtype="float32"):
    made = torch.from_numpy(np.random.default_rng(rank).integers(0, 7, shape))
    return (made % 2 if dtype == "bool" else made).to(getattr(torch, dtype))


def assert_same(tensor, array):
    np.testing.assert_array_equal(array_of(tensor), array)
    assert array_of(tensor).dtype == array.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_equal_those_on_arrays(dtype, layout, rank, size):
    x = LAYOUTS[layout](values(rank, dtype=dtype))
    array = array_of(x).copy()
    many, array_of_many = x[:1].repeat(size, 1), np.repeat(array[:1], size, axis=0)
    assert_same(hvd.allreduce(x, op=Sum), collective.allreduce(array, Sum))
    assert_same(hvd.allgather(x[: rank + 1]), collective.allgather(array[: rank + 1]))
    assert_same(hvd.broadcast(x, size - 1), collective.broadcast(array, size - 1))
    assert_same(hvd.reducescatter(x, op=Sum), collective.reducescatter(array, Sum))
    assert_same(hvd.alltoall(many), collective.alltoall(array_of_many))
    received, counts = hvd.alltoall(many, [1] * size)
    assert_same(received, collective.alltoall(array_of_many))
    assert counts.tolist() == [1] * size
    np.testing.assert_array_equal(array_of(x), array)  # what was given is only read


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_and_tensors_without_elements(dtype, size):
    one = torch.ones((), dtype=getattr(torch, dtype))
    result = hvd.allreduce(one, op=Sum)
    assert result.shape == ()
    assert result.dtype == one.dtype
    assert float(result.real) == (1 if dtype == "bool" else size)
    assert hvd.broadcast(one, 0).shape == ()
    empty = torch.empty((0, 3), dtype=one.dtype)
    assert hvd.allreduce(empty, op=Sum).shape == hvd.allgather(empty).shape == (0, 3)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_in_place_forms_overwrite_the_tensor_itself(dtype, layout, rank, size):
    expected = hvd.allreduce(values(rank, dtype=dtype), op=Sum)
    of_root = values(size - 1, dtype=dtype)
    forms = [
        (lambda t: hvd.allreduce_(t, op=Sum), expected),
        (lambda t: hvd.synchronize(hvd.allreduce_async_(t, op=Sum)), expected),
        (lambda t: hvd.grouped_allreduce_([t], op=Sum)[0], expected),
        (lambda t: hvd.synchronize(hvd.grouped_allreduce_async_([t], op=Sum))[0], expected),
        (lambda t: hvd.broadcast_(t, size - 1), of_root),
        (lambda t: hvd.synchronize(hvd.broadcast_async_(t, size - 1)), of_root),
    ]
    for form, right in forms:
        tensor = LAYOUTS[layout](values(rank, dtype=dtype))
        address, strides = tensor.data_ptr(), tensor.stride()
        assert form(tensor) is tensor
        assert (tensor.data_ptr(), tensor.stride()) == (address, strides)
        assert torch.equal(tensor, right)


def test_a_value_saved_for_the_gradient_is_not_overwritten_unseen(rank):
    weight = torch.ones(3, requires_grad=True)
    saved = torch.ones(3)
    loss = (weight * saved).sum()
    hvd.allreduce_(saved)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_asynchronous_forms_give_the_same_in_any_order(rank, size):
    x = values(rank)
    waited_for = [
        (hvd.allreduce_async(x, name="a", op=Sum), hvd.allreduce(x, op=Sum)),
        (hvd.grouped_allreduce_async([x, x], name="b", op=Max), [hvd.allreduce(x, op=Max)] * 2),
        (hvd.allgather_async(x, name="c"), hvd.allgather(x)),
        (hvd.grouped_allgather_async([x, x], name="d"), [hvd.allgather(x)] * 2),
        (hvd.broadcast_async(x, 0, name="e"), hvd.broadcast(x, 0)),
        (hvd.reducescatter_async(x, name="f", op=Sum), hvd.reducescatter(x, op=Sum)),
        (hvd.grouped_reducescatter_async([x], name="g"), [hvd.reducescatter(x)]),
        (hvd.alltoall_async(x[:1].repeat(size, 1), name="h"), hvd.alltoall(x[:1].repeat(size, 1), [1] * size)),
        (hvd.alltoall_async(x[:1].repeat(size, 1), [1] * size, "i"), hvd.alltoall(x[:1].repeat(size, 1), [1] * size)),
    ]
    for handle, right in waited_for[::-1] if rank % 2 else waited_for:
        result = hvd.synchronize(handle)
        assert hvd.poll(handle)
        assert hvd.synchronize(handle) is result
        if isinstance(right, (list, tuple)):
            assert all(torch.equal(one, other) for one, other in zip(result, right, strict=True))
        else:
            assert torch.equal(result, right)


def test_horovods_two_ways_to_name_the_operation(rank, size):
    x = torch.tensor([float(rank)])
    total = size * (size - 1) / 2
    assert hvd.allreduce(x).item() == pytest.approx(total / size)
    assert hvd.allreduce(x, op=Sum).item() == total
    for form in (hvd.allreduce, lambda *args, **named: hvd.synchronize(hvd.allreduce_async(*args, **named))):
        with pytest.warns(DeprecationWarning, match="average"):
            assert form(x, average=True).item() == hvd.allreduce(x).item()
        with pytest.warns(DeprecationWarning, match="average"):
            assert form(x, False).item() == total
    assert hvd.allreduce(x, op=Min).item() == 0
    assert hvd.allreduce(x + 1, op=Product).item() == np.prod(np.arange(1, size + 1))
    with pytest.raises(ValueError, match="the reduction is said once"):
        hvd.allreduce(x, average=True, op=Sum)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_factors_before_and_after(dtype, rank, size):
    x = torch.full((5,), 2 * (rank + 1)).to(getattr(torch, dtype))
    total = size * (size + 1) // 2  # of rank + 1
    factors = {"op": Sum, "prescale_factor": 0.5, "postscale_factor": 3.0}
    forms = [
        lambda t: hvd.allreduce(t, **factors),
        lambda t: hvd.allreduce_(t.clone(), **factors),
        lambda t: hvd.grouped_allreduce([t], **factors)[0],
        lambda t: hvd.grouped_allreduce_([t.clone()], **factors)[0],
        lambda t: hvd.synchronize(hvd.grouped_allreduce_async([t], **factors))[0],
        lambda t: hvd.synchronize(hvd.allreduce_async_(t.clone(), **factors)),
        lambda t: hvd.allgather(hvd.reducescatter(t, **factors)),
        lambda t: hvd.allgather(hvd.synchronize(hvd.reducescatter_async(t, **factors))),
        lambda t: hvd.allgather(hvd.grouped_reducescatter([t], **factors)[0]),
    ]
    for form in forms:
        assert form(x).tolist() == [3 * total] * 5
        assert form(x).dtype == x.dtype
        assert x.tolist() == [2 * (rank + 1)] * 5


def gradient_of(function, x, scale):
    x = x.clone().requires_grad_()
    result = function(x)
    results = result if isinstance(result, list) else [result]
    (scale * sum(one.double().sum() for one in results)).backward()
    return x.grad


def test_factors_cut_integers_off_and_round_halves_once(rank, size):
    whole = torch.tensor([7, -7, 100])
    assert hvd.allreduce(whole, op=Sum, prescale_factor=0.5).tolist() == [3 * size, -3 * size, 50 * size]
    assert hvd.allreduce(whole, op=Sum, postscale_factor=0.5).tolist() == [
        int(7 * size / 2),
        -int(7 * size / 2),
        50 * size,
    ]
    half = torch.linspace(-3, 3, 17).half()
    expected = (half.float() * 0.3).half() * size
    torch.testing.assert_close(hvd.allreduce(half, op=Sum, prescale_factor=0.3), expected, rtol=2e-3, atol=1e-5)


def test_gradients_are_horovods(rank, size):
    """Rank r's loss is (r + 1) times the sum of what the operation gave it."""
    total, mean, ones = size * (size + 1) / 2, (size + 1) / 2, torch.ones(2 * size, 3)
    by_owner = torch.arange(1, size + 1).repeat_interleave(2)[:, None] * ones
    cases = [
        (lambda x: hvd.allreduce(x, op=Sum), total * ones),
        (lambda x: hvd.allreduce(x), total / size * ones),
        (lambda x: hvd.allreduce(x, op=Sum, prescale_factor=2.0, postscale_factor=3.0), 6 * total * ones),
        (lambda x: hvd.grouped_allreduce([x, x * 2], op=Sum), 3 * total * ones),
        (lambda x: hvd.broadcast(x, size - 1), mean * ones if rank == size - 1 else 0 * ones),
        (lambda x: hvd.allgather(x), mean * ones),
        (lambda x: hvd.allgather(x, name="named"), mean * ones),
        (lambda x: hvd.grouped_allgather([x, x]), 2 * mean * ones),
        (lambda x: hvd.reducescatter(x, op=Sum), size * by_owner),
        (lambda x: hvd.reducescatter(x), by_owner),
        (lambda x: hvd.reducescatter(x, op=Sum, prescale_factor=2.0), 2 * size * by_owner),
        (lambda x: hvd.grouped_reducescatter([x, x], postscale_factor=3.0), 6 * by_owner),
        (lambda x: hvd.alltoall(x), by_owner),
        (lambda x: hvd.alltoall(x, [2] * size)[0], by_owner),
    ]
    for function, right in cases:
        torch.testing.assert_close(gradient_of(function, ones, rank + 1.0), right)


def test_the_gradient_of_uneven_rows_is_this_ranks_part(rank, size):
    mine = torch.ones(rank + 1, 2, requires_grad=True)
    rows = size * (size + 1) // 2
    weights = torch.arange(2.0 * rows).reshape(rows, 2)
    (hvd.allgather(mine) * weights).sum().backward()
    start = rank * (rank + 1) // 2
    torch.testing.assert_close(mine.grad, weights[start : start + rank + 1])

    outgoing = torch.ones(rank + size, 1, requires_grad=True)  # all of them to the last rank
    splits = torch.tensor([0] * (size - 1) + [rank + size])
    received, counts = hvd.alltoall(outgoing, splits)
    assert counts.tolist() == ([r + size for r in range(size)] if rank == size - 1 else [0] * size)
    (received * 5).sum().backward()
    torch.testing.assert_close(outgoing.grad, torch.full_like(outgoing, 5.0))

    evenly = torch.ones(size * (rank + 1), 2, requires_grad=True)  # rank + 1 to each rank
    received = hvd.alltoall(evenly)
    assert len(received) == rows
    (received * (rank + 1)).sum().backward()
    torch.testing.assert_close(evenly.grad[:, 0], torch.arange(1.0, size + 1).repeat_interleave(rank + 1))


def test_the_numbers_of_rows_are_of_the_kind_of_the_splits(size):
    x = torch.ones(size, 2)
    assert hvd.alltoall(x, [1] * size)[1].dtype is torch.int32
    for dtype in (torch.int32, torch.int64, torch.uint8):
        counts = hvd.alltoall(x, torch.ones(size, dtype=dtype))[1]
        assert counts.dtype is dtype
        assert counts.tolist() == [1] * size


def test_gradients_of_gradients(rank, size):
    x = torch.full((3,), rank + 1.0, requires_grad=True)
    result = (hvd.allreduce(x, op=Sum) ** 3).sum()
    (first,) = torch.autograd.grad(result, x, create_graph=True)
    total = size * (size + 1) / 2
    torch.testing.assert_close(first, torch.full((3,), 3 * size * total**2))
    first.sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3,), 6 * size**2 * total))


def test_a_minimum_has_no_gradient(size):
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ArgumentError, match="defined for Average and Sum"):
        hvd.allreduce(x, op=Min).sum().backward()
    assert hvd.allreduce(torch.ones(1), op=Sum).item() == size


def test_sparse_tensors_are_gathered(rank, size):
    shape = (5, 2)
    mine = torch.sparse_coo_tensor([[rank % 5, 4]], [[1.0, 2.0], [rank, rank]], shape, check_invariants=True)
    dense = hvd.allreduce(mine.to_dense(), op=Sum)
    torch.testing.assert_close(hvd.sparse_allreduce_async(mine, op=Sum)().to_dense(), dense)
    torch.testing.assert_close(hvd.sparse_allreduce_async(mine, "named").wait().to_dense(), dense / size)
    with pytest.raises(ArgumentError, match="averaged or added"):
        hvd.sparse_allreduce_async(mine, op=Max)


BAD_CALLS = {
    "no dtype of NumPy": (lambda: hvd.allreduce(torch.ones(2).to(torch.float8_e5m2)), r"torch.float8_e5m2"),
    "sparse": (lambda: hvd.allreduce(torch.ones(2).to_sparse()), "torch.sparse_coo"),
    "root": (lambda: hvd.broadcast(torch.ones(2), 99), "the root is a rank from 0"),
    "in place root": (lambda: hvd.broadcast_(torch.ones(2), -1), "the root is a rank from 0"),
    "scalar": (lambda: hvd.allgather(torch.ones(())), "at least one dimension"),
    "op": (lambda: hvd.allreduce(torch.ones(2), op="Sum"), "op is one of"),
    "splits": (lambda: hvd.alltoall(torch.ones(3), torch.tensor([5])), "splits are|whole numbers"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_arguments_are_refused_on_all_ranks_and_the_next_operation_works(case, rank, size):
    call, rule = BAD_CALLS[case]
    with pytest.raises(ArgumentError, match=rule):
        call()
    assert hvd.allreduce(torch.ones(3), op=Sum).tolist() == [size] * 3


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_bad_argument_on_one_rank_is_an_error_on_all(case, rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    call, _ = BAD_CALLS[case]
    with pytest.raises((ArgumentError, MismatchError)):
        call() if rank == 1 else hvd.allreduce(torch.ones(3))
    assert hvd.allreduce(torch.ones(3), op=Sum).tolist() == [size] * 3


def test_other_things_than_tensors_are_refused():
    with pytest.raises(ArgumentError, match=r"take tensors.*Received: list"):
        hvd.allreduce_([1.0, 2.0])


UNLIKE = {
    "dtypes": lambda r: hvd.allreduce(torch.ones(3).to([torch.float32, torch.int32][r])),
    "dimensions": lambda r: hvd.allreduce(torch.ones([3, 1][: 1 + r])),
    "operations": lambda r: hvd.allreduce(torch.ones(3), op=[Sum, Max][r]),
    "factors before": lambda r: hvd.allreduce(torch.ones(3), prescale_factor=2.0 + r),
    "factors after": lambda r: hvd.allreduce(torch.ones(3), postscale_factor=2.0 + r),
    "numbers of tensors": lambda r: hvd.grouped_allreduce([torch.ones(3)] * (1 + r)),
    "rows": lambda r: hvd.allgather(torch.ones(3, 1 + r)),
    "dtypes gathered": lambda r: hvd.allgather(torch.ones(3).to([torch.float32, torch.int32][r])),
    "roots": lambda r: hvd.broadcast(torch.ones(3), r),
    "shapes sent": lambda r: hvd.broadcast(torch.ones(3 + r), 0),
    "dtypes sent": lambda r: hvd.broadcast_(torch.ones(3).to([torch.float32, torch.int32][r]), 0),
    "rows exchanged": lambda r: hvd.alltoall(torch.ones(hvd.size(), 1 + r)),
    "shapes scattered": lambda r: hvd.reducescatter(torch.ones(3, 1 + r)),
    "factors scattered": lambda r: hvd.grouped_reducescatter([torch.ones(3)], prescale_factor=2.0 + r),
}


@pytest.mark.parametrize("case", UNLIKE)
def test_ranks_that_call_unlike_get_an_error_that_horovods_users_catch(case, rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    with pytest.raises(hvd.HorovodInternalError):
        UNLIKE[case](rank % 2)
    assert hvd.allreduce(torch.ones(3), op=Sum).tolist() == [size] * 3


@pytest.mark.parametrize("asynchronous", [False, True])
def test_ranks_that_differ_all_get_the_same_error(asynchronous, rank, size):
    if size == 1:
        pytest.skip("takes two ranks")
    tensor = torch.ones(3 + (rank == 1))
    with pytest.raises(MismatchError, match=r"float32\[4\]") as caught:
        hvd.synchronize(hvd.allreduce_async(tensor)) if asynchronous else hvd.allreduce(tensor)
    assert len(set(hvd.allgather_object(str(caught.value).split("Received: ")[1]))) == 1
    assert hvd.allreduce(torch.ones(3), op=Sum).tolist() == [size] * 3


class Thirds(hvd.compression.Compressor):
    """A user's own: a third of the values travels."""

    @staticmethod
    def compress(tensor):
        return tensor / 3, "thirds"

    @staticmethod
    def decompress(tensor, ctx):
        assert ctx == "thirds"
        return tensor * 3


COMPRESSIONS = [hvd.Compression.none, hvd.Compression.fp16, hvd.Compression.bf16, collective.Compression.fp16, Thirds]


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=str)
def test_compression_leaves_the_result_close(compression, rank, size):
    x = torch.linspace(-1, 1, 1000) * (rank + 1)
    expected = torch.linspace(-1, 1, 1000) * (size + 1) / 2
    results = [
        hvd.allreduce(x, compression=compression),
        hvd.grouped_allreduce([x, x], compression=compression)[1],
        hvd.allgather(hvd.reducescatter(x, compression=compression)),
        hvd.allgather(hvd.grouped_reducescatter([x, x], compression=compression)[1]),
    ]
    for result in results:
        torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(
        gradient_of(lambda t: hvd.allreduce(t, compression=compression), torch.ones(3), 1.0), torch.ones(3)
    )


@pytest.mark.parametrize("op", [Sum, hvd.Average])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_halves_are_rounded_as_float32_sums_are(dtype, op, rank, size):
    """At least inside a host of two: elsewhere each addition rounds."""
    parts = [torch.randn(300_001, generator=torch.Generator().manual_seed(r)).to(dtype) * 1e-3 for r in range(size)]
    expected = torch.stack([part.double() for part in parts]).sum(0) / (size if op is hvd.Average else 1)
    result = hvd.allreduce(parts[rank], op=op)
    assert result.dtype is dtype
    tolerance = torch.finfo(dtype).eps * size
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=1e-3 * tolerance)
    if size <= 2:
        assert torch.equal(result, expected.float().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32, torch.uint8])
def test_compressors_give_back_what_they_got(dtype):
    x = torch.arange(5).to(dtype)
    for compressor, small in ((hvd.Compression.fp16, torch.float16), (hvd.Compression.bf16, torch.bfloat16)):
        compressed, context = compressor.compress(x)
        assert compressed.dtype is (small if dtype.is_floating_point else dtype)
        restored = compressor.decompress(compressed, context)
        assert restored.dtype is dtype
        assert torch.equal(restored, x)
    assert hvd.Compression.none.decompress(*hvd.Compression.none.compress(x)) is x


def test_what_does_not_compress_is_refused():
    with pytest.raises(ValueError, match=r"a compression has compress.*Received: compression='fp16'"):
        hvd.allreduce(torch.ones(1), compression="fp16")


def test_adasum_in_all_forms_equals_that_on_arrays(rank):
    x = values(rank).double() + 0.5
    right = collective.allreduce(x.numpy(), Adasum)
    assert_same(hvd.allreduce(x, op=Adasum), right)
    assert_same(hvd.allreduce_(x.clone(), op=Adasum), right)
    assert_same(hvd.synchronize(hvd.allreduce_async(x, op=Adasum)), right)
    assert_same(hvd.grouped_allreduce([x, x * 2], op=Adasum)[0], right)


@pytest.mark.parametrize("begin", ["allreduce_async", "allgather_async", "reducescatter_async", "alltoall_async"])
def test_a_name_in_flight_is_refused(begin, rank, size):
    """Each rank begins with a name that the others call only after the barrier."""
    if size == 1:
        pytest.skip("one rank is done at once")
    function, tensor = getattr(hvd, begin), torch.ones(size)
    handles = [function(tensor, name=f"begun by {rank}")]
    with pytest.raises(ValueError, match="one pending operation at a time"):
        function(tensor, name=f"begun by {rank}")
    hvd.barrier()
    handles += [function(tensor, name=f"begun by {other}") for other in range(size) if other != rank]
    for handle in handles:
        hvd.synchronize(handle)
    assert hvd.allreduce(torch.ones(1), op=Sum).item() == size


def test_ranks_begin_other_operations_before_one_that_all_wait_for(rank, size):
    """What began alone is no mismatch while a rank that was woken up may still call it."""
    for step in range(20):
        handles = [hvd.allreduce_async(torch.ones(2), name=f"{step} of {rank}", op=Sum)]
        time.sleep(0.002 * (step % 3))
        hvd.barrier()
        others = [other for other in range(size) if other != rank]
        handles += [hvd.allreduce_async(torch.ones(2), name=f"{step} of {other}", op=Sum) for other in others]
        assert [hvd.synchronize(handle).tolist() for handle in handles] == [[size] * 2] * size


def test_a_name_that_nobody_asked_for_is_in_flight_for_a_while(monkeypatch, size):
    """Also when the operation was faster than the second call; asking for the result ends it."""
    x = torch.ones(2)
    monkeypatch.setattr(hvd.handles, "LEAST_SECONDS", 3600.0)
    handle = hvd.allreduce_async_(x, name="again", op=Sum)
    with pytest.raises(ValueError, match="'again' while that name is in flight"):
        hvd.allreduce_async(x, name="again")
    hvd.synchronize(handle)
    handle = hvd.allreduce_async(x, name="again", op=Sum)
    while not hvd.poll(handle):
        pass
    hvd.allreduce_async(x, name="again", op=Sum)
    monkeypatch.setattr(hvd.handles, "LEAST_SECONDS", 0.0)
    hvd.barrier()
    while hvd.handles._in_flight:
        hvd.handles._forget_what_is_over()
    assert hvd.synchronize(hvd.allreduce_async(x, name="again", op=Sum)).tolist() == [size**2] * 2


def test_join_waits_for_the_last_rank(rank, size):
    averages = [hvd.allreduce(torch.tensor([4.0, 6.0]), name="step") for _ in range(rank + 1)]
    left = [(size - passed) / size for passed in range(rank + 1)]
    torch.testing.assert_close(torch.stack(averages), torch.tensor(left)[:, None] * torch.tensor([4.0, 6.0]))
    assert hvd.join(hvd.local_rank()) == size - 1


def test_objects_of_any_kind_travel(rank, size):
    thing = {"rank": rank, "tensor": torch.full((2,), float(rank)), "dtype": torch.float16}
    received = hvd.broadcast_object(thing, size - 1, "a thing")
    assert received["rank"] == received["tensor"][0].item() == size - 1
    assert received["dtype"] is torch.float16
    assert [one["rank"] for one in hvd.allgather_object(thing, "things")] == list(range(size))


def test_the_job_answers_horovods_questions(size):
    assert hvd.mpi_enabled() == (collective.world.backend().name == "mpi")
    assert hvd.is_homogeneous()
    assert hvd.mpi_threads_supported() in (True, False)
    assert not any((hvd.gloo_built(), hvd.nccl_built(), hvd.ddl_built(), hvd.ccl_built(), hvd.cuda_built()))
    assert hvd.mpi_ops._basics.size() == size
    if size > 1:
        with pytest.raises(hvd.HorovodInternalError):
            hvd.allreduce(torch.ones(1 + (hvd.rank() == 1)))


@pytest.mark.parametrize("values", [[-7, 5, 3], [1, -1, 0]])
def test_averages_of_integers_are_rounded_down(rank, size, values):
    mine = torch.tensor(values) * (1 if rank == 0 else 0)
    expected = torch.tensor([value // size for value in values])
    torch.testing.assert_close(hvd.allreduce(mine), expected)
    torch.testing.assert_close(hvd.synchronize(hvd.allreduce_async(mine, name="rounded")), expected)
    torch.testing.assert_close(hvd.grouped_allreduce([mine, mine.int()])[1], expected.int())
    in_place = mine.clone()
    assert hvd.allreduce_(in_place) is in_place
    torch.testing.assert_close(in_place, expected)
