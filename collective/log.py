"""The library's logger: every line names the rank, and all ranks follow one level."""

from __future__ import annotations

import logging

logger = logging.getLogger("collective")
logger.addHandler(logging.NullHandler())


def configure(level: str, where: str) -> None:
    """Write records of ``level`` and above to stderr, each line with ``where`` (the rank) in front."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"collective: {where}: %(levelname)s: %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
