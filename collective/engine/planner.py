"""Which way an all-reduce goes, decided once for arrays of certain dtypes and shapes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from collective.algorithms import choice, doubling, exchange
from collective.algorithms.choice import EXCHANGE, JOINED, LARGE, NATIVE
from collective.engine import finite
from collective.engine.calls import Call, Kinds
from collective.engine.fusion import Layout, buckets
from collective.engine.ways import IN_PLACE, NEW, Alone, Bucketed, Exchanged, InTurn, Joined, Native, Resources, Way
from collective.reduce_ops import Adasum, ReduceOp
from collective.reduction import Reduction, reduction_for


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How an all-reduce of certain arrays is carried out.

    Attributes:
        call: What the ranks compare, without a name.
        way: Reduces them.
        check: Makes sure that the results are finite, as ``finite.require`` does; None: they need not be.
    """

    call: Call
    way: Way
    check: Callable[..., None] | None


# Dtypes and shapes; how they are reduced; whether in place; the dtype on the wire; what else is the same on all ranks.
Key = tuple[Kinds, ReduceOp, bool, np.dtype | None, str]


class Planner(dict[Key, Plan]):
    """Decides how all-reduces are carried out, once for arrays of certain dtypes and shapes: ``planner[key]``.

    Args:
        resources: What the ways use.
        crossovers: In place and for new results: up to how many bytes which algorithm is the fastest; see ``tuning``.
    """

    # Programs have few: a plan for each step's gradients and metrics. One that changes shapes all the time starts anew.
    MOST_PLANS = 1000

    def __init__(self, resources: Resources, crossovers: Mapping[str, Sequence[tuple[int, str]]]) -> None:
        super().__init__()
        self.resources, self._crossovers = resources, crossovers
        checks = resources.settings.check_finite == "raise"
        self._check = functools.partial(finite.require, resources.transport) if checks else None

    def __missing__(self, key: Key) -> Plan:
        """Make a plan, the first time that it is asked for."""
        what, op, in_place, wire, note = key
        if len(self) >= self.MOST_PLANS:
            self.clear()
        places: dict[np.dtype, list[int]] = {}
        for place, (dtype, _) in enumerate(what):
            places.setdefault(dtype, []).append(place)
        ways = [way for alike in places.values() for way in self._ways(what, alike, op, in_place, wire)]
        way = ways[0][0] if len(ways) == 1 else InTurn(self.resources.transport, ways)
        call = Call("allreduce", what, op, wire=wire, in_place=in_place, note=note)
        plan = self[key] = Plan(call, way, self._check)
        return plan

    def _ways(
        self, what: Kinds, places: list[int], op: ReduceOp, in_place: bool, wire: np.dtype | None
    ) -> list[tuple[Way, list[int]]]:
        """The ways for the arrays at ``places``, which have one dtype."""
        resources, settings = self.resources, self.resources.settings
        dtype = what[places[0]][0]
        reduction = reduction_for(op, dtype, resources.transport.size, wire)
        if op is Adasum:  # joins whole arrays, each by itself
            layouts = [Layout([what[place][1]], dtype) for place in places]
            return [
                (Bucketed(resources, doubling.all_reduce, layout, reduction, in_place), [place])
                for layout, place in zip(layouts, places, strict=True)
            ]
        sizes = [math.prod(what[place][1]) * dtype.itemsize for place in places]
        # New results are joined, however large: the values have to be copied anyway.
        limit = settings.fusion_bytes if in_place else sum(sizes)
        ways: list[tuple[Way, list[int]]] = []
        for bucket in buckets(sizes, limit):
            mine = [places[number] for number in bucket]
            ways.append((self._way([what[place][1] for place in mine], reduction, in_place), mine))
        return ways

    def _way(self, shapes: list[tuple[int, ...]], reduction: Reduction, in_place: bool) -> Way:
        resources, transport = self.resources, self.resources.transport
        layout = Layout(shapes, reduction.dtype)
        name = resources.settings.algorithm or self._fastest(
            layout.elements * reduction.dtype.itemsize, reduction, in_place
        )
        if name == EXCHANGE:
            return Exchanged(resources, layout, reduction, in_place)
        if name == JOINED:
            return Joined(resources, layout, reduction, in_place)
        if name == NATIVE and len(shapes) == 1 and not resources.settings.algorithm:
            return Native(resources, reduction, in_place)
        all_reduce = choice.by_name(name, transport)
        if in_place and len(shapes) == 1:
            return Alone(resources, all_reduce, reduction)
        if name == LARGE and transport.shared:
            return Joined(resources, layout, reduction, in_place)
        return Bucketed(resources, all_reduce, layout, reduction, in_place)

    def _fastest(self, array_bytes: int, reduction: Reduction, in_place: bool) -> str:
        """The algorithm measured to be the fastest for so many bytes, of those that are possible."""
        native = self.resources.transport.native
        impossible = set()
        if native is None or not native.supports(reduction.op, reduction.dtype):
            impossible.add(NATIVE)
        if self.resources.small is None or array_bytes > exchange.LARGEST:
            impossible.add(EXCHANGE)
        if self.resources.transport.shared is None:
            impossible.add(JOINED)
        for limit, name in self._crossovers[IN_PLACE if in_place else NEW]:
            if array_bytes <= limit and name not in impossible:
                return name
        return LARGE
