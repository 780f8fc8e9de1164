"""Python objects as bytes without pickle: reading them never runs code.

Numbers, strings, bytes, None, lists, tuples, sets, dictionaries and NumPy arrays, nested as you like, become JSON in
which everything that JSON lacks is tagged: ``{"tuple": [...]}``, ``{"array": ["float32", [2, 3], "<base64>"]}``.
"""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from collective import dtypes
from collective.errors import ArgumentError

JSON_MARK, PICKLE_MARK = b"J", b"P"


def encode(value: Any, allow_pickle: bool = False) -> bytes:
    """Turn ``value`` into bytes; with ``allow_pickle``, by pickle, which knows every object.

    Raises:
        ArgumentError: when the value holds something else than the kinds above and pickle is not allowed.
    """
    if allow_pickle:
        return PICKLE_MARK + pickle.dumps(value)
    return JSON_MARK + json.dumps(_to_json(value)).encode()


def decode(data: bytes, allow_pickle: bool = False) -> Any:
    """Turn bytes of ``encode`` back into the value.

    Raises:
        ArgumentError: when they are pickled and pickle is not allowed.
    """
    if data[:1] == PICKLE_MARK:
        if not allow_pickle:
            raise ArgumentError("pickled objects are read only where the user asks", received="a pickled object",
                                fix="Pass allow_pickle=True on every rank")  # fmt: skip
        return pickle.loads(data[1:])  # noqa: S301  # asked for by name
    return _from_json(json.loads(data[1:]))


def _to_json(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_to_json(item) for item in value]
    if type(value) is tuple or type(value) in (set, frozenset):
        return {type(value).__name__: [_to_json(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, complex) and not isinstance(value, np.generic):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (np.ndarray, np.generic)) and dtypes.is_supported(value.dtype):
        return {
            "array" if isinstance(value, np.ndarray) else "scalar": [
                value.dtype.name, list(value.shape), base64.b64encode(value.tobytes()).decode(),
            ]
        }  # fmt: skip
    raise ArgumentError(
        "objects are made of numbers, strings, bytes, None, lists, tuples, sets, dictionaries and number arrays",
        received=f"a {type(value).__module__}.{type(value).__qualname__}",
        fix="Pass allow_pickle=True if all ranks trust each other",
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return _READERS[tag](content)


def _array(content: list[Any]) -> Any:
    name, shape, data = content
    return np.frombuffer(base64.b64decode(data), np.uint8).copy().view(dtypes.by_name(name)).reshape(shape)


_READERS: dict[str, Callable[[Any], Any]] = {
    "tuple": lambda content: tuple(_from_json(item) for item in content),
    "set": lambda content: {_from_json(item) for item in content},
    "frozenset": lambda content: frozenset(_from_json(item) for item in content),
    "dict": lambda content: {_from_json(key): _from_json(item) for key, item in content},
    "bytes": lambda content: base64.b64decode(content),
    "complex": lambda content: complex(*content),
    "array": _array,
    "scalar": lambda content: _array(content)[()],
}
