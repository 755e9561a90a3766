"""Columns around a curve, such as the centre line of a vessel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import UsageError
from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.curve import resample_curve, rotation_minimising_frames
from medpipe.graphcut.columns.inverse import InverseMap, Location, bilinear, neighbours
from medpipe.graphcut.columns.radii import radial_nodes

__all__ = ["cylindrical_columns"]

DISTANCES = 16_000_000  # between points and stations at a time


@dataclass(frozen=True)
class CylinderMap(InverseMap):
    """Place of a point by the cross-section through it, its angle and its radius.

    `frames` (N, 3, 3) holds the tangent and the two vectors across at each station.
    """

    stations: torch.Tensor
    frames: torch.Tensor
    angles: int
    outer_mm: float
    step_mm: float
    closed: bool

    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns."""
        count = len(points_mm)
        columns = torch.zeros((count, 4), dtype=torch.int64, device=points_mm.device)
        weights = torch.zeros((count, 4), dtype=torch.float64, device=points_mm.device)
        weights[:, 0] = 1
        position = torch.full((count,), torch.nan, dtype=torch.float64, device=points_mm.device)
        reach = self.outer_mm + self.step_mm
        low, high = self.stations.amin(0) - reach, self.stations.amax(0) + reach
        near = torch.nonzero(((points_mm >= low) & (points_mm <= high)).all(-1))[:, 0]
        if len(near):
            place = self._locate_near(points_mm[near])
            columns[near], weights[near] = place.columns, place.weights
            position[near] = place.position_mm
        return Location(columns, weights, position)

    def _locate_near(self, points: torch.Tensor) -> Location:
        stations = len(self.stations)
        chunks = points.split(max(1, DISTANCES // stations))
        nearest = torch.cat([torch.cdist(p, self.stations).argmin(-1) for p in chunks])
        ahead = ((points - self.stations[nearest]) * self.frames[nearest, 0]).sum(-1) >= 0
        first = torch.where(ahead, nearest, nearest - 1)
        if not self.closed:
            first = first.clamp(0, stations - 2)
        first = torch.remainder(first, stations)
        fraction = self._fraction(points, first, torch.remainder(first + 1, stations))
        rows, row_weights, inside = neighbours(first + fraction, stations, self.closed)
        center = (self.stations[rows] * row_weights[..., None]).sum(1)
        frame = (self.frames[rows] * row_weights[..., None, None]).sum(1)
        frame = frame / torch.linalg.vector_norm(frame, dim=-1, keepdim=True)
        across = (frame @ (points - center)[..., None])[..., 0]
        turn = torch.atan2(across[:, 2], across[:, 1]) * (self.angles / (2 * math.pi))
        rays, ray_weights, _ = neighbours(turn, self.angles, True)
        columns, weights = bilinear(rays, ray_weights, rows, row_weights, stations)
        radius = torch.hypot(across[:, 1], across[:, 2])
        return Location(columns, weights, radius.masked_fill(~inside, torch.nan))

    def _fraction(
        self, points: torch.Tensor, first: torch.Tensor, second: torch.Tensor
    ) -> torch.Tensor:
        """Return where between two stations the cross-section through a point lies.

        With centre and tangent linear between the stations that is a root of a
        quadratic equation, written so that it is stable where the curve is straight.
        """
        step = self.stations[second] - self.stations[first]
        tangent = self.frames[first, 0]
        change = self.frames[second, 0] - tangent
        offset = points - self.stations[first]
        c = (offset * tangent).sum(-1)
        b = (offset * change).sum(-1) - (step * tangent).sum(-1)
        a = -(step * change).sum(-1)
        root = (b * b - 4 * a * c).clamp_min(0).sqrt()
        # b < 0 wherever the curve bends less than the point is away from it
        return (2 * c / (root - b).clamp_min(1e-12)).clamp(-1, 2)


def cylindrical_columns(
    centerline_mm: ArrayLike,
    *,
    inner_mm: float,
    outer_mm: float,
    node_mm: float,
    station_mm: float,
    angles: int = 64,
    closed: bool = False,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Columns:
    """Return rays around a curve, in its cross-sections.

    Parameters
    ----------
    centerline_mm : array_like, shape (P, 3)
        Points of the curve in order, RAS+ mm; a cubic spline goes through them.
    inner_mm, outer_mm, node_mm : float
        First radius, largest radius and spacing of the nodes.
    station_mm : float
        Distance of the cross-sections along the curve.
    angles : int
        Number of rays in each, 3 or more.
    closed : bool
        Whether the curve returns to its first point; the second axis then wraps.
    dtype, device
        Of the points.

    Returns
    -------
    Columns
        Lattice (angles, stations) whose first axis wraps; positions are radii. The
        frames do not twist around the curve, so a straight line on the wall has one
        angle.

    Raises
    ------
    StepError
        If the curve is unusable or bends so much that columns cross.
    """
    if angles < 3 or not (math.isfinite(station_mm) and station_mm > 0):
        raise UsageError("the rays are wrong", expected="3 angles or more, station_mm above 0")
    radii = radial_nodes(inner_mm, outer_mm, node_mm, device)
    stations, tangents, step = resample_curve(np.asarray(centerline_mm, float), station_mm, closed)
    first, second = rotation_minimising_frames(stations, tangents, closed)
    centers = torch.from_numpy(stations).to(device)
    frames = torch.from_numpy(np.stack([tangents, first, second], 1)).to(device)
    turn = torch.arange(angles, dtype=torch.float64, device=device)[:, None, None]
    turn = turn * (2 * math.pi / angles)
    rays = torch.cos(turn) * frames[:, 1] + torch.sin(turn) * frames[:, 2]
    points = centers[:, None] + rays[:, :, None] * radii[:, None]
    inverse = CylinderMap(centers, frames, angles, float(radii[-1]), step, closed)
    return Columns(
        points.to(dtype),
        radii.expand(points.shape[:-1]),
        wrap=(0, 1) if closed else (0,),
        inverse=inverse,
    ).check_uncrossed()
