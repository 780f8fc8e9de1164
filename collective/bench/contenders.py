"""Ways to add up an array over all ranks: our calls, each of our algorithms, and the peers that are installed."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping

import numpy as np

import collective
from collective import world
from collective.algorithms import resident as resident_algorithm
from collective.algorithms.choice import by_name
from collective.algorithms.segments import even_bounds
from collective.compression import Compression
from collective.engine.residents import Residents
from collective.errors import ArgumentError, LaunchError
from collective.reduce_ops import Sum
from collective.reduction import reduction_for
from collective.settings import ALGORITHMS, Settings
from collective.transport.base import Transport
from collective.transport.patience import Patience

OURS = "collective"
MEMCPY = "memcpy"
SAME_ELEMENTS = "float32"
MPI_DTYPES = ("float32", "float64", "int32", "int64")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to add up an array over all ranks.

    Attributes:
        all_reduce: Takes this rank's flat array and returns the sum, in the same memory or another.
        dtypes: Names of the dtypes it knows; empty: all.
        make: Makes an array of a number of elements and a dtype.
        dtype: The dtype it adds, whatever is asked for; None: what is asked for.
        adds: Whether its result is the sum, to be checked.
    """

    all_reduce: Callable[[np.ndarray], np.ndarray]
    dtypes: tuple[str, ...] = ()
    make: Callable[[int, np.dtype], np.ndarray] = np.empty
    dtype: np.dtype | None = None
    adds: bool = True


def in_place(array: np.ndarray) -> np.ndarray:
    """Our public call, in place."""
    return collective.allreduce(array, Sum, out=array)


def ours() -> Contender:
    """Our public call on an ordinary array, in place."""
    return Contender(in_place)


def resident() -> Contender:
    """Our public call on an array that lives in shared memory."""
    return Contender(in_place, make=collective.empty)


def out_of_place() -> Contender:
    """Our public call with a new array for the result."""
    return Contender(lambda array: collective.allreduce(array, Sum))


def compressed(compression: Compression) -> Contender:
    """Our public call in place, with float32 as half precision on the wire."""
    return Contender(
        lambda array: collective.allreduce(array, Sum, out=array, compression=compression), dtypes=("float32",)
    )


def same_elements() -> Contender:
    """Our public call on float32, to compare other dtypes with at the same number of elements."""
    return Contender(in_place, dtype=np.dtype(np.float32))


def algorithm(name: str) -> Contender:
    """One of our algorithms by itself, without the engine around it."""
    transport, segment_bytes = _transport(name), Settings().segment_bytes
    all_reduce = by_name(name, transport)

    def run(array: np.ndarray) -> np.ndarray:
        all_reduce(transport, array, reduction_for(Sum, array.dtype, transport.size), segment_bytes)
        return array

    return Contender(run)


def _transport(name: str) -> Transport:
    """What ours go over, for contenders that go without the engine."""
    from collective.backends.mpi import MpiBackend

    backend = world.backend()
    if not isinstance(backend, MpiBackend):
        raise ArgumentError(
            "algorithms by name are measured over MPI", received=f"backend={backend.name}, --beside {name}"
        )
    return backend.transport


def passes() -> Contender:
    """NumPy's passes over resident arrays as ours makes them, while nobody agrees or waits: the least for ``resident``.

    The sum is there only when all ranks are through, so it is not checked.
    """
    transport = _transport("passes")
    residents = Residents(transport, Patience(0))

    def add(array: np.ndarray) -> np.ndarray:
        memory = residents.memory_of(array)
        if memory is None:
            raise ArgumentError("resident arrays are in shared memory", received="--beside passes without it")
        areas = [area[: array.size] for area in resident_algorithm.areas(memory, array.dtype)]
        others = [area for rank, area in enumerate(areas) if rank != memory.rank]
        first, end = even_bounds(array.size, memory.size)[memory.rank : memory.rank + 2]
        step = resident_algorithm.PIECE_BYTES // array.itemsize
        for start in range(first, end, step):
            piece = slice(start, min(start + step, end))
            mine = areas[memory.rank][piece]
            for other in others:
                np.add(mine, other[piece], out=mine)
            for other in others:
                other[piece] = mine
        return array

    return Contender(add, make=lambda elements, dtype: residents.empty((elements,), dtype), adds=False)


