"""Nine boundaries of the retina in OCT by minimum cuts.

Three exact cuts, from coarse to fine:

1. ILM, the ellipsoid zone and Bruch's membrane on block means, only to know where
   the retina is;
2. the five boundaries of strong contrast on columns flattened to Bruch's membrane;
3. the four between the ILM and the ellipsoid zone, from edges and from the
   brightness of the layers relative to the nerve fibre and outer nuclear layers
   beside them.

Within a cut all surfaces are found together and cannot cross; the surfaces of the
third stay between two of the second. Lengths are physical, so the parameters do not
depend on the device. Columns in the shadow of a vessel count less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from medpipe.errors import StepError
from medpipe.geometry import spacing_mm
from medpipe.graphcut.columns import Columns, flat_columns, flattened_columns
from medpipe.graphcut.convex import ConvexPrior
from medpipe.graphcut.displacement import parabola_displacement, resample_costs
from medpipe.graphcut.retina_model import (
    BOUNDARIES,
    DOWN,
    INNER,
    OUTER,
    RELATIVE_BRIGHTNESS,
    RETINA_UM,
    SHARES,
    UP,
    Boundary,
    RetinaParameters,
    Scan,
)
from medpipe.graphcut.solve import Solver
from medpipe.graphcut.surface_costs import (
    Direction,
    boundary_cost,
    gaussian_filter,
    gradient_cost,
)
from medpipe.graphcut.surfaces import Separation, SurfaceProblem, SurfaceResult, optimal_surfaces
from medpipe.types import Affine

__all__ = ["BOUNDARIES", "Boundary", "RetinaParameters", "RetinaResult", "retina_surfaces"]

COST_STEP = 1e-4
"""Costs are multiples of this: rounding stays below a hundredth of the energy."""

COARSE_COST_STEP = 1e-5
"""The same on block means, whose energy is less."""


@dataclass(frozen=True)
class RetinaResult:
    """Boundaries of one scan.

    Parameters
    ----------
    names : tuple of str
        The boundaries from the vitreous to the choroid.
    depth_mm : Tensor, float64 (9, X, Y)
        Depth of each from the centre of the first sample of the column.
    columns : Columns
        Columns through every A-scan whose positions are these depths.
    confidence : Tensor (X, Y)
        1 where the light is undisturbed, near 0 in the shadow of a vessel.
    cuts : list of SurfaceResult
        The results of the cuts, with energies and proofs.
    """

    names: tuple[str, ...]
    depth_mm: torch.Tensor
    columns: Columns
    confidence: torch.Tensor
    cuts: list[SurfaceResult] = field(default_factory=list)

    @property
    def proved(self) -> bool:
        """Whether every cut is proved to be a minimum."""
        return all(c.proved for c in self.cuts)


def retina_surfaces(
    image: torch.Tensor,
    affine: Affine,
    *,
    axis: int = 1,
    reverse: bool = False,
    wrap: tuple[int, ...] = (),
    parameters: RetinaParameters | None = None,
    solver: Solver = "auto",
) -> RetinaResult:
    """Return nine boundaries of the retina.

    Parameters
    ----------
    image : Tensor, shape (1, I, J, K)
        Intensities, not negative.
    affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm; its spacings are used.
    axis : int
        Axis of the image along the A-scans (depth). The two others, in their order,
        are the axes X and Y of the result.
    reverse : bool
        Whether depth grows from the last voxel to the first.
    wrap : tuple of int
        (0,) for a ring scan, whose axis X closes on itself.
    parameters : RetinaParameters, optional
    solver : str
        See `medpipe.graphcut.solve.min_cut`.

    Raises
    ------
    StepError
        If the image is not usable, or too shallow to hold a retina.
    """
    chosen = parameters or RetinaParameters()
    _check(image)
    shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    columns = flat_columns(
        shape, affine, axis=axis, reverse=reverse, wrap=wrap, dtype=torch.float32,
        device=image.device,
    )  # fmt: skip
    values = image[0].movedim(axis, -1).to(torch.float32)
    values = values.flip(-1) if reverse else values
    size = [float(v) for v in spacing_mm(affine)]
    a, b = (n for n in range(3) if n != axis)
    scan = Scan(values, (size[a], size[b], size[axis]), wrap, chosen, solver)
    rough, first = _locate(scan)
    reference = gaussian_filter(rough[2], scan.lateral(chosen.reference_um), wrap=wrap)
    before = float((reference - rough[0]).max()) + 0.04
    flat = flattened_columns(
        shape, affine, reference, before_mm=before, beyond_mm=0.08, axis=axis, reverse=reverse,
        wrap=wrap, dtype=torch.float32,
    )  # fmt: skip
    band = flat.sample(image.to(torch.float32), affine, outside=0.0)
    nodes = flat.positions_mm[0, 0]
    outer, second = _outer(scan, band, nodes, rough - reference)
    confidence = _confidence(scan, band, nodes, outer)
    inner, cuts = _inner(scan, band, nodes, outer, confidence)
    depth = torch.cat([outer[:1], inner, outer[1:]]) + reference
    names = tuple(b.name for b in BOUNDARIES)
    return RetinaResult(names, depth, columns, confidence, [first, second, *cuts])


def _check(image: torch.Tensor) -> None:
    if image.ndim != 4 or image.shape[0] != 1 or image.is_complex():
        raise StepError(
            "the scan has wrong axes",
            expected="one real channel",
            got=f"shape {tuple(image.shape)}",
        )
    if not bool(torch.isfinite(image).all()):
        raise StepError("the scan holds NaN or infinite values")
    if bool((image < 0).any()):
        raise StepError(
            "the scan holds negative intensities", hint="pass linear or display intensities"
        )
    if not bool((image > 0).any()):
        raise StepError("the scan is empty", expected="intensities above 0")


def _locate(scan: Scan) -> tuple[torch.Tensor, SurfaceResult]:
    """Return rough depths (3, X, Y) of ILM, ellipsoid zone and Bruch's membrane in mm."""
    p = scan.parameters
    sizes = (p.coarse_lateral_um, p.coarse_lateral_um, p.coarse_depth_um)
    blocks = [
        min(max(1, round(w / 1000 / s)), n)
        for w, s, n in zip(sizes, scan.step, scan.values.shape, strict=True)
    ]
    means = torch.nn.functional.avg_pool3d(scan.values[None, None], blocks)[0, 0]
    step = tuple(s * n for s, n in zip(scan.step, blocks, strict=True))
    shown = means**p.exponent
    shown = gaussian_filter(
        shown, [1.0 if n > 1 else 0.0 for n in means.shape[:2]] + [0.0], wrap=scan.wrap
    )
    rank = torch.arange(means.shape[2], dtype=torch.float64, device=means.device)
    nodes = (rank + 0.5) * step[2] - scan.step[2] / 2
    costs = _edges(shown, step[2], (UP, UP, DOWN), 2 * p.edge_um)
    gaps = (RETINA_UM, _distance(5, 8))
    chosen = [BOUNDARIES[i] for i in (0, 5, 8)]
    found = _cut(scan, costs, nodes, gaps, chosen, step, 2 * p.slope, cost_step=COARSE_COST_STEP)
    depth = found.position_mm
    for axis in (0, 1):
        depth = _spread(depth, axis, blocks[axis], scan.values.shape[axis], axis in scan.wrap)
    return depth, found


