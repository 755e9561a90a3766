"""Layers and how they relate: one lies in another or keeps away from it; which are flipped.

A cut can only forbid that a node is on the source side while another is not.
Containment is of this kind. Exclusion (not both inside) becomes so when one of
the two layers is stored flipped, outside as inside. Layers that contain each
other must be flipped alike and layers that exclude each other differently; that
is possible unless a cycle holds an odd number of exclusions (Delong and Boykov
2009, doi 10.1109/ICCV.2009.5459263).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Literal

import networkx as nx
import torch

from medpipe.errors import ResourceError, StepError, UsageError
from medpipe.graphcut.voxels import Spacing, pair

__all__ = [
    "Border",
    "Contain",
    "Exclude",
    "Layer",
    "Relation",
    "ball_offsets",
    "beyond_border",
    "check_layers",
    "flipped_layers",
]

Border = Literal["open", "outside"]

LARGEST_BALL = 4200
"""Voxels of a ball of ten voxels radius; each is an arc of every voxel."""
TIE = 1e-5
"""Relative tolerance of a distance, as in the morphology of masks."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One object: a binary labelling of the voxels and what it costs.

    Parameters
    ----------
    name : str
        Name, unique among the layers of a cut.
    data_cost : Tensor
        Cost of a voxel being inside minus that of being outside, nats, (X, Y, Z).
        +inf keeps the voxel outside, -inf inside.
    links : sequence of (offset, Tensor)
        Finite weights from `contrast_links`: paid where exactly one of the two
        voxels is inside.
    arcs : sequence of (offset, Tensor or float)
        Directed prior: the capacity at p is paid where p is inside and
        p + offset is not; inf forbids that.
    inside, outside : Tensor, optional
        Masks (X, Y, Z) of voxels that must lie inside and outside.
    """

    name: str
    data_cost: torch.Tensor
    links: Sequence[tuple[Sequence[int], torch.Tensor]] = ()
    arcs: Sequence[tuple[Sequence[int], torch.Tensor | float]] = ()
    inside: torch.Tensor | None = None
    outside: torch.Tensor | None = None


@dataclass(frozen=True)
class Contain:
    """Every voxel within `distance_mm` of the layer `inner` lies in the layer `outer`.

    Distances are between voxel centres and the limit itself counts as within, so
    that with a multiple of the spacing the wall between the two is at least
    `distance_mm` thick along an axis. With 0 the layers may touch.

    Parameters
    ----------
    inner, outer : str
        Names of layers.
    distance_mm : float
        Margin between the two.
    weight : float
        Price of each pair of voxels that breaks the rule, nats; inf forbids it.
    border : {"open", "outside"}
        What lies beyond the image: nothing is known and the margin ends there
        (an organ cut off by the field of view), or it is outside of every
        layer and `inner` keeps away from the border.
    """

    inner: str
    outer: str
    distance_mm: float = 0.0
    weight: float = math.inf
    border: Border = "open"

    def __post_init__(self) -> None:
        _check(self.inner, self.outer, self.distance_mm, self.weight)
        if self.border not in ("open", "outside"):
            raise UsageError("border is wrong", expected="open or outside")

    @property
    def layers(self) -> tuple[str, str]:
        """Names of the two layers."""
        return self.inner, self.outer


@dataclass(frozen=True)
class Exclude:
    """No voxel within `distance_mm` of the layer `a` lies in the layer `b`.

    Parameters
    ----------
    a, b : str
        Names of layers.
    distance_mm : float
        Distance of voxel centres, the limit included; with 0 the layers may touch.
    weight : float
        Price of each pair of voxels that breaks the rule, nats; inf forbids it.
    """

    a: str
    b: str
    distance_mm: float = 0.0
    weight: float = math.inf

    def __post_init__(self) -> None:
        _check(self.a, self.b, self.distance_mm, self.weight)

    @property
    def layers(self) -> tuple[str, str]:
        """Names of the two layers."""
        return self.a, self.b


Relation = Contain | Exclude


def check_layers(layers: Sequence[Layer]) -> None:
    """Raise StepError unless the layers fit together and every cost is usable."""
    if not layers:
        raise StepError("there is no layer to cut")
    names = [layer.name for layer in layers]
    if len(set(names)) < len(names):
        raise StepError("two layers have the same name", got=", ".join(names))
    shape = tuple(layers[0].data_cost.shape)
    if len(shape) != 3 or 0 in shape:
        raise StepError(
            "the data cost has wrong axes",
            where=f"layer {names[0]}",
            expected="(X, Y, Z), not empty",
            got=f"shape {shape}",
        )
    for layer in layers:
        try:
            _check_layer(layer, shape)
        except StepError as error:
            raise error.at(f"layer {layer.name}") from None


def flipped_layers(names: Sequence[str], relations: Sequence[Relation]) -> list[bool]:
    """Return for each layer whether it is stored flipped.

    The first layer of each group of related layers is not flipped.

    Raises
    ------
    StepError
        If a relation names an unknown layer, or a cycle of relations holds an
        odd number of exclusions; the shortest such cycle is named.
    """
    # Two nodes a layer, one for each way to store it: a relation joins the
    # pairs of ways that go together, and a layer is frustrated when both of
    # its nodes are joined.
    cover = nx.Graph()
    cover.add_nodes_from(product(names, (0, 1)))
    for relation in relations:
        first, second = relation.layers
        for name in (first, second):
            if name not in names:
                raise StepError(
                    "a relation names a layer that does not exist",
                    expected=", ".join(names),
                    got=name,
                )
        flip = int(isinstance(relation, Exclude))
        for way in (0, 1):
            cover.add_edge((first, way), (second, way ^ flip), relation=relation)
    _refuse_frustration(cover, names)
    ways: dict[str, int] = {}
    for name in names:
        if name not in ways:
            ways.update(nx.node_connected_component(cover, (name, 0)))
    return [bool(ways[name]) for name in names]


def ball_offsets(radius_mm: float, spacing_mm: Spacing) -> list[tuple[int, int, int]]:
    """Return the offsets of all voxels whose centre lies within `radius_mm`.

    All of them are needed: with the shell and the centre alone an object of one
    voxel could lie in a hollow one. The number grows with the third power of
    the radius.

    Raises
    ------
    ResourceError
        If there are more than LARGEST_BALL of them.
    """
    volume = 4 / 3 * math.pi * radius_mm**3 / math.prod(spacing_mm)
    if volume > LARGEST_BALL:
        raise ResourceError(
            "the distance is too large for this grid",
            expected=f"a ball of at most {LARGEST_BALL} voxels",
            got=f"{volume:.0f} voxels within {radius_mm:g} mm",
            hint="cut on a coarser grid, or keep the distance by a prior",
        )
    limit = radius_mm * (1 + TIE)
    reach = [int(limit / s) for s in spacing_mm]
    return [
        (x, y, z)
        for x, y, z in product(*(range(-r, r + 1) for r in reach))
        if math.hypot(*(v * s for v, s in zip((x, y, z), spacing_mm, strict=True))) <= limit
    ]


def beyond_border(
    shape: Sequence[int], radius_mm: float, spacing_mm: Spacing, device: torch.device | None = None
) -> torch.Tensor:
    """Return how many voxels of the ball around each voxel lie outside the image, (X, Y, Z)."""
    ball = ball_offsets(radius_mm, spacing_mm)
    outside = torch.full(tuple(shape), len(ball), dtype=torch.int64, device=device)
    for offset in ball:
        pair(outside, offset)[0].sub_(1)
    return outside


def _refuse_frustration(cover: nx.Graph, names: Sequence[str]) -> None:
    cycles = [
        nx.shortest_path(cover, (name, 0), (name, 1))
        for name in names
        if nx.has_path(cover, (name, 0), (name, 1))
    ]
    if not cycles:
        return
    cycle = min(cycles, key=len)
    text = cycle[0][0]
    for here, there in pairwise(cycle):
        relation = cover.edges[here, there]["relation"]
        verb = "excludes"
        if isinstance(relation, Contain):
            verb = "lies in" if relation.inner == here[0] else "contains"
        text += f" {verb} {there[0]}"
    raise StepError(
        "the relations cannot be cut at once",
        expected="no cycle with an odd number of exclusions",
        got=text,
        hint="leave one of these relations out, or cut in two steps",
    )


def _check_layer(layer: Layer, shape: tuple[int, ...]) -> None:
    tensors = {"data cost": layer.data_cost, "inside": layer.inside, "outside": layer.outside}
    for offset, weights in (*layer.links, *layer.arcs):
        if len(offset) != 3 or not any(offset):
            raise StepError(
                "a link or arc has an unusable offset",
                expected="three integers, not all 0",
                got=str(tuple(offset)),
            )
        tensors[f"capacity at offset {tuple(offset)}"] = torch.as_tensor(weights)
        bad = int((~(torch.as_tensor(weights) >= 0)).sum())
        if bad:
            raise StepError(
                f"the capacity at offset {tuple(offset)} is wrong",
                expected="0 or more",
                got=f"{bad} values below 0 or NaN",
            )
    for offset, weights in layer.links:
        if bool(torch.isinf(weights).any()):
            raise StepError(f"the link at offset {tuple(offset)} is infinite", hint="use arcs")
    for what, tensor in tensors.items():
        if tensor is not None and tensor.ndim and tuple(tensor.shape) != shape:
            raise StepError(
                f"the {what} is on another grid",
                expected=f"shape {shape}",
                got=f"shape {tuple(tensor.shape)}",
            )
    bad = int(torch.isnan(layer.data_cost).sum())
    if bad:
        raise StepError("the data cost holds NaN", got=f"{bad} voxels", hint="fill these places")


def _check(first: str, second: str, distance_mm: float, weight: float) -> None:
    if first == second:
        raise UsageError("a layer is related to itself", got=first)
    if not 0 <= distance_mm < math.inf:
        raise UsageError("distance_mm is wrong", expected="0 or more", got=f"{distance_mm:g}")
    if not weight > 0:
        raise UsageError("weight is wrong", expected="above 0, inf for hard", got=f"{weight:g}")
