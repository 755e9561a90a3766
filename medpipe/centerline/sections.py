"""Plane cross-sections of a tubular structure, perpendicular to its centerline.

From each point rays run out in the plane to where they first leave the structure: the
section is what can be seen from the centerline. That leaves out other tubes in the same
plane, and a tube that touches this one adds no more than what shows through the contact.
A ray that does not end within the window (at a junction it runs into the branch) or
that leaves the volume is open: its length is taken from the rays beside it, and where
more than a quarter are open there is no section to measure. Open too are the rays beside
an opening that meet the walls of the branch.

Along a ray a mask falls from 1 to 0 over about a voxel, interpolated linearly. A ray ends
where it is ½, but its length is the one that keeps the integral of the mask over the
plane: the line of ½ runs inside a narrow tube, by 1/(12 R) voxels for a radius of R
voxels, while the integral is right on the average there too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from medpipe.errors import StepError
from medpipe.geometry import spacing_mm, to_mm
from medpipe.types import Affine

__all__ = ["Sections", "area_radius", "cross_sections", "node_tangents"]

Array = NDArray[np.float64]

RAYS = 64
WINDOW_RADII = 2.5
"""Rays end at this multiple of the radius; a branch that leaves is longer, a vessel wall
is not."""
WINDOW_VOXELS = 3.0
"""And at least so many voxels beyond the radius."""
MAX_OPEN = 0.25
"""Share of open rays up to which a section is measured."""

_FLANK = 1.0
"""Growth of a ray relative to its length and the angle, from which it meets a wall at 45°."""

_STEP_VOXELS = 0.5
_MOST_STEPS = 192
_CHUNK_SAMPLES = 2_000_000
_BLOCK_VOXELS = 64
_EDGE = 0.5 + 1e-3


@dataclass(frozen=True, eq=False)
class Sections:
    """Cross-sections at P points, all in mm.

    Parameters
    ----------
    centers_mm : float64 array (P, 3)
        Where the rays start: the points, moved within the plane into the structure where
        they lie outside it.
    planes : float64 array (P, 2, 3)
        Two unit vectors that span each plane.
    rays_mm : float64 array (P, RAYS)
        Length of the rays, at even angles from the first vector to the second; NaN where
        there is no section.
    open_share : float64 array (P,)
        Share of the rays that left the window or the volume and were bridged; 1 where
        the point is outside the structure.
    """

    centers_mm: Array
    planes: Array
    rays_mm: Array
    open_share: Array

    @property
    def area_mm2(self) -> Array:
        """Area of each section, (P,); NaN where it cannot be measured."""
        return (self.rays_mm**2).sum(axis=1) * (math.pi / RAYS)

    @property
    def equivalent_radius_mm(self) -> Array:
        """Radius of the circle of the same area, (P,)."""
        return np.sqrt(self.area_mm2 / math.pi)

    @property
    def diameters_mm(self) -> Array:
        """Least and greatest width between parallel lines (Feret), (P, 2)."""
        x, y = self._outline()
        turn = np.arange(RAYS // 2) * (2 * math.pi / RAYS)
        across = x[:, :, None] * np.cos(turn) + y[:, :, None] * np.sin(turn)
        width = across.max(axis=1) - across.min(axis=1)
        return np.stack([width.min(axis=1), width.max(axis=1)], axis=1)

    def contours_mm(self) -> Array:
        """Return the outline of each section in space, (P, RAYS, 3)."""
        flat = np.stack(self._outline(), axis=-1)
        return self.centers_mm[:, None] + flat @ self.planes

    def _outline(self) -> tuple[Array, Array]:
        turn = np.arange(RAYS) * (2 * math.pi / RAYS)
        return self.rays_mm * np.cos(turn), self.rays_mm * np.sin(turn)


def cross_sections(
    mask: torch.Tensor,
    affine: ArrayLike,
    points_mm: ArrayLike,
    tangents: ArrayLike,
    radius_mm: ArrayLike,
    *,
    label: int | None = None,
) -> Sections:
    """Return the sections of a structure in the planes through points.

    Parameters
    ----------
    mask : Tensor (I, J, K), any device
        Boolean mask; with `label` a map of integers; floating point values are a signed
        distance to the border, positive inside, in any unit.
    affine : array (4, 4)
        Voxel index to RAS+ mm.
    points_mm, tangents : array (P, 3)
        Points on the centerline and its directions there, of any length.
    radius_mm : array (P,)
        Rough radius; the rays go 2.5 times as far, and 3 voxels beyond it at least.
    label : int, optional
        Value of the structure in a label map.

    Returns
    -------
    Sections

    Raises
    ------
    StepError
        If the mask is not three-dimensional or the arrays do not fit together.
    """
    points, along = np.asarray(points_mm, np.float64), np.asarray(tangents, np.float64)
    radius = np.asarray(radius_mm, np.float64)
    if mask.ndim != 3:
        raise StepError("sections need one volume", expected="a mask (I, J, K)")
    if points.ndim != 2 or points.shape[1:] != (3,) or along.shape != points.shape:
        raise StepError("the points of the sections are wrong", expected="points (P, 3)")
    if radius.shape != points.shape[:1]:
        raise StepError("the radii of the sections are wrong", expected="one for each point")
    field = _Field(mask, np.asarray(affine, np.float64), label)
    planes = _planes(along)
    radius = np.clip(
        np.nan_to_num(radius, nan=0.0), 0.0, np.linalg.norm(field.spacing * mask.shape)
    )
    window = np.maximum(WINDOW_RADII * radius, radius + WINDOW_VOXELS * field.spacing.max())
    steps = np.ceil(window / (_STEP_VOXELS * field.spacing.min()) / 8) * 8
    steps = np.clip(steps, 8, _MOST_STEPS).astype(int)
    out = Sections(
        centers_mm=points.copy(),
        planes=planes,
        rays_mm=np.full((len(points), RAYS), np.nan),
        open_share=np.ones(len(points)),
    )
    usable = np.isfinite(points).all(axis=1) & np.isfinite(planes).all(axis=(1, 2))
    for chunk in _chunks(field, points, np.where(usable, steps, 0)):
        _measure(field, out, chunk, window[chunk], int(steps[chunk[0]]))
    return out


def node_tangents(
    positions_mm: ArrayLike, parents: ArrayLike, radius_mm: ArrayLike, hops: int = 3
) -> Array:
    """Return the direction of a tree at each node, (N, 3), away from the root.

    From the node `hops` above to the node `hops` below, along the child of the largest
    radius at junctions; NaN for a node alone.
    """
    points, parent = np.asarray(positions_mm, np.float64), np.asarray(parents)
    own = np.arange(len(points))
    above = np.where(parent < 0, own, parent)
    below = own.copy()
    order = np.argsort(np.asarray(radius_mm, np.float64), kind="stable")
    order = order[parent[order] >= 0]
    below[parent[order]] = order  # of repeated entries the last one, the largest, stays
    first, last = own, own
    for _ in range(hops):
        first, last = above[first], below[last]
    step = points[last] - points[first]
    size = np.linalg.norm(step, axis=1, keepdims=True)
    return np.divide(step, size, out=np.full_like(step, np.nan), where=size > 0)


def area_radius(
    labels: torch.Tensor,
    affine: ArrayLike,
    positions_mm: ArrayLike,
    parents: ArrayLike,
    radius_mm: ArrayLike,
    structures: ArrayLike,
) -> Array:
    """Return √(area / π) of the section at each node of a tree, NaN where there is none.

    Parameters
    ----------
    labels : integer Tensor (I, J, K), any device
    affine : array (4, 4)
    positions_mm, parents, radius_mm, structures : arrays (N, 3), (N,), (N,), (N,)
        Of the nodes, as in `CenterlineTree`.

    Returns
    -------
    float64 array (N,)
    """
    points, structure = np.asarray(positions_mm, np.float64), np.asarray(structures)
    radius = np.asarray(radius_mm, np.float64)
    along = node_tangents(points, parents, radius)
    out = np.full(len(points), np.nan)
    for value in np.unique(structure).tolist():
        rows = np.flatnonzero(structure == value)
        found = cross_sections(
            labels, affine, points[rows], along[rows], radius[rows], label=int(value)
        )
        out[rows] = found.equivalent_radius_mm
    return out


class _Field:
    """A volume whose structure is where the interpolated value is above a level."""

    def __init__(self, volume: torch.Tensor, affine: Affine, label: int | None) -> None:
        self.volume, self.label = volume, label
        self.level = 0.0 if volume.is_floating_point() and label is None else 0.5
        self.spacing = spacing_mm(affine)
        self.to_index = np.linalg.inv(affine)
        self.shape = np.array(volume.shape)

    def index(self, points_mm: Array) -> Array:
        """Return voxel coordinates of positions."""
        return to_mm(self.to_index, points_mm)

    def along(self, start: Array, step: Array, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values above the level, (P, RAYS, S + 1), and whether they lie in the volume.

        At ``start + n step`` for n from 0 to S; `start` (P, 3) and `step` (P, RAYS, 3) in
        voxels.
        """
        reach = np.abs(step).max(axis=1) * steps
        low = np.floor((start - reach).min(axis=0)).astype(int) - 1
        high = np.ceil((start + reach).max(axis=0)).astype(int) + 2
        low = np.clip(low, 0, self.shape - 1)
        high = np.clip(high, low + 1, self.shape)
        part = self.volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        if self.label is not None:
            part = part == self.label
        scale = 2 / np.maximum(np.array(part.shape) - 1, 1)
        count = torch.arange(steps + 1, dtype=torch.float32, device=self.volume.device)[:, None]
        grid = self._line((start - low) * scale - 1, step * scale, count).flip(-1)
        if (start - reach >= -_EDGE).all() and (start + reach <= self.shape - 1 + _EDGE).all():
            inside = torch.ones(grid.shape[:-1], dtype=torch.bool, device=grid.device)
        else:
            at = self._line(start, step, count)
            top = torch.tensor(self.shape - 1 + _EDGE, dtype=torch.float32, device=at.device)
            inside = ((at >= -_EDGE) & (at <= top)).all(-1)
        values = functional.grid_sample(
            part[None, None].float(), grid[None], padding_mode="border", align_corners=True
        )
        return values[0, 0] - self.level, inside

    def _line(self, start: Array, step: Array, count: torch.Tensor) -> torch.Tensor:
        """Return ``start + n step`` for each n, (P, RAYS, S + 1, 3)."""
        first = torch.from_numpy(start[:, None, None].astype(np.float32)).to(count.device)
        each = torch.from_numpy(step[:, :, None].astype(np.float32)).to(count.device)
        return torch.addcmul(first, each, count)


