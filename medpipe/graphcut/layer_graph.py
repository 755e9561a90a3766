"""The minimum cut problem of several layers: terminals, arcs, hard constraints.

Costs are real until `LayerGraph.problem` divides them by a step and rounds them
*down*. No labelling then costs more in integers than in truth, so the optimum of
the integers is a lower bound of the true one. The step is a power of two, which
makes the division exact.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from medpipe.errors import StepError
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem, quantise
from medpipe.graphcut.relations import (
    Contain,
    Exclude,
    Layer,
    Relation,
    ball_offsets,
    beyond_border,
    flipped_layers,
)
from medpipe.graphcut.voxels import Spacing, pair

__all__ = ["Demands", "LayerGraph", "build_graph", "demands_of"]

LARGEST_COST = 2**20
"""Units of the largest finite cost when the step is chosen."""

Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True, eq=False)
class Demands:
    """What a layer pays and what it must do: finite costs (X, Y, Z) and two masks."""

    cost: torch.Tensor
    inside: torch.Tensor
    outside: torch.Tensor


def demands_of(layer: Layer) -> Demands:
    """Split the data cost and the seeds of a layer into costs and demands."""
    data = layer.data_cost.to(torch.float64)
    device = data.device
    inside, outside = data == -math.inf, data == math.inf
    if layer.inside is not None:
        inside = inside | layer.inside.to(device, torch.bool)
    if layer.outside is not None:
        outside = outside | layer.outside.to(device, torch.bool)
    return Demands(torch.where(torch.isinf(data), 0.0, data), inside, outside)


@dataclass(frozen=True, eq=False)
class _Part:
    """Real capacities of one layer in a family, at the tails of its forward arcs."""

    layer: int
    capacity: torch.Tensor | float
    direction: Direction


class LayerGraph:
    """Terminals and arcs of several layers with real costs.

    Parameters
    ----------
    demands : sequence of Demands
        One per layer.
    flips : sequence of bool
        Which layers are stored flipped.
    """

    def __init__(self, demands: Sequence[Demands], flips: Sequence[bool]) -> None:
        self.cost = torch.stack([d.cost for d in demands])
        self.inside = torch.stack([d.inside for d in demands])
        self.outside = torch.stack([d.outside for d in demands])
        self.flips = torch.tensor(list(flips), device=self.cost.device)[:, None, None, None]
        self._parts: dict[tuple[int, ...], list[_Part]] = defaultdict(list)

    @property
    def constant(self) -> float:
        """Energy that every labelling pays: the sum of the negative data costs."""
        return float(self.cost.clamp(max=0).sum())

    def add(
        self,
        tail: int,
        head: int,
        offset: Sequence[int],
        capacity: torch.Tensor | float,
        *,
        both: bool = False,
    ) -> None:
        """Add arcs from voxels of layer `tail` to those at `offset` in layer `head`.

        The capacity is (X, Y, Z) or 0-dimensional; it is paid where the tail is
        inside its layer and the head outside, before any flip of both layers.
        """
        if bool(self.flips[tail]):
            # inside and outside change places: the arc runs the other way
            tail, head, capacity = head, tail, _moved(capacity, offset)
            offset = [-v for v in offset]
        self._add(tail, head, offset, capacity, both)

    def add_exclusion(self, a: int, b: int, offset: Sequence[int], capacity: float) -> None:
        """Add arcs paid where a voxel is inside layer `a` and that at `offset` inside `b`."""
        if bool(self.flips[a]):
            a, b, offset = b, a, [-v for v in offset]
        self._add(a, b, offset, capacity, False)

    def problem(self, step: float) -> CutProblem:
        """Return the problem in units of `step`, all costs rounded down."""
        paid = {}
        for name, cost, hard in (("in", self.cost, self.outside), ("out", -self.cost, self.inside)):
            value = _whole(cost.clamp(min=0), step, "data costs")
            paid[name] = torch.where(hard, INFINITE, value).to(torch.int32)
        source = torch.where(self.flips, paid["in"], paid["out"])
        sink = torch.where(self.flips, paid["out"], paid["in"])
        return CutProblem(source, sink, [self._family(o, step) for o in sorted(self._parts)])

    def masks(self, source_side: torch.Tensor) -> torch.Tensor:
        """Return the labelling (O, X, Y, Z) that a cut stands for."""
        return source_side ^ self.flips

    def auto_step(self) -> float:
        """Return the power of two that brings the largest finite cost to at most 2^20."""
        top = float(self.cost.abs().max())
        for parts in self._parts.values():
            top = max(top, sum(_largest_finite(p.capacity) for p in parts))
        return 2.0 ** math.ceil(math.log2(top / LARGEST_COST)) if top > 0 else 1.0

    def _add(
        self,
        tail: int,
        head: int,
        offset: Sequence[int],
        capacity: torch.Tensor | float,
        both: bool,
    ) -> None:
        key = (head - tail, *offset)
        direction: Direction = "both" if both else "forward"
        if key < (0, 0, 0, 0):
            # one family for an arc and its opposite, stored where the opposite begins
            key = tuple(-v for v in key)
            capacity, tail = _moved(capacity, offset), head
            direction = "both" if both else "backward"
        self._parts[key].append(_Part(tail, capacity, direction))

    def _family(self, offset: tuple[int, ...], step: float) -> ArcFamily:
        parts = self._parts[offset]
        forward = self._sum([p for p in parts if p.direction != "backward"], step)
        if all(p.direction == "both" for p in parts):
            return ArcFamily(offset, forward, forward)
        return ArcFamily(
            offset, forward, self._sum([p for p in parts if p.direction != "forward"], step)
        )

    def _sum(self, parts: Sequence[_Part], step: float) -> torch.Tensor | int:
        if not parts:
            return 0
        flat = all(not isinstance(p.capacity, torch.Tensor) for p in parts)
        shape = (len(self.cost), 1, 1, 1) if flat else tuple(self.cost.shape)
        total = torch.zeros(shape, dtype=torch.float64, device=self.cost.device)
        for part in parts:
            total[part.layer] += part.capacity
        return _whole(total, step, "capacities")


def build_graph(
    layers: Sequence[Layer], relations: Sequence[Relation], spacing_mm: Spacing
) -> LayerGraph:
    """Return the graph of all layers, links, prior arcs and relations.

    Raises
    ------
    StepError
        If the relations hold a frustrated cycle.
    """
    names = [layer.name for layer in layers]
    flips = flipped_layers(names, relations)
    demands = [demands_of(layer) for layer in layers]
    shape = layers[0].data_cost.shape
    for relation in relations:
        if isinstance(relation, Contain) and relation.border == "outside":
            at = names.index(relation.inner)
            demands[at] = _keep_from_border(demands[at], relation, spacing_mm)
    graph = LayerGraph(demands, flips)
    for at, layer in enumerate(layers):
        for offset, weights in layer.links:
            graph.add(at, at, offset, weights, both=True)
        for offset, capacity in layer.arcs:
            graph.add(at, at, offset, capacity)
    for relation in relations:
        first, second = (names.index(name) for name in relation.layers)
        for offset in ball_offsets(relation.distance_mm, spacing_mm):
            if any(abs(v) >= n for v, n in zip(offset, shape, strict=True)):
                continue
            if isinstance(relation, Exclude):
                graph.add_exclusion(first, second, offset, relation.weight)
            else:
                graph.add(first, second, offset, relation.weight)
    return graph


def _keep_from_border(demands: Demands, relation: Contain, spacing_mm: Spacing) -> Demands:
    """Return the demands of an inner layer whose outer one ends at the border."""
    shape = demands.cost.shape
    beyond = beyond_border(shape, relation.distance_mm, spacing_mm, demands.cost.device)
    if math.isinf(relation.weight):
        return Demands(demands.cost, demands.inside, demands.outside | (beyond > 0))
    return Demands(demands.cost + relation.weight * beyond, demands.inside, demands.outside)


def _moved(capacity: torch.Tensor | float, offset: Sequence[int]) -> torch.Tensor | float:
    """Return capacities stored at the heads of their arcs instead of at the tails."""
    if not isinstance(capacity, torch.Tensor) or capacity.ndim == 0:
        return capacity
    out = torch.zeros_like(capacity)
    pair(out, offset)[1].copy_(pair(capacity, offset)[0])
    return out


def _whole(costs: torch.Tensor, step: float, what: str) -> torch.Tensor:
    units = torch.floor(costs / step)
    if bool((torch.isinf(units) & torch.isfinite(costs)).any()):
        raise StepError(
            f"the {what} are too large for exact integers",
            expected=f"cost / step below {INFINITE}",
            got=f"a step of {step:.3g}",
            hint="use a larger step or smaller weights",
        )
    return quantise(units, 1.0, what=what).values


def _largest_finite(capacity: torch.Tensor | float) -> float:
    values = torch.as_tensor(capacity)
    return float(torch.where(torch.isinf(values), 0.0, values).max())
