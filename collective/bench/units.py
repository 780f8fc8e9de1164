"""Numbers and sizes as people read and write them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

UNITS = ("B", "KiB", "MiB", "GiB")


def size_of(text: str) -> int:
    """Bytes of ``text``, such as ``64K``.

    Raises:
        ValueError: when it is no such size.
    """
    text = text.strip().upper()
    factor = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    digits = text if factor == 1 else text[:-1]
    if not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise ValueError("a size is a whole number of bytes, with K, M or G behind it if you like, as in 64K")
    return int(digits) * factor


def count_of(text: str) -> int:
    """A whole number from 1.

    Raises:
        ValueError: when it is none.
    """
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("a whole number from 1 is wanted")
    return int(text)


def names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """A function that splits names at commas, for argparse; it refuses those that are not ``known``."""

    def split(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not one of {', '.join(known)}")
        return names

    return split


def size_text(size: int) -> str:
    """A number of bytes in the largest unit that leaves it whole."""
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size, power = size // 1024, power + 1
    return f"{size} {UNITS[power]}"


def microseconds(seconds: float) -> str:
    """Seconds as microseconds."""
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1e3:,.2f}"


def mebibytes(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:,.1f}"


def ratio(above: float, below: float) -> str:
    """How many times ``below`` ``above`` is."""
    return f"{above / below:.2f}"
