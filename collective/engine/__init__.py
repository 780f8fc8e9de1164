"""The order of things: operations that all ranks agree on, joined into buckets and run."""
