"""How many threads TensorFlow has: no more to compute with than a rank's share of its host's cores, and two to run on.

Left alone, it takes a thread for every core, on every rank of a host, and they get in each other's way. What the user
says counts, and so does TensorFlow's own choice once it has begun to work.
"""

from __future__ import annotations

import contextlib
import os

import tensorflow as tf

from collective import launched


def _told(variable: str) -> int:
    told = os.environ.get(variable, "")
    return int(told) if told.isdecimal() else 0


def share(cores: int, allowed: int, ranks: int) -> int:
    """Threads that a rank computes on; 0: one for each core that it may use, as TensorFlow has them anyway.

    Args:
        cores: How many its host has.
        allowed: How many of them it may use. A rank that is bound to its share has it for itself. (A set of cores that
            was given to all ranks of a host together looks the same.)
        ranks: How many ranks its host has.
    """
    fair = max(1, cores // ranks)
    return fair if fair < allowed else 0


def _ask_for_share() -> None:
    launch = launched.detect(os.environ)
    fair = share(os.cpu_count() or 1, len(os.sched_getaffinity(0)), launch.local_size if launch else 1)
    chosen = tf.config.threading.get_intra_op_parallelism_threads() or _told("TF_NUM_INTRAOP_THREADS")
    if fair and not chosen:
        with contextlib.suppress(RuntimeError):  # it works already
            tf.config.threading.set_intra_op_parallelism_threads(fair)


def _ask_for_two_threads() -> bool:
    """Let TensorFlow run two operations at a time also on a single core, as of ranks that are bound to one.

    Else gradients that are there are handed over only after all others are computed, and nothing hides the wire.

    Returns:
        Whether there are two; not where the user wants one, or TensorFlow has begun to work with one.
    """
    chosen = tf.config.threading.get_inter_op_parallelism_threads() or _told("TF_NUM_INTEROP_THREADS")
    if not chosen and len(os.sched_getaffinity(0)) == 1:
        try:
            tf.config.threading.set_inter_op_parallelism_threads(2)
        except RuntimeError:  # it works already
            return False
    return chosen != 1


_ask_for_share()
SPARE_THREAD = _ask_for_two_threads()
