"""Shared by all tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def pytest_ignore_collect(collection_path, config):
    """Leave the parallel suite to tests/test_parallel.py, which runs it on several ranks, unless it is asked for."""
    return (collection_path.name == "parallel" and not any("parallel" in argument for argument in config.args)) or None
