"""Nodes moved along their columns towards where the surface is expected.

A column samples the image at a few places. Moved by less than half a spacing
towards the likely edge, its nodes lie denser where the cost is low, so that a
surface through one of them is placed more finely than the spacing (Abràmoff, Wu,
Lee and Tang 2014, doi 10.1371/journal.pone.0107763). The order of the nodes must not
change: the arc weights of a convex prior are valid on increasing positions only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import Columns, field_of_image
from medpipe.graphcut.columns.field import FieldFrame
from medpipe.graphcut.surface_costs import step_response
from medpipe.types import Affine

__all__ = [
    "Displacement",
    "displace",
    "edge_displacement",
    "field_along_columns",
    "gradient_displacement",
    "parabola_displacement",
    "resample_costs",
    "slope_along_columns",
]

Fit = Literal["parabola", "centroid"]
Evaluate = Literal["parabola", "linear"]

MIN_GAP = 0.05
"""Smallest distance between displaced nodes, as a share of their regular distance."""


@dataclass(frozen=True)
class Displacement:
    """Nodes before and after they were moved along their columns.

    Parameters
    ----------
    regular_mm, positions_mm : Tensor, float64 (..., K)
        Positions before and after, both strictly increasing.
    repaired : int
        Nodes whose move was cut short to keep the order.
    """

    regular_mm: torch.Tensor
    positions_mm: torch.Tensor
    repaired: int = 0

    @property
    def offset_mm(self) -> torch.Tensor:
        """How far each node was moved, (..., K) in mm."""
        return self.positions_mm - self.regular_mm


def displace(
    regular_mm: torch.Tensor,
    offset_mm: torch.Tensor,
    *,
    min_gap: float = MIN_GAP,
    repair: bool = False,
) -> Displacement:
    """Move nodes along their columns and check that their order is kept.

    Parameters
    ----------
    regular_mm : Tensor, shape (..., K)
        Positions, strictly increasing.
    offset_mm : Tensor, shape (..., K)
        How far to move each node.
    min_gap : float
        Smallest distance of neighbours afterwards, as a share of their distance
        before; above 0, below 1.
    repair : bool
        Cut moves short at nearly half the distance to the neighbour, and at the end
        of the column, instead of raising.

    Returns
    -------
    Displacement

    Raises
    ------
    StepError
        If a column would have nodes closer than that, or out of order. It is named.
    """
    _check_gap(min_gap)
    regular = regular_mm.to(torch.float64)
    offset = offset_mm.to(torch.float64)
    gaps = _gaps(regular)
    if offset.shape != regular.shape or not bool(torch.isfinite(offset).all()):
        raise StepError(
            "the displacement is unusable",
            expected=f"finite offsets in mm, shape {tuple(regular.shape)}",
            got=f"shape {tuple(offset.shape)}",
        )
    repaired = 0
    if repair:
        wanted, offset = offset, _limited(offset, gaps, min_gap)
        repaired = int((wanted != offset).sum())
    positions = regular + offset
    # a repaired gap is min_gap itself but for rounding
    bad = positions.diff(dim=-1) < min_gap * gaps * (1 - 1e-6)
    if bool(bad.any()):
        *place, node = torch.nonzero(bad)[0].tolist()
        name = ", ".join(str(n) for n in place)
        raise StepError(
            f"displaced nodes {node} and {node + 1} are too close or out of order",
            where=f"column ({name})" if len(place) > 1 else f"column {name or 0}",
            expected=f"at least {min_gap:g} of their regular distance",
            hint="use a weaker displacement, or repair = true",
        )
    return Displacement(regular, positions, repaired)


def parabola_displacement(
    costs: torch.Tensor,
    positions_mm: torch.Tensor,
    *,
    fit: Fit = "parabola",
    min_gap: float = MIN_GAP,
) -> Displacement:
    """Move each node to the minimum that the costs of three nodes tell of.

    Parameters
    ----------
    costs : Tensor, shape (..., K)
        Low where the surface is likely. A node beside a cost that is not finite
        stays, and so do the ends of the columns.
    positions_mm : Tensor, shape (..., K)
        Positions, strictly increasing, equally spaced or not.
    fit : {"parabola", "centroid"}
        Vertex of the parabola through the three costs (nodes where it has no
        minimum stay), or centroid of the three, weighted by how far each lies below
        the largest of them; the centroid is biased towards the node and less
        sensitive to noise.
    min_gap : float
        See `displace`; moves stop at ``(1 - min_gap) / 2`` of the distance to the
        neighbour, so that the order is kept.

    Returns
    -------
    Displacement
    """
    if fit not in get_args(Fit):
        raise UsageError("unknown fit", expected=" | ".join(get_args(Fit)), got=repr(fit)[:40])
    _check_gap(min_gap)
    values = _values(costs, positions_mm)
    regular = positions_mm.to(torch.float64).expand_as(values)
    gaps = _gaps(regular)
    known = torch.isfinite(values)
    usable = known[..., :-2] & known[..., 1:-1] & known[..., 2:]
    find = _vertex if fit == "parabola" else _centroid
    inner = torch.where(usable, find(torch.where(known, values, 0), gaps), 0)
    offset = torch.nn.functional.pad(inner, (1, 1))
    return displace(regular, _limited(offset, gaps, min_gap), min_gap=min_gap)


def edge_displacement(
    slope: torch.Tensor,
    positions_mm: torch.Tensor,
    *,
    sigma_mm: float,
    min_gap: float = MIN_GAP,
) -> Displacement:
    """Move each node to the step that the slopes at three nodes tell of.

    A sample is a mean over its length, so a step between two samples shares its height
    among the differences on either side, and their centroid is the step, wherever it
    lies: sampling keeps the first moment of an edge. For slopes by a Gaussian the
    centroid of three nodes is stretched by its known response to a step. Unlike a
    parabola it is exact for edges sharper than the samples, and a slope of the other
    sign beside the node, the far side of a thin layer, does not count.

    Parameters
    ----------
    slope : Tensor, shape (..., K)
        `edge_slope` between samples. A node beside a slope that is not finite stays, and
        so do the ends of the columns.
    positions_mm : Tensor, shape (..., K)
        Positions of the nodes, equally spaced.
    sigma_mm : float
        Width of the Gaussian of the slopes.
    min_gap : float
        See `parabola_displacement`.

    Returns
    -------
    Displacement
    """
    _check_gap(min_gap)
    values = _values(slope, positions_mm)
    regular = positions_mm.to(torch.float64).expand_as(values)
    gaps = _gaps(regular)
    step = float(gaps.mean())
    if float((gaps - step).abs().max()) > 1e-6 * step:
        raise StepError("the nodes of an edge are not equally spaced")
    back, here, ahead = values[..., :-2], values[..., 1:-1], values[..., 2:]
    sign = here.sign()
    back, here, ahead = ((v * sign).clamp(min=0) for v in (back, here, ahead))
    share = torch.nan_to_num((ahead - back) / (back + here + ahead))
    first, second, third = step_response(sigma_mm / step)
    size = share.abs()
    part = share * (first + 2 * second) / (first - third + size * (second - third))
    offset = torch.nn.functional.pad(part * step, (1, 1))
    return displace(regular, _limited(offset, gaps, min_gap), min_gap=min_gap)


def gradient_displacement(
    field: torch.Tensor,
    positions_mm: torch.Tensor,
    *,
    scale: float | None = None,
    min_gap: float = MIN_GAP,
) -> Displacement:
    """Move each node along a field that points to the likely surface.

    Parameters
    ----------
    field : Tensor, shape (..., K)
        Component of the field along the columns at the nodes, any unit:
        `field_along_columns` of a gradient vector flow, or `slope_along_columns` of
        the (logarithm of the) edge strength. NaN counts as 0.
    positions_mm : Tensor, shape (..., K)
        Positions, strictly increasing.
    scale : float, optional
        Offset in mm for one unit of the field; offsets are cut short as by
        `displace` with repair. Default: the largest scale that cuts none short. With
        the slope of the logarithm of a bell of standard deviation σ mm, a scale of
        σ² moves nodes to its middle.
    min_gap : float
        See `displace`.

    Returns
    -------
    Displacement
    """
    _check_gap(min_gap)
    pull = torch.nan_to_num(_values(field, positions_mm))
    regular = positions_mm.to(torch.float64).expand_as(pull)
    gaps = _gaps(regular)
    # the ends stay on the column they belong to
    pull[..., 0].clamp_(min=0)
    pull[..., -1].clamp_(max=0)
    if scale is None:
        back, ahead = _limits(gaps, min_gap)
        room = torch.where(pull > 0, ahead, back)
        share = torch.where(pull != 0, room / pull.abs(), torch.inf)
        scale = float(share.min())
        offset = pull * scale if math.isfinite(scale) else torch.zeros_like(pull)
        return displace(regular, _limited(offset, gaps, min_gap), min_gap=min_gap)
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError("the scale is wrong", expected="a positive number", got=f"{scale:g}")
    return displace(regular, pull * scale, min_gap=min_gap, repair=True)


def field_along_columns(
    vectors: torch.Tensor, columns: Columns, affine: Affine, frame: FieldFrame = "image"
) -> torch.Tensor:
    """Return the component of a vector field along the columns at their nodes.

    Parameters
    ----------
    vectors : Tensor, shape (3, I, J, K)
        Components in mm along the axes of the image, or of the world.
    columns : Columns
    affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm of the field.
    frame : {"image", "world"}

    Returns
    -------
    Tensor, float64 (..., K)
        In the unit of the field, positive towards larger positions; NaN outside.
    """
    points = columns.points_mm.to(torch.float64)
    ahead = torch.cat([points[..., 1:, :], points[..., -1:, :]], -2)
    back = torch.cat([points[..., :1, :], points[..., :-1, :]], -2)
    tangent = ahead - back
    tangent = tangent / torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    return (field_of_image(vectors, affine, frame)(points) * tangent).sum(-1)


def slope_along_columns(values: torch.Tensor, positions_mm: torch.Tensor) -> torch.Tensor:
    """Return the derivative of values along the columns, per mm, float64 (..., K).

    Inside a column that of the parabola through three nodes, at the ends the
    one-sided difference.
    """
    regular = positions_mm.to(torch.float64)
    gaps = _gaps(regular)
    data = _values(values, regular)
    steep = data.diff(dim=-1) / gaps
    slope, _ = _parabolas(data, gaps)
    return torch.cat([steep[..., :1], slope, steep[..., -1:]], -1)


def resample_costs(
    costs: torch.Tensor, displacement: Displacement, mode: Evaluate = "parabola"
) -> torch.Tensor:
    """Return the costs at displaced nodes.

    Parameters
    ----------
    costs : Tensor, shape (..., K)
        Costs at the regular nodes; leading axes (surfaces) may be added in front.
    displacement : Displacement
        Each node lies between its regular neighbours.
    mode : {"parabola", "linear"}
        The parabola through the node and its neighbours, which is below all three
        near a minimum, or linear interpolation, which never is.

    Returns
    -------
    Tensor, float64, shape of `costs`
        Where a neighbour that is needed is not finite, the cost of the node itself.
    """
    if mode not in get_args(Evaluate):
        raise UsageError(
            "unknown mode", expected=" | ".join(get_args(Evaluate)), got=repr(mode)[:40]
        )
    regular = displacement.regular_mm
    values = _values(costs, regular)
    offset = displacement.offset_mm
    gaps = _gaps(regular)
    steep = values.diff(dim=-1) / gaps
    none = torch.zeros_like(steep[..., :1])
    change = offset * torch.where(
        offset > 0, torch.cat([steep, none], -1), torch.cat([none, steep], -1)
    )
    if mode == "parabola":
        slope, bend = _parabolas(values, gaps)
        inner = offset[..., 1:-1]
        curved = inner * slope + inner.square() * bend
        change[..., 1:-1] = torch.where(torch.isfinite(curved), curved, change[..., 1:-1])
    return torch.where(torch.isfinite(change), values + change, values)


def _gaps(regular: torch.Tensor) -> torch.Tensor:
    """Return the distances of neighbouring nodes, (..., K - 1), all above 0."""
    if regular.ndim < 1 or regular.shape[-1] < 3:
        raise StepError(
            "a column has too few nodes to displace them",
            expected="three or more",
            got=str(regular.shape[-1]),
        )
    gaps = regular.diff(dim=-1)
    if not bool((gaps > 0).all()):
        raise StepError(
            "the positions of the nodes do not increase",
            expected="gaps above 0 mm",
            got=f"{float(gaps.min()):g} mm",
        )
    return gaps


def _values(values: torch.Tensor, regular: torch.Tensor) -> torch.Tensor:
    """Return values at nodes as float64, or raise if they do not fit the nodes."""
    shape = tuple(values.shape[-regular.ndim :])
    if shape != tuple(regular.shape):
        raise StepError(
            "the values at the nodes do not fit their positions",
            expected=f"shape {tuple(regular.shape)}",
            got=f"shape {tuple(values.shape)}",
        )
    return values.to(torch.float64)


def _parabolas(values: torch.Tensor, gaps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return slope at the middle node and second coefficient, (..., K - 2), of parabolas."""
    steep = values.diff(dim=-1) / gaps
    back, ahead = gaps[..., :-1], gaps[..., 1:]
    bend = (steep[..., 1:] - steep[..., :-1]) / (back + ahead)
    return steep[..., :-1] + back * bend, bend