def _outer(
    scan: Scan, band: torch.Tensor, nodes: torch.Tensor, rough: torch.Tensor
) -> tuple[torch.Tensor, SurfaceResult]:
    """Return the five boundaries of strong contrast, (5, X, Y) in mm, and their cut.

    They are sought near the `rough` ones (3, X, Y) only.
    """
    p = scan.parameters
    width = scan.lateral(p.outer_lateral_um)
    shown = gaussian_filter(band**p.exponent, [*width, 0.0], wrap=scan.wrap)
    chosen = [BOUNDARIES[i] for i in OUTER]
    costs = _edges(shown, scan.step[2], [b.edge for b in chosen], p.edge_um)
    gaps = (RETINA_UM, *((b.min_um, b.max_um) for b in chosen[1:-1]))
    rows = torch.tensor([0, 1, 1, 2, 2], device=rough.device)
    away = (nodes - rough[rows][..., None]).abs()
    limited = torch.where(away > SEARCH_MM, torch.inf, costs)
    found = _cut(scan, limited, nodes, gaps, chosen, scan.step, p.slope, costs)
    return found.position_mm, found


def _confidence(
    scan: Scan, band: torch.Tensor, nodes: torch.Tensor, outer: torch.Tensor
) -> torch.Tensor:
    """Return how undisturbed the light of each column is, (X, Y) from 0.02 to 1.

    The light that returns from the bright outer bands is compared with its median
    within 0.45 mm: half of it and less is the shadow of a vessel.
    """
    light = band ** (4 * scan.parameters.exponent)
    level = _mean_between(light, nodes, outer[1], outer[4] + 0.02)
    reach = max(1, round(0.45 / scan.step[0]))
    size = level.shape[0]
    around = torch.arange(-reach, reach + 1)[:, None] + torch.arange(size)
    around = around % size if 0 in scan.wrap else around.clamp(0, size - 1)
    usual = level[around.to(level.device)].median(0).values
    ratio = level / usual.clamp(min=torch.finfo(level.dtype).tiny)
    return ((ratio - 0.3) / 0.5).clamp(0.02, 1.0)


