"""What Keras's callbacks remember from epoch to epoch: Keras itself has no way to ask them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from collective.errors import ArgumentError

# Attributes of those that watch a metric. Not all that they have: what is made from options would be made twice.
WATCHING = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau, keras.callbacks.ModelCheckpoint)
REMEMBERED = ("best", "wait", "cooldown_counter", "best_epoch", "stopped_epoch", "best_weights")


def check(callback: Any) -> None:
    """Refuse a callback of which nobody knows what it remembers; an ArgumentError."""
    if not isinstance(callback, WATCHING) and not hasattr(callback, "load_state_dict"):
        raise ArgumentError(
            "what a callback remembers is known of Keras's EarlyStopping, ReduceLROnPlateau and ModelCheckpoint, and "
            "of those that have state_dict and load_state_dict",
            received=type(callback).__name__,
            fix="Give it these two methods, the one returning plain values and arrays; or leave it out",
        )


def of(callback: Any) -> Any:
    """What a callback remembers: plain values and arrays."""
    if hasattr(callback, "load_state_dict"):
        return callback.state_dict()
    return {name: _plain(value) for name, value in vars(callback).items() if name in REMEMBERED}


def remind(callback: Any, remembered: Any) -> None:
    """Let a callback remember what another one did, in this process or another."""
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(remembered)
    else:
        vars(callback).update(remembered)


def retell(history: keras.callbacks.History, epochs: Iterable[tuple[int, dict[str, Any]]]) -> None:
    """Fill Keras's history with the logs of epochs."""
    history.epoch, history.history = [], {}
    for epoch, logs in epochs:
        history.epoch.append(epoch)
        for name, value in logs.items():
            history.history.setdefault(name, []).append(value)


def _plain(value: Any) -> Any:
    """Numbers, lists of arrays and None as they are; metrics are tensors now and then."""
    return keras.ops.convert_to_numpy(value) if keras.ops.is_tensor(value) else value
