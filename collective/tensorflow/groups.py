"""Which gradients are reduced as one operation: the ``groups`` and ``num_groups`` of optimizers and tapes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from collective.common.util import split_list
from collective.errors import ArgumentError
from collective.tensorflow.local_sources import key

Groups = int | Sequence[Sequence[Any]] | None


def checked_groups(groups: Groups, num_groups: int) -> Groups:
    """Read the two ways to say it.

    Raises:
        ArgumentError: when ``groups`` is neither a positive number nor a list; a ValueError.
    """
    if num_groups:
        warnings.warn("num_groups= is deprecated: say groups=", DeprecationWarning, stacklevel=3)
        groups = num_groups if groups is None else groups
    if groups is not None and not isinstance(groups, list) and not (isinstance(groups, int) and groups > 0):
        raise ArgumentError(
            "groups is a number of groups from 1 on, or a list of lists of variables", received=f"groups={groups!r}"
        )
    return groups


def places(groups: Groups, gradients: Sequence[Any], variables: Sequence[Any]) -> list[list[int]] | None:
    """The places of the gradients in each group; None: all in one."""
    if groups is None:
        return None
    if isinstance(groups, int):
        present = [place for place, gradient in enumerate(gradients) if gradient is not None]
        return [list(part) for part in split_list(present, groups)]
    place_of = {key(variable): place for place, variable in enumerate(variables)}
    return [[place_of[key(variable)] for variable in group if key(variable) in place_of] for group in groups]