def _vertex(values: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Return the offset of the minimum of each parabola, 0 where it has none, (..., K - 2)."""
    slope, bend = _parabolas(values, gaps)
    convex = bend > 0
    return torch.where(convex, -slope / torch.where(convex, 2 * bend, 1), 0)


def _centroid(values: torch.Tensor, gaps: torch.Tensor) -> torch.Tensor:
    """Return the offset of the centroid of three costs below the largest, (..., K - 2)."""
    three = torch.stack([values[..., :-2], values[..., 1:-1], values[..., 2:]])
    weight = three.amax(0) - three
    total = weight.sum(0)
    moment = gaps[..., 1:] * weight[2] - gaps[..., :-1] * weight[0]
    return torch.where(total > 0, moment / torch.where(total > 0, total, 1), 0)


def _limits(gaps: torch.Tensor, min_gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how far each node may move back and ahead, (..., K); the ends not outwards."""
    half = gaps * (1 - min_gap) / 2
    none = torch.zeros_like(half[..., :1])
    return torch.cat([none, half], -1), torch.cat([half, none], -1)


def _limited(offset: torch.Tensor, gaps: torch.Tensor, min_gap: float) -> torch.Tensor:
    back, ahead = _limits(gaps, min_gap)
    return torch.maximum(torch.minimum(offset, ahead), -back)


def _check_gap(min_gap: float) -> None:
    if not 0 < min_gap < 1:
        raise UsageError("min_gap is wrong", expected="above 0, below 1", got=f"{min_gap:g}")
