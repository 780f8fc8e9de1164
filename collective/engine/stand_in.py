"""How a rank that has joined takes part in an operation of the others: with what changes nothing."""

from __future__ import annotations

import numpy as np

from collective.dtypes import BFLOAT16
from collective.engine.calls import Call
from collective.engine.engine import Engine
from collective.engine.operation import Operation
from collective.engine.operations import AllGather, AllReduce, Broadcast, Together
from collective.engine.planner import Planner
from collective.reduce_ops import Max, Min, Product, ReduceOp


def stand_in(call: Call, name: str, engine: Engine, planner: Planner) -> Operation:
    """An operation that other ranks call, for a rank with no data for it; see ``negotiation.WITHOUT_DATA``."""
    if call.kind == "allreduce":
        assert call.op is not None  # noqa: S101  # an all-reduce has one
        values = [np.full(shape, neutral(call.op, dtype), dtype) for dtype, shape in call.arrays]
        plan = planner[call.arrays, call.op, call.in_place, call.wire, call.note]
        return AllReduce(engine, plan, values, name)
    if call.kind == "allgather":
        ((dtype, row),) = call.arrays
        return AllGather(engine, planner.resources, np.empty((0, *row), dtype), name)
    if call.kind == "broadcast":
        assert call.root is not None  # noqa: S101  # a broadcast has one
        received = [np.empty(shape, dtype) for dtype, shape in call.arrays]
        return Broadcast(engine, planner.resources, received, call.root, name)
    return Together(engine, call, name)


def neutral(op: ReduceOp, dtype: np.dtype) -> object:
    """The value that ``op`` leaves the others' values as they are with."""
    if op is Product:
        return 1
    if op not in (Min, Max):
        return 0
    if dtype.kind == "f" or dtype == BFLOAT16:
        return np.inf if op is Min else -np.inf
    if dtype.kind == "b":
        return op is Min
    return np.iinfo(dtype).max if op is Min else np.iinfo(dtype).min