def _planes(along: Array) -> Array:
    """Return two unit vectors (P, 2, 3) perpendicular to each direction; NaN without one."""
    size = np.linalg.norm(along, axis=1, keepdims=True)
    unit = np.divide(along, size, out=np.full_like(along, np.nan), where=size > 0)
    axis = np.eye(3)[np.abs(np.nan_to_num(unit)).argmin(axis=1)]
    first = np.cross(unit, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(unit, first)], axis=1)


def _chunks(field: _Field, points: Array, steps: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return rows of points of the same number of steps that lie close together."""
    block = np.floor(np.nan_to_num(field.index(points)) / _BLOCK_VOXELS)
    order = np.lexsort([*block.T, steps])
    order = order[steps[order] > 0]
    out: list[NDArray[np.int64]] = []
    for same in np.split(order, np.flatnonzero(np.diff(steps[order])) + 1):
        if same.size:
            most = max(1, _CHUNK_SAMPLES // (RAYS * int(steps[same[0]])))
            out += np.array_split(same, -(-same.size // most))
    return out


def _measure(
    field: _Field, out: Sections, rows: NDArray[np.int64], window: Array, steps: int
) -> None:
    """Write rays and the share of open ones for some points."""
    values, inside = _sample(field, out, rows, window, steps)
    lost = _host(values[:, 0, 0] <= 0)
    if lost.any():
        astray = rows[lost]
        out.centers_mm[astray] += _way_in(values, window, out.planes[rows])[lost]
        values, inside = _sample(field, out, rows, window, steps)
    reach, closed = _lengths(values, inside, soft=field.level > 0)
    closed = _without_flanks(reach, closed)
    open_share = 1 - closed.double().mean(-1)
    open_share[(values[:, 0, 0] <= 0) | ~inside[:, 0, 0]] = 1.0
    bridged = _bridge(reach, closed)
    bridged[open_share > MAX_OPEN] = torch.nan
    out.rays_mm[rows] = _host(bridged) * (window / steps)[:, None]
    out.open_share[rows] = _host(open_share)


def _sample(
    field: _Field, out: Sections, rows: NDArray[np.int64], window: Array, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values along the rays (P, RAYS, S + 1), the first at the center, as `along`."""
    turn = np.arange(RAYS) * (2 * math.pi / RAYS)
    rays = np.stack([np.cos(turn), np.sin(turn)], axis=1) @ out.planes[rows]
    rays = rays @ field.to_index[:3, :3].T * (window / steps)[:, None, None]
    return field.along(field.index(out.centers_mm[rows]), rays, steps)


def _way_in(values: torch.Tensor, window: Array, planes: Array) -> Array:
    """Return the step (P, 3) from a point outside to the middle of what is nearest in its plane.

    Along the ray that enters the structure first, half way to where it leaves again; 0
    where nothing is nearer than a half of the window.
    """
    steps = values.shape[-1] - 1
    on = values > 0
    ahead = on.to(torch.uint8).cummax(-1).values == 0
    enters = ahead.sum(-1)  # S + 1 where the ray meets nothing
    run = (ahead | on).to(torch.uint8).cumprod(-1).sum(-1) - enters
    ray = (enters * (steps + 2) - run).argmin(-1)[:, None]  # the longest way through of equals
    first, ray = enters.gather(-1, ray)[:, 0], ray[:, 0]
    middle = first + (run.gather(-1, ray[:, None])[:, 0] - 1) / 2
    middle = torch.where(first <= steps / 2, middle, 0.0)
    angle, reach = _host(ray) * (2 * math.pi / RAYS), _host(middle) * window / steps
    flat = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
    return np.einsum("pi,pij->pj", flat, planes)


def _lengths(
    values: torch.Tensor, inside: torch.Tensor, *, soft: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lengths of the rays in steps, (P, RAYS), and which of them end.

    With `soft` a length gives the ray's share ½ length² of the integral of the values,
    from 0 to 1 again, down to where they stop falling; else it ends where they are 0.
    """
    steps = values.shape[-1] - 1
    place = torch.arange(steps + 1, device=values.device)
    on = (values > 0) & inside
    at = on.to(torch.uint8).cumprod(-1).sum(-1)[..., None]  # first outside, S + 1 if none
    closed = (at <= steps)[..., 0]
    at = at.clamp(1, steps)
    closed &= inside.gather(-1, at)[..., 0]
    if soft:
        falls = values.diff(dim=-1) <= 0
        tail = (falls | (place[1:] < at)).to(torch.uint8).cumprod(-1)
        integral = ((values[..., 1:] + 0.5) * tail * place[1:]).sum(-1)
        reach = (2 * integral).sqrt()
    else:
        before, after = values.gather(-1, at - 1)[..., 0], values.gather(-1, at)[..., 0]
        reach = at[..., 0] - 1 + before / (before - after).clamp(min=1e-6)
    return torch.where(closed, reach, 0.0).double(), closed


def _without_flanks(reach: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
    """Return the closed rays (P, RAYS) but those on the walls of an opening.

    Beside the rays that run into a branch are rays that meet its wall: they grow towards
    the opening by more than they would on a wall at 45°.
    """
    steep = 1 + _FLANK * 2 * math.pi / RAYS
    falls = {side: reach > steep * reach.roll(-side, 1) for side in (1, -1)}
    for _ in range(RAYS // 8):
        for side, fall in falls.items():
            closed = closed & ~(fall & ~closed.roll(side, 1) & closed.roll(-side, 1))
    return closed


def _bridge(reach: torch.Tensor, closed: torch.Tensor) -> torch.Tensor:
    """Return (P, RAYS) with open rays interpolated around the circle between closed ones."""
    n = reach.shape[1]
    place = torch.arange(3 * n, device=reach.device)
    known = closed.repeat(1, 3)
    before = torch.where(known, place, 0).cummax(1).values[:, n : 2 * n]
    after = torch.where(known, place, 3 * n - 1).flip(1).cummin(1).values.flip(1)[:, n : 2 * n]
    share = (place[n : 2 * n] - before) / (after - before).clamp(min=1)
    return torch.lerp(reach.gather(1, before % n), reach.gather(1, after % n), share.double())


def _host(values: torch.Tensor) -> Array:
    """Return a few numbers for each point on the host, where trees are."""
    return values.cpu().numpy()
