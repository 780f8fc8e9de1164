"""Helpers that Horovod's users import from ``horovod.common.util``: questions about what is built, and small tools."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from collective.errors import ArgumentError
from collective.reduce_ops import ReduceOp

Item = TypeVar("Item")
# What asks mpi4py for its library, in a process of its own: where none is found, the import fails.
PROBE = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; MPI.get_vendor()"
PROBE_SECONDS = 60
PRE_RELEASE = re.compile(r"[-_.]?(a|b|c|rc|alpha|beta|pre|preview|dev)[-_.]?\d*")


class HasAverageAndSum(Protocol):
    """Whatever names the two reduce operations that ``average=`` used to choose from, such as a module."""

    Average: ReduceOp
    Sum: ReduceOp


# Horovod's own name for remembering what a function has answered.
_cache = functools.cache


@_cache
def extension_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Tell whether there is a front end of this name (``tensorflow``, ``torch``) and its framework is installed."""
    found = all(importlib.util.find_spec(name) for name in (f"collective.{ext_base_name}", ext_base_name))
    return _told(found, f"the front end {ext_base_name} can be used", verbose)


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Tell whether operations run on a GPU: none does, arrays of every framework travel through main memory."""
    return _told(False, f"operations of {ext_base_name} run on a GPU", verbose)


@_cache
def mpi_built(verbose: bool = False) -> bool:
    """Tell whether mpi4py finds an MPI library."""
    loaded = "mpi4py.MPI" in sys.modules
    return _told(loaded or _runs(PROBE), "mpi4py finds an MPI library", verbose)


def gloo_built(verbose: bool = False) -> bool:
    """Tell whether Gloo is built in: it isn't. Jobs under ``horovodrun --gloo`` are carried by Horovod's own core."""
    return _told(False, "Gloo is built in", verbose)


def nccl_built(verbose: bool = False) -> int:
    """The version of NCCL that is built in: 0, none."""
    return int(_told(False, "NCCL is built in", verbose))


def ddl_built(verbose: bool = False) -> bool:
    """Tell whether IBM's DDL is built in: it isn't."""
    return _told(False, "DDL is built in", verbose)


def ccl_built(verbose: bool = False) -> bool:
    """Tell whether oneCCL is built in: it isn't."""
    return _told(False, "oneCCL is built in", verbose)


def cuda_built(verbose: bool = False) -> bool:
    """Tell whether operations on CUDA devices are built in: they aren't."""
    return _told(False, "CUDA is built in", verbose)


def rocm_built(verbose: bool = False) -> bool:
    """Tell whether operations on ROCm devices are built in: they aren't."""
    return _told(False, "ROCm is built in", verbose)


@contextlib.contextmanager
def env(**kwargs: str | None) -> Iterator[None]:
    """Set environment variables for the length of a ``with``; those given as None are left alone."""
    values = {name: value for name, value in kwargs.items() if value is not None}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def get_average_backwards_compatibility_fun(
    reduce_ops: HasAverageAndSum,
) -> Callable[[ReduceOp | None, bool | None], ReduceOp]:
    """Make the function that reads ``op`` beside the old ``average``.

    Args:
        reduce_ops: Where ``Average`` and ``Sum`` are found.

    Returns:
        A function of ``(op, average)`` that returns the operation; it raises ArgumentError, a ValueError, when both are
        given, and warns when ``average`` is.
    """

    def operation(op: ReduceOp | None, average: bool | None) -> ReduceOp:
        if average is None:
            return reduce_ops.Average if op is None else op
        if op is not None:
            raise ArgumentError(
                "the reduction is said once", received=f"op={op}, average={average}", fix="Leave average out"
            )
        warnings.warn("average= is deprecated: say op=Average or op=Sum", DeprecationWarning, stacklevel=3)
        return reduce_ops.Average if average else reduce_ops.Sum

    return operation


def num_rank_is_power_2(num_rank: int) -> bool:
    """Tell whether a number of ranks is a power of two; Adasum needs that."""
    return num_rank > 0 and num_rank.bit_count() == 1


def split_list(l: Sequence[Item], n: int) -> list[Sequence[Item]]:  # noqa: E741  # Horovod's own name
    """Cut a list into ``n`` parts, in order, of which the first ones are one item longer if need be."""
    size, longer = divmod(len(l), n)
    starts = [part * size + min(part, longer) for part in range(n + 1)]
    return [l[start:stop] for start, stop in itertools.pairwise(starts)]


def is_iterable(x: Any) -> bool:
    """Tell whether ``iter(x)`` works."""
    try:
        iter(x)
    except TypeError:
        return False
    return True


def is_version_greater_equal_than(ver: str, target: str) -> bool:
    """Compare two versions.

    Args:
        ver: The version found, such as ``2.21.0`` or ``2.0.0rc1``.
        target: The version wanted, of three numbers.

    Raises:
        ArgumentError: a ValueError, when one is no string, or ``target`` has not three numbers.
    """
    if not (isinstance(ver, str) and isinstance(target, str)) or target.count(".") != 2:
        raise ArgumentError(
            "versions are strings, the one wanted has three numbers", received=f"ver={ver!r}, target={target!r}"
        )
    return _version(ver) >= _version(target)


def check_installed_version(name: str, version: str, exception: Exception | None = None) -> None:
    """Compare a framework with the version that was built for: nothing to do, as nothing is built for one."""


def _version(text: str) -> tuple[tuple[int, ...], bool]:
    """The numbers of a version, and whether it is final; the parts compare as the versions do."""
    numbers = re.match(r"v?\d+(\.\d+)*", text)
    if numbers is None:
        raise ArgumentError("a version begins with numbers", received=repr(text))
    release = [int(number) for number in numbers.group().lstrip("v").split(".")]
    while release and release[-1] == 0:
        release.pop()
    return tuple(release), not PRE_RELEASE.match(text, numbers.end())


def _told(answer: bool, statement: str, verbose: bool) -> bool:
    if verbose:
        print(f"{statement}: {'yes' if answer else 'no'}")
    return bool(answer)


def _runs(code: str) -> bool:
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
