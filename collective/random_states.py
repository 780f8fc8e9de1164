"""The states of the random numbers that belong to the process: Python's ``random`` and NumPy's ``np.random``."""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def random_states() -> dict[str, Any]:
    """What the process's random numbers go on from, as plain values.

    Generators that the program has made itself (``np.random.default_rng``) are not among them.
    """
    return {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}


def set_random_states(states: dict[str, Any]) -> None:
    """Go on from what ``random_states`` has returned, in this process or another."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
