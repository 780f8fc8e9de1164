"""Starting jobs: ``collective run`` and the other commands that set a job up. Nothing here imports MPI."""
