"""Collective operations as pure functions over (transport, flat contiguous array, reduction): one idea a file."""
