"""What is measured: our all-reduce, each of our algorithms, and the peers that are installed."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Callable

import numpy as np

import collective
from collective import world
from collective.algorithms.choice import by_name
from collective.errors import ArgumentError
from collective.reduce_ops import Sum
from collective.reduction import reduction_for
from collective.settings import ALGORITHMS, Settings

MPI_NAMES = ("mpi", "mpi-in-place")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to add up an array over all ranks.

    Attributes:
        name: What tables call it.
        all_reduce: Takes this rank's flat array and returns the sum, in the same memory or another.
        dtypes: Names of the dtypes it knows; empty: all.
        make: Makes an array of a number of elements and a dtype.
    """

    name: str
    all_reduce: Callable[[np.ndarray], np.ndarray]
    dtypes: tuple[str, ...] = ()
    make: Callable[[int, np.dtype], np.ndarray] = np.empty


def ours() -> Contender:
    """Our public call, in place."""
    return Contender("collective", lambda array: collective.allreduce(array, Sum, out=array))


def algorithm(name: str) -> Contender:
    """One of our algorithms by itself, without the engine around it."""
    from collective.backends.mpi import MpiBackend

    backend = world.backend()
    if not isinstance(backend, MpiBackend):
        raise ArgumentError("algorithms are measured over MPI", received=f"backend={backend.name}, {name}")
    transport, segment_bytes = backend.transport, Settings().segment_bytes

    def all_reduce(array: np.ndarray) -> np.ndarray:
        reduction = reduction_for(Sum, array.dtype, transport.size)
        by_name(name, transport)(transport, array, reduction, segment_bytes)
        return array

    return Contender(name, all_reduce)


def resident() -> Contender:
    """Our public call on an array that lives in shared memory."""
    return Contender("resident", lambda array: collective.allreduce(array, Sum, out=array), make=collective.empty)


def memcpy() -> Contender:
    """Every rank copies the same bytes at once: the least that any all-reduce could do on one host."""
    copies: dict[int, np.ndarray] = {}

    def copy(array: np.ndarray) -> np.ndarray:
        target = copies.setdefault(array.nbytes, np.empty_like(array))
        np.copyto(target, array)
        return target

    return Contender("memcpy", copy)


def native(in_place: bool) -> Contender:
    """The MPI library's own call, from mpi4py, without anything of ours."""
    from collective.transport.mpi import MPI

    results: dict[int, np.ndarray] = {}

    def out_of_place(array: np.ndarray) -> np.ndarray:
        target = results.setdefault(array.nbytes, np.empty_like(array))
        MPI.COMM_WORLD.Allreduce(array, target)
        return target

    def on_the_spot(array: np.ndarray) -> np.ndarray:
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
        return array

    known = ("float32", "float64", "int32", "int64")
    return Contender(MPI_NAMES[in_place], on_the_spot if in_place else out_of_place, known)


def horovod() -> Contender:
    """Horovod's own TensorFlow operation on a tensor, as its users call it."""
    import tensorflow as tf
    from horovod.tensorflow import mpi_ops

    mpi_ops.init()

    def all_reduce(array: np.ndarray) -> np.ndarray:
        return np.asarray(memoryview(mpi_ops._allreduce(tf.convert_to_tensor(array), op=mpi_ops.Sum)))

    return Contender("horovod", all_reduce, ("float16", "float32", "float64", "int32", "int64"))


def gloo() -> Contender:
    """PyTorch's Gloo all-reduce on a tensor that shares the array's memory."""
    import torch.distributed

    rendezvous = collective.broadcast_object(tempfile.mktemp() if world.rank() == 0 else None)  # noqa: S306  # torch makes it
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=world.rank(), world_size=world.size()
    )

    def all_reduce(array: np.ndarray) -> np.ndarray:
        torch.distributed.all_reduce(torch.from_numpy(array))
        return array

    return Contender("gloo", all_reduce, ("float32", "float64", "int32", "int64"))


PEERS: dict[str, tuple[str, Callable[[], Contender]]] = {
    "resident": ("numpy", resident),
    **{name: ("mpi4py", functools.partial(algorithm, name)) for name in ALGORITHMS},
    "memcpy": ("numpy", memcpy),
    "mpi": ("mpi4py", lambda: native(in_place=False)),
    "mpi-in-place": ("mpi4py", lambda: native(in_place=True)),
    "horovod": ("horovod", horovod),
    "gloo": ("torch", gloo),
}


def installed_peers() -> list[str]:
    """The peers that can take part here, beside our own algorithms."""
    return [name for name, (module, _) in PEERS.items() if name not in ALGORITHMS and importlib.util.find_spec(module)]
