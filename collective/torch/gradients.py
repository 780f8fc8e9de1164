"""The gradients of one optimizer's parameters: reduced over all ranks once a step, at the best moment.

Between hosts a bucket of gradients is sent as soon as backpropagation has made them all, while it makes others. Inside
a host the cores that would send are those that compute, so all are reduced together in the end, in the fewest passes
over the memory.

Source: Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB 2020 (buckets).
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from collective import finite, grouped, handles, skipping, world
from collective.engine.fusion import reversed_buckets
from collective.errors import ArgumentError
from collective.process_sets import ProcessSet, global_process_set
from collective.reduce_ops import Average, ReduceOp
from collective.torch.arrays import Array, array_of, tensor_of
from collective.torch.compression import Compression, Compressor, Packing, pack
from collective.torch.sparse import sparse_allreduce_async

Parameters = list[torch.Tensor]

# Optimizers are told apart by the order in which they are wrapped, the same on all ranks of a process set.
NUMBERS: weakref.WeakKeyDictionary[ProcessSet, Iterator[int]] = weakref.WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Options:
    """How gradients are reduced; see ``DistributedOptimizer``.

    Attributes:
        op: ``Average`` or ``Sum``; ``Adasum`` for steps in the place of gradients.
        compression: How they travel.
        sparse_as_dense: Whether sparse gradients are made dense before.
        groups: Parameters that are sent together between hosts; or the number of groups; 0: found by their sizes.
        process_set: The ranks whose gradients are reduced; on the others nothing is.
    """

    op: ReduceOp = Average
    compression: type[Compressor] = Compression.none
    sparse_as_dense: bool = False
    groups: int | Sequence[Sequence[torch.Tensor]] = 0
    process_set: ProcessSet = global_process_set


class OrderError(ArgumentError, AssertionError):
    """The steps of training were called in an order that loses gradients; an assertion fails there in Horovod."""


class Bucket(NamedTuple):
    """Parameters whose dense gradients travel together, and these gradients, packed."""

    parameters: Parameters
    packing: Packing

    def arrays(self) -> list[Array]:
        """The gradients, and an array that tells which of them there are."""
        arrays = [array_of(gradient) for gradient in self.packing.tensors]
        present = [parameter.grad is not None for parameter in self.parameters]
        floats = bool(arrays) and self.packing.tensors[0].is_floating_point()
        return [*arrays, np.array(present, arrays[0].dtype if floats else np.float32)]

    def not_finite(self, reduced: Sequence[Array]) -> list[tuple[torch.Tensor, Array, Array]]:
        """The parameters whose reduced gradients are not finite, with this rank's own and the reduced gradient."""
        own = map(array_of, self.packing.tensors)
        triples = zip(self.parameters, own, reduced[:-1], strict=True)
        return [triple for triple in triples if not skipping.all_finite([triple[2]])]

    def assign(self, reduced: Sequence[Array]) -> None:
        """Put the reduced gradients in the place of those that there are on some rank."""
        *arrays, present = reduced
        tensors = [tensor_of(array, p.device) for array, p in zip(arrays, self.parameters, strict=True)]
        gradients = self.packing.unpack(tensors)
        for parameter, gradient, somewhere in zip(self.parameters, gradients, present.tolist(), strict=True):
            if somewhere:
                parameter.grad = gradient


def next_label(what: str, process_set: ProcessSet) -> str:
    """A name for what an optimizer reduces, the same on all ranks of the process set."""
    return f"{what} of optimizer {next(NUMBERS.setdefault(process_set, itertools.count(1)))}"


def name_of(parameter: torch.Tensor, names: Mapping[torch.Tensor, str]) -> str:
    """What errors call a parameter: by its name, if the user has told it."""
    return names.get(parameter, f"of shape {list(parameter.shape)}")


def overlap_pays() -> bool:
    """Tell whether sending gradients during backpropagation is faster than all of them together after it."""
    return world.cross_size() > 1