def _inner(
    scan: Scan,
    band: torch.Tensor,
    nodes: torch.Tensor,
    outer: torch.Tensor,
    confidence: torch.Tensor,
) -> tuple[torch.Tensor, list[SurfaceResult]]:
    """Return the four boundaries between the ILM and the ellipsoid zone, and their cuts."""
    p = scan.parameters
    relative = _relative_brightness(scan, band, nodes, outer, confidence)
    chosen = [BOUNDARIES[i] for i in INNER]
    edges = _edges(relative, scan.step[2], [b.edge for b in chosen], p.edge_um * 1.4)
    ilm, ez = outer[0], outer[1]
    low, high = ilm + BOUNDARIES[0].min_um / 1000, ez - BOUNDARIES[4].min_um / 1000
    away = torch.maximum(low[..., None] - nodes, nodes - high[..., None]).clamp(min=0)
    gaps = [(b.min_um, b.max_um) for b in chosen[:-1]]
    brightness = list(RELATIVE_BRIGHTNESS)
    cuts: list[SurfaceResult] = []
    depth = ilm[None]
    smooth = [gaussian_filter(d, scan.lateral(p.edge_um * 10), wrap=scan.wrap) for d in (ilm, ez)]
    share = torch.tensor(SHARES, dtype=ilm.dtype, device=ilm.device)
    for _ in range(p.rounds):
        fits = [_misfit(relative, m, p) for m in brightness]
        regions = [boundary_cost(a, b) for a, b in pairwise(fits)]
        costs = (edges + torch.stack(regions)) * confidence[..., None]
        costs = torch.where(away > SEARCH_MM / 2, torch.inf, costs + OUTSIDE_PER_MM * away)
        guess = smooth[0] + share[:, None, None] * (smooth[1] - smooth[0])
        cuts.append(_cut(scan, costs, nodes, gaps, chosen, scan.step, p.slope, edges, guess))
        depth = torch.minimum(torch.maximum(cuts[-1].position_mm, ilm), ez)
        share = ((depth - ilm) / (ez - ilm)).flatten(1).median(1).values
        brightness = _measured(relative, nodes, torch.cat([ilm[None], depth, ez[None]]), brightness)
    return depth, cuts


SEARCH_MM = 0.07
"""How far from its rough place a boundary may be found."""

OUTSIDE_PER_MM = 1e4
"""Cost of an inner boundary 1 mm outside the place left by the outer ones."""


