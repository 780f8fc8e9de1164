"""Nested objects as arrays, which are kept as they are, and a plain rest, which the codec knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collective import codec, dtypes
from collective.errors import ArgumentError

ARRAY, DICT, LIST, TUPLE, PLAIN, PICKLED = "array", "dict", "list", "tuple", "plain", "pickled"


def split(tree: Any, allow_pickle: bool = True) -> tuple[dict[str, np.ndarray], Any]:
    """Take the arrays out of a nest of dictionaries, lists and tuples.

    Returns:
        The arrays, by names that tell their place; and the rest for ``join``, in which what isn't plain is pickled.

    Raises:
        ArgumentError: without ``allow_pickle``, for what isn't plain.
    """
    arrays: dict[str, np.ndarray] = {}
    return arrays, _split(tree, "", arrays, allow_pickle)


def join(rest: Any, arrays: Mapping[str, np.ndarray], allow_pickle: bool = True) -> Any:
    """Put together what ``split`` has taken apart; with ``allow_pickle`` it runs what is pickled in it.

    Raises:
        ArgumentError: without ``allow_pickle``, for what is pickled.
    """
    kind, content = rest
    if kind == ARRAY:
        return arrays[content]
    if kind == DICT:
        return {key: join(value, arrays, allow_pickle) for key, value in content}
    if kind in (LIST, TUPLE):
        items = [join(value, arrays, allow_pickle) for value in content]
        return items if kind == LIST else tuple(items)
    return codec.decode(content, allow_pickle) if kind == PICKLED else content


def _split(tree: Any, place: str, arrays: dict[str, np.ndarray], allow_pickle: bool) -> list[Any]:
    # Only these types themselves: a subclass, such as a named tuple, is more than its items.
    if type(tree) is np.ndarray and dtypes.is_supported(tree.dtype) and tree.dtype.isnative:
        arrays[place] = tree
        return [ARRAY, place]
    if type(tree) is dict and all(isinstance(key, (str, int)) for key in tree):
        items = [[key, _split(value, f"{place}/{key!r}", arrays, allow_pickle)] for key, value in tree.items()]
        return [DICT, items]
    if type(tree) in (list, tuple):
        items = [_split(value, f"{place}/{index}", arrays, allow_pickle) for index, value in enumerate(tree)]
        return [LIST if type(tree) is list else TUPLE, items]
    try:
        codec.encode(tree)
    except ArgumentError:
        return [PICKLED, codec.encode(tree, allow_pickle)]
    return [PLAIN, tree]