class Gradients:
    """The gradients of some parameters. Made, and ``synchronize`` called, by all ranks.

    Args:
        parameters: The parameters of the optimizer.
        names: What errors call them.
        options: How they are reduced.
        passes: Backward passes whose gradients add up before they are reduced.

    Attributes:
        are_finite: Whether to step with what was reduced last: always, but for ``COLLECTIVE_CHECK_FINITE=skip``.
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        names: Mapping[torch.Tensor, str],
        options: Options,
        passes: int,
    ) -> None:
        self._names, self._options, self.passes = names, options, passes
        self.are_finite = True
        self._not_finite: list[tuple[torch.Tensor, Array, Array]] = []
        self._label = next_label("gradients", options.process_set)
        self._alone = not options.process_set.included() or options.process_set.size() == 1
        self._overlaps = overlap_pays()
        self._passed: dict[torch.Tensor, int] = {}  # backward passes since the last step
        self._sparse: dict[torch.Tensor, int] = {}  # sparse dimensions of what had sparse gradients
        self._made_dense: dict[torch.Tensor, int] = {}  # of what had them and travels as dense ones
        self._buckets: list[Parameters] = []
        self._bucket_of: dict[torch.Tensor, int] = {}
        self._missing: list[int] = []  # gradients that each bucket still waits for
        self._under_way: list[tuple[Bucket, handles.Handle[list[Array]]]] = []
        self.watch(parameters)

    def watch(self, parameters: Iterable[torch.Tensor]) -> None:
        """Take up those parameters that are new, or whose gradients are computed from now on."""
        self._own = list(parameters)
        new = [p for p in self._own if p.requires_grad and p not in self._passed]
        if self._alone or not new:
            return
        reference = weakref.ref(self)  # parameters outlive their optimizer, and so do hooks

        def hook(parameter: torch.Tensor) -> None:
            gradients = reference()
            if gradients:
                gradients._arrived(parameter)

        for parameter in new:
            self._passed[parameter] = 0
            parameter.register_post_accumulate_grad_hook(hook)
        self._buckets = self._buckets + _cut(new, self._options.groups) if self._overlaps else [list(self._passed)]
        self._bucket_of = {p: number for number, bucket in enumerate(self._buckets) for p in bucket}
        # Buckets that are on their way wait for nothing; the new ones are sent in the end, as nobody counted for them.
        self._missing = self._missing[: len(self._under_way)] + [
            sum(self._passed[p] < self.passes for p in bucket) for bucket in self._buckets[len(self._under_way) :]
        ]

    def check_idle(self) -> None:
        """Refuse to let go of gradients that are counted on by other ranks."""
        if any(self._passed.values()):
            raise OrderError(
                "optimizer.zero_grad() is not called after loss.backward() but before optimizer.step() or "
                "optimizer.synchronize(), for gradients may be on their way to other ranks",
                fix="Call zero_grad() after step(), or before backward()",
                where=world.topology().where,
            )

    def forget(self) -> None:
        """Begin a step anew; what is under way is waited for, and ignored."""
        under_way, self._under_way = self._under_way, []
        self._passed = dict.fromkeys(self._passed, 0)
        self._missing = [len(bucket) for bucket in self._buckets]
        for _, handle in under_way:
            handle.wait()

    def synchronize(self) -> None:
        """Replace every ``parameter.grad`` by the reduced one; called by all ranks.

        A parameter without a gradient contributes zeros; if it has none on any rank, it gets none.
        """
        self._not_finite = []
        if self._alone:
            if world.skips_steps():
                self._look_at_own()
            return
        if self._overlaps:
            for parameters in self._buckets[len(self._under_way) :]:
                self._send(parameters)
        under_way, self._under_way = self._under_way, []
        self.forget()
        if self._overlaps:
            reduced = handles.wait_for_all([handle for _, handle in under_way])
            for (bucket, _), arrays in zip(under_way, reduced, strict=True):
                self._assign(bucket, arrays)
        else:
            self._reduce_together()
        self._reduce_sparse()
        self._make_sparse_again()
        self._tell()

    def _arrived(self, parameter: torch.Tensor) -> None:
        """Note a gradient, in the middle of backpropagation, and send the buckets that are complete by it."""
        if self._passed[parameter] >= self.passes:
            name = name_of(parameter, self._names)
            raise OrderError(
                "gradients are computed backward_passes_per_step times before optimizer.step()",
                received=f"one more for parameter {name}, with backward_passes_per_step={self.passes}",
                fix="Increase backward_passes_per_step to accumulate gradients locally",
                where=world.topology().where,
            )
        self._passed[parameter] += 1
        if not self._overlaps or self._passed[parameter] < self.passes:
            return
        self._missing[self._bucket_of[parameter]] -= 1
        # In order, so that all ranks send the same: where a gradient is missing, the rest waits for synchronize().
        while len(self._under_way) < len(self._buckets) and not self._missing[len(self._under_way)]:
            self._send(self._buckets[len(self._under_way)])

    def _send(self, parameters: Parameters) -> None:
        bucket = self._bucket(parameters)
        begun = grouped.grouped_allreduce_async(
            bucket.arrays(),
            self._options.op,
            name=f"{self._label}, bucket {len(self._under_way)}",
            compression=bucket.packing.wire,
            process_set=self._options.process_set,
        )
        self._under_way.append((bucket, finite.NamedHandle(begun, self._names_of(bucket))))

    def _reduce_together(self) -> None:
        (everything,) = self._buckets or [[]]
        bucket = self._bucket(everything)
        # Not in place: what comes back lies in memory that the ranks share, where it was added, and isn't copied.
        with finite.named(self._names_of(bucket)):
            reduced = grouped.grouped_allreduce(
                bucket.arrays(),
                self._options.op,
                name=self._label,
                compression=bucket.packing.wire,
                process_set=self._options.process_set,
            )
        self._assign(bucket, reduced)

    def _assign(self, bucket: Bucket, reduced: Sequence[Array]) -> None:
        if world.skips_steps():
            self._not_finite += bucket.not_finite(reduced)
        bucket.assign(reduced)

    def _look_at_own(self) -> None:
        """Where nothing is reduced, do with this rank's own gradients as with reduced ones."""
        for parameter in self._own:
            if parameter.grad is not None:
                values = array_of(parameter.grad._values() if parameter.grad.is_sparse else parameter.grad)
                if not skipping.all_finite([values]):
                    self._not_finite.append((parameter, values, values))
        self._tell()

    def _tell(self) -> None:
        self.are_finite = not self._not_finite
        if self._not_finite:
            parameters, own, reduced = zip(*self._not_finite, strict=True)
            names = [name_of(parameter, self._names) for parameter in parameters]
            self._not_finite = []
            skipping.tell(own, reduced, names, self._options.process_set, raises=world.refuses_infinite())

    def _names_of(self, bucket: Bucket) -> list[str]:
        return [*(name_of(parameter, self._names) for parameter in bucket.parameters), "which gradients there are"]

    def _bucket(self, parameters: Parameters) -> Bucket:
        dense = self._dense(parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
        return Bucket(dense, pack(self._options.compression, gradients))

    def _dense(self, parameters: Parameters) -> Parameters:
        """Those whose gradients are dense."""
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None and gradient.layout is torch.sparse_coo:
                if self._options.sparse_as_dense:
                    self._made_dense[parameter] = gradient.sparse_dim()
                    parameter.grad = gradient.to_dense()
                else:
                    self._sparse[parameter] = gradient.sparse_dim()
        return [parameter for parameter in parameters if parameter not in self._sparse]

    def _reduce_sparse(self) -> None:
        begun = []
        for number, (parameter, sparse_dimensions) in enumerate(self._sparse.items()):
            gradient = parameter.grad
            if gradient is None:
                entries = torch.empty(0, *parameter.shape[sparse_dimensions:], dtype=parameter.dtype)
                places = torch.empty(sparse_dimensions, 0, dtype=torch.int64)
                gradient = torch.sparse_coo_tensor(places, entries, parameter.shape, check_invariants=False)
            name = self._names.get(parameter, str(number))
            label = f"{self._label}, {name}"
            begun.append(sparse_allreduce_async(gradient, label, self._options.op, self._options.process_set))
        for parameter, handle in zip(self._sparse, begun, strict=True):
            own = array_of(parameter.grad._values()) if parameter.grad is not None else np.zeros(0)
            reduced = handle.wait()
            looks = world.skips_steps() or world.refuses_infinite()  # no operation has, as nothing was summed
            if looks and not skipping.all_finite([array_of(reduced._values())]):
                self._not_finite.append((parameter, own, array_of(reduced._values())))
            if parameter.grad is not None or reduced._nnz():
                parameter.grad = reduced

    def _make_sparse_again(self) -> None:
        """Give optimizers the kind of gradients that they know: some take sparse ones only."""
        for parameter, sparse_dimensions in self._made_dense.items():
            if parameter.grad is not None and parameter.grad.layout is torch.strided:
                parameter.grad = parameter.grad.to_sparse(sparse_dimensions)


def _cut(parameters: Parameters, groups: int | Sequence[Sequence[torch.Tensor]]) -> list[Parameters]:
    """Cut parameters into buckets, those first whose gradients are complete first."""
    if isinstance(groups, int) and groups:
        parts = np.array_split(np.arange(len(parameters)), groups)
        return [[parameters[place] for place in part] for part in parts[::-1] if len(part)]
    position = {parameter: number for number, parameter in enumerate(parameters)}
    chosen = [] if isinstance(groups, int) else [[p for p in group if p in position] for group in groups]
    grouped = {parameter for group in chosen for parameter in group}
    rest = [parameter for parameter in parameters if parameter not in grouped]
    sizes = [parameter.numel() * parameter.element_size() for parameter in rest]
    buckets = [[rest[place] for place in places] for places in reversed_buckets(sizes)]
    return sorted([*buckets, *filter(None, chosen)], key=lambda bucket: min(position[p] for p in bucket), reverse=True)
