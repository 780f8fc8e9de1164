"""Small tools that Horovod's users import from ``horovod.tensorflow.util``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_cache = functools.cache


def _executing_eagerly() -> bool:
    return bool(tf.executing_eagerly())


def _make_subgraph(f: Callable[..., Any]) -> Any:
    return tf.function(f)


def vars_to_refs(vars: Any) -> Any:  # Horovod's own name
    """Replace variables, in lists of lists, by references that can be hashed, in tuples of tuples."""
    return tuple(vars_to_refs(each) for each in vars) if isinstance(vars, list) else vars.ref()


def refs_to_vars(refs: Any) -> Any:
    """Undo ``vars_to_refs``."""
    return [refs_to_vars(each) for each in refs] if isinstance(refs, tuple) else refs.deref()
