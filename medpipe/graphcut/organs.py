"""Organs from rough outlines: several objects, each with its own shape prior, in one cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from monai.transforms.utils import distance_transform_edt

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.layers import Contain, Exclude, Layer, MultiObjectResult, multi_object_cut
from medpipe.graphcut.links import Neighbours, contrast_links
from medpipe.graphcut.relations import Relation
from medpipe.graphcut.shape_prior import ArcRule, prior_arcs
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.unaries import gaussian_mixture_costs
from medpipe.graphcut.vector_field import gradient_vector_flow
from medpipe.graphcut.voxels import Spacing
from medpipe.steps._balls import dilate_ball, erode_ball
from medpipe.steps._base import check_triple

__all__ = ["OrganCut", "shape_prior_cut"]

SUREST = 8.0
"""Largest cost of a voxel in nats: no intensity alone decides against its neighbours."""


@dataclass(frozen=True)
class OrganCut:
    """Organs found in an image.

    Parameters
    ----------
    labels : Tensor
        uint8 (X, Y, Z), the values of the rough labels; the smaller of two nested
        organs is on top.
    result : MultiObjectResult
        Masks in the region that was cut, energy and proof.
    region : tuple of slice
        The part of the image that was cut: what lies within `outside_mm` of a
        rough outline.
    notes : tuple of str
        What the user should know.
    """

    labels: torch.Tensor
    result: MultiObjectResult
    region: tuple[slice, slice, slice]
    notes: tuple[str, ...]


def shape_prior_cut(
    image: torch.Tensor,
    rough: torch.Tensor,
    spacing_mm: Spacing,
    *,
    distance_mm: float = 0.0,
    contain: Sequence[tuple[int, int]] = (),
    core_mm: float = 4.0,
    outside_mm: float = 12.0,
    near_per_mm: float = 0.25,
    weight_per_mm2: float = 0.5,
    rule: ArcRule = "cone",
    angle_deg: float = 30.0,
    prior_weight: float | None = None,
    components: int = 2,
    neighbours: Neighbours = 26,
    solver: Solver = "auto",
) -> OrganCut:
    """Segment organs near their rough outlines, each with a shape prior.

    The gradient vector flow of each rough outline says which way the organ's
    centre lies; arcs along it forbid shapes that turn away (Bai, Shah and Wu,
    arXiv 1705.10311). Organs that come near each other exclude each other at a
    distance. Everything is one minimum cut.

    Parameters
    ----------
    image : Tensor
        Intensities (X, Y, Z).
    rough : Tensor
        Rough outlines as labels 1 to 255 (X, Y, Z), 0 for the rest.
    spacing_mm : tuple of 3 float
        Voxel size.
    distance_mm : float
        Organs are at least this far apart, between voxel centres; 0 lets them touch.
    contain : sequence of (inner, outer)
        Labels of nested organs, kept at the same distance.
    core_mm, outside_mm : float
        What lies deeper than `core_mm` inside an outline belongs to the organ, what
        lies further than `outside_mm` from it does not.
    near_per_mm : float
        How much less likely a voxel belongs to the organ for each millimetre it lies
        outside the outline, and more for each inside, in nats: what decides where the
        organ and its surroundings look the same.
    weight_per_mm2 : float
        Price of a square millimetre of surface where intensities are even, in nats
        per cubic millimetre of data cost.
    rule, angle_deg, prior_weight
        Shape prior, see `prior_arcs`; a weight of None makes it hard.
    components : int
        Components of the mixture of intensities of each side.
    neighbours : {6, 18, 26}
        Neighbours of a voxel.
    solver : str
        See `min_cut`.

    Raises
    ------
    StepError
        If there are no labels, the grids differ, an outline fills the image, or
        the relations cannot all hold.
    UsageError
        If a parameter is out of range.
    """
    _check_lengths(
        distance_mm=distance_mm,
        core_mm=core_mm,
        outside_mm=outside_mm,
        near_per_mm=near_per_mm,
        weight_per_mm2=weight_per_mm2,
    )
    values = _labels(image, rough)
    spacing = check_triple("spacing_mm", spacing_mm)
    region = _region(rough > 0, spacing, outside_mm)
    x, outlines = image[region], {v: (rough == v)[region] for v in values}
    layers, notes = [], []
    volume = spacing[0] * spacing[1] * spacing[2]
    links = contrast_links(x, spacing, neighbours, weight_per_mm2, metric="euclidean")
    for value, own in outlines.items():
        cost = _data_cost(x, own, spacing, outside_mm, components, value)
        cost = (cost + near_per_mm * signed_distance_mm(own, spacing)) * volume
        field = gradient_vector_flow(own, spacing)
        prior = prior_arcs(field, spacing, rule, angle_deg, prior_weight)
        if not field.converged:
            notes.append(f"label {value}: the vector field did not converge")
        core, far = erode_ball(own, core_mm, spacing), ~dilate_ball(own, outside_mm, spacing)
        layers.append(Layer(str(value), cost, links, prior.arcs, inside=core, outside=far))
    relations = _relations(outlines, contain, distance_mm, outside_mm, spacing)
    result = multi_object_cut(layers, relations, spacing, solver=solver)
    notes += result.notes
    labels = torch.zeros(image.shape, dtype=torch.uint8, device=image.device)
    part = labels[region]
    for at in sorted(range(len(values)), key=lambda i: -int(result.masks[i].sum())):
        part[result.masks[at]] = values[at]
    return OrganCut(labels, result, region, tuple(notes))


def _check_lengths(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} is wrong", expected="finite, 0 or more", got=f"{value:g}")


def _labels(image: torch.Tensor, rough: torch.Tensor) -> list[int]:
    """Return the labels of the rough outlines, smallest first."""
    if rough.shape != image.shape:
        raise StepError(
            "the rough outlines are not on the grid of the image",
            expected=f"shape {tuple(image.shape)}",
            got=f"shape {tuple(rough.shape)}",
        )
    found = torch.unique(rough)
    if rough.is_floating_point() and not bool((found == found.round()).all()):
        raise StepError("the rough outlines are no labels", expected="whole numbers")
    values = [int(v) for v in found if v != 0]
    if not values:
        raise StepError("the rough outlines are empty", expected="labels of 1 or more")
    if values[0] < 0 or values[-1] > 255:
        raise StepError(
            "the rough outlines hold unusable labels",
            expected="1 to 255",
            got=f"{values[0]} to {values[-1]}",
        )
    return values


def _region(mask: torch.Tensor, spacing: Spacing, margin_mm: float) -> tuple[slice, slice, slice]:
    """Return the box around a mask with a margin and one voxel of background."""
    box = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        at = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0]))[:, 0]
        margin = int(margin_mm / spacing[axis]) + 2
        box.append(slice(max(int(at[0]) - margin, 0), int(at[-1]) + margin + 1))
    return (box[0], box[1], box[2])


def signed_distance_mm(mask: torch.Tensor, spacing_mm: Spacing) -> torch.Tensor:
    """Return the distance of each voxel (X, Y, Z) to the nearest one on the other side of
    the surface of `mask`, below 0 inside."""
    outside, inside = (
        distance_transform_edt(m[None].float(), sampling=spacing_mm)[0] for m in (~mask, mask)
    )
    return torch.as_tensor(outside - inside, device=mask.device, dtype=torch.float32)


def _data_cost(
    image: torch.Tensor,
    own: torch.Tensor,
    spacing: Spacing,
    outside_mm: float,
    components: int,
    value: int,
) -> torch.Tensor:
    """Return the cost of being in the organ minus that of not, nats per voxel."""
    # a rough outline is wrong within some millimetres: the background is learned beyond
    around = ~dilate_ball(own, outside_mm / 2, spacing)
    if not bool(around.any()):
        raise StepError(
            f"label {value} leaves no background to learn from",
            hint="use a smaller outside_mm or an image with a margin",
        )
    inside, outside = gaussian_mixture_costs(image, own, around, components=components)
    return (inside - outside).clamp(-SUREST, SUREST)


def _relations(
    outlines: dict[int, torch.Tensor],
    contain: Sequence[tuple[int, int]],
    distance_mm: float,
    outside_mm: float,
    spacing: Spacing,
) -> list[Relation]:
    """Return the nesting asked for, and exclusion of all other organs that can meet."""
    for pair in contain:
        if len(pair) != 2 or any(v not in outlines for v in pair) or pair[0] == pair[1]:
            raise UsageError(
                "contain is wrong",
                expected=f"pairs (inner, outer) of the labels {sorted(outlines)}",
                got=str(pair),
            )
    relations: list[Relation] = [Contain(str(a), str(b), distance_mm) for a, b in contain]
    nested = {frozenset(pair) for pair in contain}
    reach = {v: dilate_ball(m, outside_mm, spacing) for v, m in outlines.items()}
    for a, b in combinations(outlines, 2):
        near = bool((dilate_ball(reach[a], distance_mm, spacing) & reach[b]).any())
        if frozenset((a, b)) not in nested and near:
            relations.append(Exclude(str(a), str(b), distance_mm))
    return relations
