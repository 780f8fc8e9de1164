"""Run on every rank, with plain mpi4py: pass a message around the ring, sum over all, tell what this rank sees."""

import os
import socket
import sys

from mpi4py import MPI

world = MPI.COMM_WORLD
rank, size = world.rank, world.size
# 300 kB: more than one segment of the library's, so that eager limits matter where there is a network.
mine, other = bytearray([rank]) * 300_000, bytearray(300_000)
world.Sendrecv(mine, (rank + 1) % size, recvbuf=other, source=(rank - 1) % size)
if other != bytearray([(rank - 1) % size]) * len(other):
    sys.exit(f"rank {rank} got {other[0]}")
if world.allreduce(rank) != size * (size - 1) // 2:
    sys.exit(f"rank {rank} has another sum")
seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "COLLECTIVE_LOG_LEVEL", "MINE", "SECRET")}
report = (rank, socket.gethostname(), len(os.sched_getaffinity(0)), seen)
reports = world.gather(report)
if rank == 0:
    print(repr(reports))