def memcpy() -> Contender:
    """Every rank copies the same bytes at once: the least that any all-reduce could do on one host."""
    target = _target()

    def copy(array: np.ndarray) -> np.ndarray:
        np.copyto(target(array.size, array.dtype), array)
        return array

    return Contender(copy, adds=False)


def wire() -> Contender:
    """Every rank sends as many bytes to a neighbour as in a ring, and receives as many: the least between hosts."""
    from collective.transport.mpi import MPI

    world_comm = MPI.COMM_WORLD
    rank, size = world_comm.rank, world_comm.size
    target = _target()

    def rotate(array: np.ndarray) -> np.ndarray:
        part = array[: array.size * (size - 1) // size]
        received = target(part.size, array.dtype)
        for _ in range(2):
            world_comm.Sendrecv(part, (rank + 1) % size, recvbuf=received, source=(rank - 1) % size)
        return array

    return Contender(rotate, MPI_DTYPES, adds=False)


def mpi() -> Contender:
    """The MPI library's own call, from mpi4py, without anything of ours."""
    from collective.transport.mpi import MPI

    target = _target()

    def all_reduce(array: np.ndarray) -> np.ndarray:
        result = target(array.size, array.dtype)
        MPI.COMM_WORLD.Allreduce(array, result)
        return result

    return Contender(all_reduce, MPI_DTYPES)


def mpi_in_place() -> Contender:
    """The MPI library's own call, in place."""
    from collective.transport.mpi import MPI

    def all_reduce(array: np.ndarray) -> np.ndarray:
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
        return array

    return Contender(all_reduce, MPI_DTYPES)


def horovod() -> Contender:
    """Horovod's own TensorFlow operation on a tensor, as its users call it."""
    import tensorflow as tf
    from horovod.tensorflow import mpi_ops

    mpi_ops.init()

    def all_reduce(array: np.ndarray) -> np.ndarray:
        return np.asarray(memoryview(mpi_ops._allreduce(tf.convert_to_tensor(array), op=mpi_ops.Sum)))

    return Contender(all_reduce, ("float16", *MPI_DTYPES))


def gloo() -> Contender:
    """PyTorch's Gloo all-reduce on a tensor that shares the array's memory.

    The ranks find each other through a file, so hosts have to share the folder for temporary files. Where a host's name
    doesn't lead to its network, ``GLOO_SOCKET_IFNAME`` names the interface.
    """
    import torch.distributed

    rendezvous = collective.broadcast_object(tempfile.mktemp() if world.rank() == 0 else None)  # noqa: S306  # Gloo makes it
    try:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=world.rank(), world_size=world.size()
        )
    except RuntimeError as error:
        raise LaunchError(
            "Gloo connects all ranks",
            received=str(error).partition("\n")[0],
            fix='Name the network to use: --run-args="-x GLOO_SOCKET_IFNAME=eth0"',
            where=world.topology().where,
        ) from error

    def all_reduce(array: np.ndarray) -> np.ndarray:
        torch.distributed.all_reduce(torch.from_numpy(array))
        return array

    return Contender(all_reduce, MPI_DTYPES)


def _target() -> Callable[[int, np.dtype], np.ndarray]:
    """Makes the array for results, and keeps the last one, as a training loop would."""
    return functools.lru_cache(maxsize=1)(np.empty)


CONTENDERS: Mapping[str, Callable[[], Contender]] = {
    OURS: ours,
    "resident": resident,
    "passes": passes,
    "out-of-place": out_of_place,
    "bf16": functools.partial(compressed, Compression.bf16),
    "fp16": functools.partial(compressed, Compression.fp16),
    SAME_ELEMENTS: same_elements,
    **{name: functools.partial(algorithm, name) for name in ALGORITHMS},
    MEMCPY: memcpy,
    "wire": wire,
    "mpi": mpi,
    "mpi-in-place": mpi_in_place,
    "horovod": horovod,
    "gloo": gloo,
}
# The package that a contender needs beside this one and its requirements.
PACKAGES: Mapping[str, str] = {"horovod": "horovod", "gloo": "torch"}
