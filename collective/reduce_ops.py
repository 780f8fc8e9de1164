"""The reduce operations a user names: ``Average``, ``Sum``, ``Min``, ``Max``, ``Product``, ``Adasum``."""

from __future__ import annotations

import enum


class ReduceOp(enum.Enum):
    """How the values of all ranks become one: element by element, but for Adasum, which looks at whole arrays."""

    AVERAGE = "Average"
    SUM = "Sum"
    MIN = "Min"
    MAX = "Max"
    PRODUCT = "Product"
    ADASUM = "Adasum"

    # Enum's own runs in Python; members are looked up in every operation.
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return self.value

    def __str__(self) -> str:
        return self.value


Average = ReduceOp.AVERAGE
Sum = ReduceOp.SUM
Min = ReduceOp.MIN
Max = ReduceOp.MAX
Product = ReduceOp.PRODUCT
Adasum = ReduceOp.ADASUM