def _relative_brightness(
    scan: Scan,
    band: torch.Tensor,
    nodes: torch.Tensor,
    outer: torch.Tensor,
    confidence: torch.Tensor,
) -> torch.Tensor:
    """Return the brightness from 0 (outer nuclear layer) to 1 (nerve fibres), (X, Y, K).

    Columns in shadow lend no light to their neighbours.
    """
    p = scan.parameters
    weight = confidence[..., None]
    width = [*scan.lateral(p.inner_lateral_um), 0.0]

    def average(values: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
        total = gaussian_filter(values * weight, sigma, wrap=scan.wrap)
        return total / gaussian_filter(weight, sigma, wrap=scan.wrap)

    ilm, ez = (gaussian_filter(d, scan.lateral(p.edge_um * 10), wrap=scan.wrap) for d in outer[:2])
    # The layers run between the ILM and the ellipsoid zone: average along them.
    height = (ez - ilm).clamp(min=0.01)[..., None]
    shares = _grid_like(nodes, -0.5, 1.5)
    straight = _interpolate(band**p.exponent, nodes, ilm[..., None] + shares * height)
    shown = _interpolate(average(straight, width), shares, (nodes - ilm[..., None]) / height)
    ilm, ez = outer[0], outer[1]
    wide = [*scan.lateral(300.0), 0.0]
    bright = average(_mean_between(shown, nodes, ilm + 0.008, ilm + 0.024)[..., None], wide)
    dark = average(_mean_between(shown, nodes, ez - 0.040, ez - 0.012)[..., None], wide)
    return (shown - dark) / (bright - dark).clamp(min=1e-3)


def _grid_like(nodes: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Return as many equally spaced values, twice over, as there are nodes."""
    size = 2 * nodes.numel()
    return torch.linspace(low, high, size, dtype=nodes.dtype, device=nodes.device)


def _interpolate(values: torch.Tensor, nodes: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Return values (X, Y, K), known at equally spaced nodes (K,), at places (X, Y, Q)."""
    place = ((at - nodes[0]) / (nodes[1] - nodes[0])).clamp(0, nodes.numel() - 1)
    low = place.floor().clamp(max=nodes.numel() - 2)
    part = (place - low).to(values.dtype)
    first = low.to(torch.int64)
    a, b = values.gather(-1, first), values.gather(-1, first + 1)
    return a + part * (b - a)


def _misfit(
    relative: torch.Tensor, mean: float | torch.Tensor, p: RetinaParameters
) -> torch.Tensor:
    """Return the capped misfit of each node to a layer, without the constant."""
    worst = 0.5 * ((relative - mean) / p.brightness_sd) ** 2
    return p.region_weight * worst.clamp(max=4.0)


def _measured(
    relative: torch.Tensor, nodes: torch.Tensor, tops: torch.Tensor, before: list[Any]
) -> list[Any]:
    """Return the median brightness between consecutive boundaries, as found so far."""
    out = []
    for above, below, old in zip(tops[:-1], tops[1:], before, strict=True):
        inside = (nodes > above[..., None]) & (nodes <= below[..., None])
        values = relative[inside]
        out.append(values.median() if values.numel() else old)
    return out


def _edges(
    shown: torch.Tensor, step_mm: float, directions: Sequence[Direction], width_um: float
) -> torch.Tensor:
    """Return gradient costs (S, X, Y, K)."""
    made = {
        d: gradient_cost(shown, step_mm, direction=d, sigma_mm=width_um / 1000)
        for d in set(directions)
    }
    return torch.stack([made[d] for d in directions])


def _distance(first: int, last: int) -> tuple[float, float]:
    """Return the limits in µm between two boundaries of the table."""
    rows = BOUNDARIES[first:last]
    return sum(b.min_um for b in rows), sum(b.max_um for b in rows)


def _mean_between(
    values: torch.Tensor, nodes: torch.Tensor, top: torch.Tensor, bottom: torch.Tensor
) -> torch.Tensor:
    """Return the mean of each column between two depths, (X, Y)."""
    inside = (nodes >= top[..., None]) & (nodes < bottom[..., None])
    return (values * inside).sum(-1) / inside.sum(-1).clamp(min=1)


def _spread(depth: torch.Tensor, axis: int, block: int, size: int, wrap: bool) -> torch.Tensor:
    """Return block values (S, X, Y) at every column along an axis, linear between centres."""
    count = depth.shape[axis + 1]
    place = (torch.arange(size, dtype=torch.float64, device=depth.device) + 0.5) / block - 0.5
    low = place.floor()
    part = (place - low).to(depth.dtype)
    pair = [low.to(torch.int64) + n for n in (0, 1)]
    pair = [n % count if wrap else n.clamp(0, count - 1) for n in pair]
    a, b = (depth.index_select(axis + 1, n) for n in pair)
    part = part[:, None] if axis == 0 else part
    return a + part * (b - a)


def _cut(
    scan: Scan,
    costs: torch.Tensor,
    nodes: torch.Tensor,
    gaps: Sequence[tuple[float, float]],
    boundaries: Sequence[Boundary],
    step: Sequence[float],
    slope: float,
    edges: torch.Tensor | None = None,
    guess: torch.Tensor | None = None,
    cost_step: float = COST_STEP,
) -> SurfaceResult:
    """Return the surfaces of least cost (S, X, Y, K) at node positions (K,) in mm.

    With `edges` the nodes of each surface are first moved to the vertices of parabolas
    through them. A `guess` (S, X, Y) gives the slopes that cost nothing.
    """
    positions = nodes.expand(costs.shape)
    if edges is not None and scan.parameters.subvoxel:
        moved = parabola_displacement(edges, positions)
        positions = moved.positions_mm
        costs = costs + (resample_costs(edges, moved) - edges)
    problem = SurfaceProblem(
        costs=costs,
        positions_mm=positions,
        priors=[
            [
                ConvexPrior(
                    "linear",
                    b.stiffness / step[axis],
                    max_jump_mm=slope * step[axis],
                    expected_mm=0.0 if guess is None else torch.roll(guess[i], -1, axis) - guess[i],
                )
                for axis in (0, 1)
            ]
            for i, b in enumerate(boundaries)
        ],
        separations=[
            Separation(low / 1000, high / 1000, _usual(b, scan.parameters))
            for (low, high), b in zip(gaps, boundaries[:-1], strict=True)
        ],
        wrap=scan.wrap,
    )
    return optimal_surfaces(problem, step=cost_step, solver=scan.solver)


def _usual(boundary: Boundary, p: RetinaParameters) -> ConvexPrior | None:
    """Return the soft limits of the layer below a boundary, if it has any."""
    if boundary.usual_um is None:
        return None
    low, high = (v / 1000 for v in boundary.usual_um)
    return ConvexPrior(
        "dead_zone",
        p.thickness_weight,
        width_mm=(high - low) / 2,
        expected_mm=(low + high) / 2,
    )
