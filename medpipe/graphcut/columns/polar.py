"""Columns around a centre in every slice of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_problem
from medpipe.graphcut.columns.base import Columns
from medpipe.graphcut.columns.inverse import InverseMap, Location, bilinear, neighbours
from medpipe.graphcut.columns.radii import radial_nodes
from medpipe.graphcut.columns.sampling import to_voxels
from medpipe.types import Affine

__all__ = ["polar_columns"]


@dataclass(frozen=True)
class PolarMap(InverseMap):
    """Place of a point by its slice, its angle and its distance from the centre.

    `centers_mm` (Z, 3) lie in the slices, `frame` (2, 3) holds two orthogonal unit
    vectors of the slice plane; angles run from the first to the second.
    """

    affine: Affine
    axis: int
    angles: int
    centers_mm: torch.Tensor
    frame: torch.Tensor

    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns."""
        slices = len(self.centers_mm)
        z = to_voxels(points_mm, self.affine)[:, self.axis]
        planes, plane_weights, inside = neighbours(z, slices, False)
        center = (self.centers_mm[planes] * plane_weights[..., None]).sum(1)
        flat = (points_mm - center) @ self.frame.T
        turn = torch.atan2(flat[:, 1], flat[:, 0]) * (self.angles / (2 * math.pi))
        rays, ray_weights, _ = neighbours(turn, self.angles, True)
        columns, weights = bilinear(rays, ray_weights, planes, plane_weights, slices)
        radius = torch.linalg.vector_norm(flat, dim=-1)
        return Location(columns, weights, radius.masked_fill(~inside, torch.nan))


def polar_columns(
    shape: Sequence[int],
    affine: Affine,
    *,
    inner_mm: float,
    outer_mm: float,
    node_mm: float,
    centers_mm: torch.Tensor | None = None,
    angles: int = 256,
    axis: int = 2,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Columns:
    """Return rays around a centre in every slice, as for intravascular ultrasound.

    Parameters
    ----------
    shape, affine
        Grid of the image, voxel index to RAS+ mm.
    inner_mm, outer_mm, node_mm : float
        First radius, largest radius and spacing of the nodes.
    centers_mm : Tensor, shape (3,) or (Z, 3), optional
        Centre of all slices or of each, RAS+ mm, moved into the plane of its slice
        along `axis`. Default: the middle of the image.
    angles : int
        Number of rays, 3 or more.
    axis : int
        Axis of the image across the slices.
    dtype, device
        Of the points.

    Returns
    -------
    Columns
        Lattice (angles, Z) whose first axis wraps; positions are radii. Angles run
        from the first of the two in-plane axes towards the second, at right angles
        in mm also where voxels are no squares.
    """
    problem = affine_problem(affine)
    if problem:
        raise StepError(problem, expected="a finite, invertible affine in mm")
    if axis not in (0, 1, 2) or angles < 3:
        raise UsageError("the rays are wrong", expected="axis 0, 1 or 2 and 3 angles or more")
    radii = radial_nodes(inner_mm, outer_mm, node_mm, device)
    matrix = torch.from_numpy(np.asarray(affine, float)).to(device)
    frame = _plane(matrix, axis)
    centers = _centers(shape, matrix, affine, axis, centers_mm)
    turn = torch.arange(angles, dtype=torch.float64, device=device) * (2 * math.pi / angles)
    rays = torch.cos(turn)[:, None] * frame[0] + torch.sin(turn)[:, None] * frame[1]
    points = centers[:, None] + rays[:, None, None] * radii[:, None]
    inverse = PolarMap(np.asarray(affine, float), axis, angles, centers, frame)
    return Columns(points.to(dtype), radii.expand(points.shape[:-1]), wrap=(0,), inverse=inverse)


def _plane(matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """Return orthogonal unit vectors (2, 3) of the plane across `axis`."""
    a, b = (matrix[:3, n] for n in range(3) if n != axis)
    first = a / torch.linalg.vector_norm(a)
    second = b - (b @ first) * first  # a sheared affine has no right angle between them
    return torch.stack([first, second / torch.linalg.vector_norm(second)])


def _centers(
    shape: Sequence[int],
    matrix: torch.Tensor,
    affine: Affine,
    axis: int,
    centers_mm: torch.Tensor | None,
) -> torch.Tensor:
    """Return the centre of every slice, within its plane, (Z, 3) in mm."""
    slices = int(shape[axis])
    voxels = torch.tensor([(n - 1) / 2 for n in shape], dtype=torch.float64, device=matrix.device)
    voxels = voxels.expand(slices, 3)
    if centers_mm is not None:
        if tuple(centers_mm.shape) not in ((3,), (slices, 3)):
            raise StepError(
                "the centres do not fit the slices",
                expected=f"shape (3,) or ({slices}, 3)",
                got=str(tuple(centers_mm.shape)),
            )
        points = centers_mm.to(device=matrix.device, dtype=torch.float64)
        voxels = to_voxels(points, affine).expand(slices, 3)
    rank = torch.arange(slices, dtype=torch.float64, device=matrix.device)
    voxels = voxels.clone()
    voxels[:, axis] = rank
    return voxels @ matrix[:3, :3].T + matrix[:3, 3]
