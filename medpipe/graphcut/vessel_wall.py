"""Lumen and external elastic membrane in intravascular ultrasound by minimum cuts.

Both contours of all frames are found in one cut over rays from the catheter. The
angle closes on itself, neighbouring frames are tied, and the lumen stays inside the
membrane by construction. Behind a guide wire or calcium there is no echo: those rays
are left to their neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import Columns, polar_columns
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.displacement import parabola_displacement, resample_costs
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.surface_costs import boundary_cost, gaussian_filter, gradient_cost
from medpipe.graphcut.surfaces import Separation, SurfaceProblem, SurfaceResult, optimal_surfaces
from medpipe.types import Affine

__all__ = ["SURFACES", "VesselWallParameters", "VesselWallResult", "vessel_wall"]

SURFACES = ("lumen", "media")
"""The inner wall, and the border of media and adventitia (external elastic membrane)."""


_OPEN = ("max_wall_mm", "slope", "frame_slope")
"""Limits that may be infinite: none."""


@dataclass(frozen=True)
class VesselWallParameters:
    """Lengths and weights of `vessel_wall`.

    Parameters
    ----------
    angles : int
        Rays per frame.
    node_mm : float
        Spacing of the nodes along the rays.
    inner_mm : float
        Radius at which the rays start, beyond the catheter and its ring-down.
    outer_mm : float, optional
        Radius at which they end; default the border of the image.
    edge_mm : float
        Width of the derivative along the rays.
    blur_deg : float
        Width of the Gaussian across the rays, against speckle.
    min_wall_mm, max_wall_mm : float
        Limits of the distance from lumen to membrane.
    stiffness, frame_stiffness : float
        Cost of a change of radius of 1 mm between neighbouring rays or frames, times
        their distance in mm; a ray without any edge costs ½.
    slope, frame_slope : float
        Largest change of radius over distance along the circumference and the vessel.
    region_weight : float
        Weight of the brightness of blood, wall and surroundings, per node.
    rounds : int
        Cuts; brightness and shadows are measured again between them.
    """

    angles: int = 256
    node_mm: float = 0.025
    inner_mm: float = 0.7
    outer_mm: float | None = None
    edge_mm: float = 0.05
    blur_deg: float = 3.0
    min_wall_mm: float = 0.08
    max_wall_mm: float = 2.5
    stiffness: float = 0.15
    frame_stiffness: float = 0.15
    slope: float = 0.8
    frame_slope: float = 0.8
    region_weight: float = 0.05
    rounds: int = 3

    def __post_init__(self) -> None:
        numbers = {n: v for n, v in vars(self).items() if v is not None and n != "min_wall_mm"}
        for name, value in numbers.items():
            if not 0 < value < math.inf and not (value == math.inf and name in _OPEN):
                raise UsageError(f"{name} is out of range", expected="above 0", got=f"{value:g}")
        if not 0 <= self.min_wall_mm <= self.max_wall_mm:
            raise UsageError(
                "min_wall_mm is out of range",
                expected=f"0 to max_wall_mm, {self.max_wall_mm:g}",
                got=f"{self.min_wall_mm:g}",
            )
        if self.angles < 3 or self.angles != int(self.angles) or self.rounds != int(self.rounds):
            raise UsageError(
                "angles or rounds is out of range",
                expected="whole numbers, 3 angles or more",
                got=f"{self.angles:g} and {self.rounds:g}",
            )


@dataclass(frozen=True)
class VesselWallResult:
    """Contours of a pullback.

    Parameters
    ----------
    radius_mm : Tensor, float64 (2, angles, frames)
        Distance of lumen and membrane from the centre.
    columns : Columns
        The rays; `columns.points_at(radius_mm)` are the contours in space.
    seen : Tensor, bool (2, angles, frames)
        Where the image decided; False where a shadow was bridged.
    cuts : list of SurfaceResult
        The cuts, the last one being the result.
    """

    radius_mm: torch.Tensor
    columns: Columns
    seen: torch.Tensor
    cuts: list[SurfaceResult] = field(default_factory=list)

    @property
    def proved(self) -> bool:
        """Whether the result is proved to be of least cost."""
        return self.cuts[-1].proved

    def area_mm2(self) -> torch.Tensor:
        """Return the area within each contour, (2, frames), as a polygon over the rays."""
        turn = math.sin(2 * math.pi / self.radius_mm.shape[1])
        return 0.5 * turn * (self.radius_mm * self.radius_mm.roll(-1, 1)).sum(1)


class _Levels(NamedTuple):
    """Brightness of blood, wall and surroundings."""

    blood: torch.Tensor
    wall: torch.Tensor
    outside: torch.Tensor


def vessel_wall(
    image: torch.Tensor,
    affine: Affine,
    *,
    center_mm: torch.Tensor | None = None,
    axis: int = 2,
    parameters: VesselWallParameters | None = None,
    solver: Solver = "auto",
) -> VesselWallResult:
    """Return lumen and external elastic membrane of every frame.

    Parameters
    ----------
    image : Tensor, shape (1, I, J, K)
        Log-compressed frames, brighter for stronger echoes, any unit.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm.
    center_mm : Tensor, shape (3,) or (frames, 3), optional
        The catheter in RAS+ mm; default the middle of the image.
    axis : int
        Axis of the image across the frames.
    parameters : VesselWallParameters, optional
    solver : str
        See `medpipe.graphcut.solve.min_cut`.

    Raises
    ------
    StepError
        If the image is not usable or the limits leave no room for a wall.
    """
    p = parameters or VesselWallParameters()
    rays = _rays(image, affine, center_mm, axis, p)
    frame_mm = float(torch.linalg.vector_norm(torch.as_tensor(affine[:3, axis])))
    values = rays.sample(image.to(torch.float32), affine)
    reach = torch.isfinite(values)
    values = torch.where(reach, values, values[reach].median())
    blur = p.blur_deg / 360 * p.angles
    smooth = gaussian_filter(values, [blur, 0.0, 0.0], wrap=(0,))
    edges = gradient_cost(smooth, p.node_mm, direction="dark_to_bright", sigma_mm=p.edge_mm)
    nodes = rays.positions_mm[0, 0]
    levels = _first_levels(smooth, nodes, p)
    shadow = _shadow(smooth, reach, levels)
    seen = torch.stack([~shadow, ~shadow])
    cuts: list[SurfaceResult] = []
    for _ in range(p.rounds):
        costs = _costs(smooth, edges, levels, p)
        if cuts:
            away = (nodes - cuts[-1].position_mm[..., None]).abs()
            costs = torch.where(away > SEARCH_MM, torch.inf, costs)
        costs = torch.where(reach, costs, torch.inf)
        cuts.append(_cut(costs, edges, rays, seen, frame_mm, p, solver))
        lumen, media = cuts[-1].position_mm
        levels = _measured(smooth, nodes, lumen, media, ~shadow & reach.all(-1), levels)
        # Calcium hides what is behind it, but not the lumen before it.
        lit = smooth > (levels.blood + levels.wall) / 2
        last_lit = (lit * nodes).amax(-1)
        seen = torch.stack([~shadow | (last_lit > lumen - 0.1), ~shadow])
    return VesselWallResult(cuts[-1].position_mm, rays, seen, cuts)


def _rays(
    image: torch.Tensor,
    affine: Affine,
    center_mm: torch.Tensor | None,
    axis: int,
    p: VesselWallParameters,
) -> Columns:
    if image.ndim != 4 or image.shape[0] != 1 or image.is_complex():
        raise StepError(
            "the frames have wrong axes", expected="one real channel", got=str(tuple(image.shape))
        )
    if not bool(torch.isfinite(image).all()) or float(image.amax()) <= float(image.amin()):
        raise StepError(
            "the frames hold NaN or nothing at all",
            expected="finite values that differ",
            got=f"{int((~torch.isfinite(image)).sum())} of {image.numel()} not finite",
        )
    shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    inplane = [n for n in range(3) if n != axis]
    step = torch.linalg.vector_norm(torch.as_tensor(affine[:3, :3]), dim=0)
    border = min((shape[n] - 1) / 2 * float(step[n]) for n in inplane)
    outer = p.outer_mm or border
    least = p.inner_mm + max(4 * p.edge_mm, 2 * p.min_wall_mm)
    if outer < least:
        raise StepError(
            "the rays are too short for a vessel wall",
            expected=f"{least:.3g} mm or more around the catheter",
            got=f"{outer:.3g} mm",
        )
    return polar_columns(
        shape, affine, inner_mm=p.inner_mm, outer_mm=outer, node_mm=p.node_mm,
        centers_mm=center_mm, angles=p.angles, axis=axis, device=image.device,
    )  # fmt: skip


def _first_levels(smooth: torch.Tensor, nodes: torch.Tensor, p: VesselWallParameters) -> _Levels:
    """Return first guesses: blood surrounds the catheter, the brightest is outside."""
    near = smooth[..., nodes < p.inner_mm + 0.4]
    blood = near.median()
    outside = smooth.median(-1).values.median()
    outside = torch.maximum(outside, blood + 0.25 * (smooth.amax() - blood))
    return _Levels(blood, (blood + outside) / 2, outside)


def _shadow(smooth: torch.Tensor, reach: torch.Tensor, levels: _Levels) -> torch.Tensor:
    """Return the rays whose outer third is no brighter than blood, bool (angles, frames)."""
    far = max(1, smooth.shape[-1] // 3)
    count = reach[..., -far:].sum(-1)
    level = (smooth * reach)[..., -far:].sum(-1) / count.clamp(min=1)
    dark = level < levels.blood + 0.35 * (level.median() - levels.blood).clamp(min=0)
    return dark & (count > 0)


def _costs(
    smooth: torch.Tensor, edges: torch.Tensor, levels: _Levels, p: VesselWallParameters
) -> torch.Tensor:
    """Return the costs of lumen and membrane (2, angles, frames, K)."""
    spread = (levels.outside - levels.blood) / 4
    fits = [
        p.region_weight * (0.5 * ((smooth - level) / spread) ** 2).clamp(max=4.0)
        for level in levels
    ]
    return torch.stack([edges + boundary_cost(fits[0], fits[1]), edges + boundary_cost(*fits[1:])])


def _measured(
    smooth: torch.Tensor,
    nodes: torch.Tensor,
    lumen: torch.Tensor,
    media: torch.Tensor,
    seen: torch.Tensor,
    before: _Levels,
) -> _Levels:
    """Return the median brightness of each tissue, where both contours are seen."""
    inner, outer = lumen[..., None], media[..., None]
    places = (
        nodes < inner - 0.1,
        (nodes > inner + 0.05) & (nodes < outer - 0.05),
        (nodes > outer + 0.05) & (nodes < outer + 0.4),
    )
    found = []
    for place, old in zip(places, before, strict=True):
        values = smooth[place & seen[..., None]]
        found.append(values.median() if values.numel() else old)
    blood, wall, outside = found
    if not bool((blood < wall) & (wall < outside)):
        return before  # the order of brightness is what the costs rest on
    return _Levels(blood, wall, outside)


def _cut(
    costs: torch.Tensor,
    edges: torch.Tensor,
    rays: Columns,
    seen: torch.Tensor,
    frame_mm: float,
    p: VesselWallParameters,
    solver: Solver,
) -> SurfaceResult:
    # The distance of two rays is that half-way along them.
    arc = float(rays.positions_mm.mean()) * 2 * math.pi / p.angles
    moved = parabola_displacement(edges, rays.positions_mm)
    costs = costs + (resample_costs(edges, moved) - edges)
    priors = [
        ConvexPrior("linear", p.stiffness / arc, max_jump_mm=max(p.slope * arc, 1.5 * p.node_mm)),
        ConvexPrior(
            "linear",
            p.frame_stiffness / frame_mm,
            max_jump_mm=max(p.frame_slope * frame_mm, 1.5 * p.node_mm),
        ),
    ]
    problem = SurfaceProblem(
        costs=costs,
        positions_mm=moved.positions_mm,
        priors=[priors, priors],
        separations=Separation(p.min_wall_mm, p.max_wall_mm),
        valid=seen,
        missing="bridge",
        wrap=(0,),
    )
    return optimal_surfaces(problem, step=COST_STEP, solver=solver)


SEARCH_MM = 0.6
"""How far from its first place a contour may move in later cuts."""

COST_STEP = 2e-5
"""Costs are multiples of this: so rounding is below a thousandth of the energy."""
