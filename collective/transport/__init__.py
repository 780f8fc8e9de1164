"""How bytes get from rank to rank: over MPI, or between threads of one process."""
