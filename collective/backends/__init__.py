"""What carries the data: MPI with our own algorithms, Horovod's core, or nothing at all (one process)."""
