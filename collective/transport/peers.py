"""The private memory of other ranks of this host, as far as the kernel lets one process read another's.

``process_vm_readv`` copies straight from process to process ("cross memory attach"), as MPI libraries do. It takes the
right to trace the other process: the same user and no hardening against it, or root.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np

from collective.errors import TransportError


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def address_of(array: np.ndarray) -> int:
    """Where an array lies in this process's memory."""
    return array.__array_interface__["data"][0]


class Peers:
    """Reads what other processes have written.

    Args:
        processes: The process number of every rank.

    Raises:
        OSError: when this system has no such call.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = processes
        try:
            self._call = ctypes.CDLL(None, use_errno=True).process_vm_readv
        except AttributeError:
            raise OSError("no process_vm_readv") from None
        span = ctypes.POINTER(_Span)
        self._call.argtypes = (ctypes.c_int, span, ctypes.c_ulong, span, ctypes.c_ulong, ctypes.c_ulong)
        self._call.restype = ctypes.c_ssize_t

    def read(self, rank: int, address: int, into: np.ndarray) -> None:
        """Fill ``into``, flat and contiguous, with what lies at ``address`` in the memory of ``rank``.

        Raises:
            TransportError: when the kernel refuses, or that process has ended.
        """
        start, wanted, got = address_of(into), into.nbytes, 0
        while got < wanted:  # the kernel copies 2 GiB at a time
            here, there = _Span(start + got, wanted - got), _Span(address + got, wanted - got)
            count = self._call(self._processes[rank], ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
            if count <= 0:
                raise TransportError(
                    "ranks of one host read each other's memory",
                    received=f"{os.strerror(ctypes.get_errno())} when reading from process {self._processes[rank]}",
                    fix="Look whether that rank has ended; COLLECTIVE_ALGORITHM=shared_memory does without",
                )
            got += count
