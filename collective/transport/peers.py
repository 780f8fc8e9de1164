"""The private memory of other ranks of this host, as far as the kernel lets one process read another's.

``process_vm_readv`` and ``process_vm_writev`` copy straight from process to process ("cross memory attach"), as MPI
libraries do. It takes the right to trace the other process: the same user and no hardening against it, or root.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence

import numpy as np

from collective.errors import TransportError


class _Span(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def address_of(array: np.ndarray) -> int:
    """Where an array lies in this process's memory."""
    return array.__array_interface__["data"][0]


class Peers:
    """Reads and writes the memory of other processes.

    Args:
        processes: The process number of every rank.

    Raises:
        OSError: when this system has no such calls.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = processes
        try:
            library = ctypes.CDLL(None, use_errno=True)
            self._read, self._write = library.process_vm_readv, library.process_vm_writev
        except AttributeError:
            raise OSError("no process_vm_readv") from None
        span = ctypes.POINTER(_Span)
        for call in (self._read, self._write):
            call.argtypes = (ctypes.c_int, span, ctypes.c_ulong, span, ctypes.c_ulong, ctypes.c_ulong)
            call.restype = ctypes.c_ssize_t

    def read(self, rank: int, address: int, into: np.ndarray) -> None:
        """Fill ``into``, flat and contiguous, with what lies at ``address`` in the memory of ``rank``.

        Raises:
            TransportError: when the kernel refuses, or that process has ended.
        """
        self._copy(self._read, rank, address, into)

    def write(self, rank: int, address: int, values: np.ndarray) -> None:
        """Put ``values``, flat and contiguous, to ``address`` in the memory of ``rank``; see ``read``."""
        self._copy(self._write, rank, address, values)

    def _copy(self, call: Callable[..., int], rank: int, address: int, here: np.ndarray) -> None:
        start, done = address_of(here), 0
        while done < here.nbytes:  # the kernel copies 2 GiB at a time
            ours, theirs = (_Span(place + done, here.nbytes - done) for place in (start, address))
            count = call(self._processes[rank], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
            if count <= 0:
                raise TransportError(
                    "ranks of one host read and write each other's arrays",
                    received=f"{os.strerror(ctypes.get_errno())} at the memory of process {self._processes[rank]}",
                    fix="Look whether that rank has ended; COLLECTIVE_ALGORITHM=shared_memory does without",
                )
            done += count
