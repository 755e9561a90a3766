"""Curved planar reformation: an image along a curve, as if the curve were straight.

Planes perpendicular to the curve are stacked along a third axis. Their axes are carried
along without turning about the curve, so that what runs straight beside a vessel runs
straight in the result (Kanitsar et al. 2002, doi 10.1109/VISUAL.2002.1183754, call it
straightened CPR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from medpipe.centerline.curves import SpaceCurve, bishop_frames
from medpipe.errors import StepError, UsageError
from medpipe.geometry import to_mm
from medpipe.steps._base import check_choice
from medpipe.steps._sampling import sample_at
from medpipe.types import Affine

__all__ = ["StraightenedVolume", "straighten"]

Array = NDArray[np.float64]
Mode = Literal["linear", "nearest", "cubic"]
Projection = Literal["max", "mean", "min"]

_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True, eq=False)
class StraightenedVolume:
    """An image along a curve.

    Parameters
    ----------
    data : Tensor (C, W, W, L)
        The curve runs through the middle of the first two axes.
    affine : float64 array (4, 4)
        Voxel index to curve coordinates in mm: along the first normal, along the second,
        along the curve from its start. Not the coordinates of the patient.
    points_mm : float64 array (L, 3)
        Where the planes cut the curve, RAS+ mm.
    frames : float64 array (L, 3, 3)
        Rows: tangent, first and second normal there.
    bend_radius_mm : float64 array (L,)
        Radius of the bend. Farther than this on the inner side planes cross and the
        same tissue shows twice.
    """

    data: torch.Tensor
    affine: Affine
    points_mm: Array
    frames: Array
    bend_radius_mm: Array

    def to_ras_mm(self, curve_mm: ArrayLike) -> Array:
        """Return the RAS+ position (..., 3) of curve coordinates (..., 3), the inverse map."""
        x, y, s = np.moveaxis(np.asarray(curve_mm, np.float64), -1, 0)
        plane = np.clip(s / self.affine[2, 2], 0, len(self.points_mm) - 1)
        before = np.minimum(plane.astype(int), max(len(self.points_mm) - 2, 0))
        share = (plane - before)[..., None]
        after = np.minimum(before + 1, len(self.points_mm) - 1)

        def between(values: Array) -> Array:
            return (1 - share) * values[before] + share * values[after]

        place = between(self.points_mm)
        place += x[..., None] * between(self.frames[:, 1])
        return place + y[..., None] * between(self.frames[:, 2])

    def positions_mm(self) -> Array:
        """Return the RAS+ position of every voxel, (W, W, L, 3)."""
        across = to_mm(self.affine, np.arange(self.data.shape[1])[:, None] * np.ones(3))[:, 0]
        flat = across[:, None, None, None] * self.frames[:, 1]
        return self.points_mm + flat + across[:, None, None] * self.frames[:, 2]

    def longitudinal(
        self, angle_deg: float = 0.0, slab_mm: float = 0.0, projection: Projection = "max"
    ) -> torch.Tensor:
        """Return the plane along the curve at an angle to the first normal, (C, W, L).

        Parameters
        ----------
        angle_deg : float
            Turn from the first towards the second normal.
        slab_mm : float
            Thickness that is projected; 0 for the plane alone.
        projection : {"max", "mean", "min"}
        """
        check_choice("projection", projection, get_args(Projection))
        if not 0 <= slab_mm < math.inf:
            raise UsageError("the thickness of the slab is wrong", expected="0 mm or more")
        channels, width, _, length = self.data.shape
        data = self.data if self.data.is_floating_point() else self.data.float()
        pixel = self.affine[0, 0]
        layers = 2 * round(slab_mm / 2 / pixel) + 1
        half = (width - 1) / 2  # 1 at least: planes have three pixels or more
        a = torch.linspace(-1, 1, width).to(data)[:, None]
        t = (torch.arange(layers) - (layers - 1) / 2).to(data) / half
        cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        # grid_sample names the last axis first
        grid = torch.stack([a * sin + t * cos, a * cos - t * sin], dim=-1)
        stack = data.permute(0, 3, 1, 2).reshape(1, channels * length, width, width)
        out = functional.grid_sample(stack, grid[None], padding_mode="border", align_corners=True)
        out = out[0].reshape(channels, length, width, layers)
        if projection == "mean":
            plane = out.mean(dim=-1)
        else:
            plane = out.amax(dim=-1) if projection == "max" else out.amin(dim=-1)
        return plane.transpose(1, 2).contiguous()


def straighten(
    image: torch.Tensor,
    affine: ArrayLike,
    points_mm: ArrayLike,
    *,
    width_mm: float,
    step_mm: float,
    pixel_mm: float | None = None,
    mode: Mode = "linear",
    fill: float = 0.0,
    start: ArrayLike | None = None,
) -> StraightenedVolume:
    """Return an image in planes across a curve.

    There is no filter against aliasing: where `pixel_mm` is well above the voxels,
    smooth first.

    Parameters
    ----------
    image : Tensor (C, I, J, K), any device
        Integers come back as float32 unless `mode` is ``"nearest"``.
    affine : array (4, 4)
        Voxel index to RAS+ mm.
    points_mm : array (P, 3)
        Points of a smooth curve, RAS+ mm; a spline is laid through them.
    width_mm : float
        Side of the square planes, rounded up to an odd number of pixels, 3 at least.
    step_mm : float
        Distance of the planes along the curve.
    pixel_mm : float, optional
        Side of a pixel in the planes; default `step_mm`.
    mode : {"linear", "nearest", "cubic"}
        Interpolation; ``"nearest"`` for label maps.
    fill : float
        Value outside the image.
    start : array (3,), optional
        Direction that the first normal starts in, see `bishop_frames`.

    Returns
    -------
    StraightenedVolume

    Raises
    ------
    UsageError
        If a length is not positive or the mode is unknown.
    StepError
        If the image is not (C, I, J, K) or the points make no curve.
    """
    check_choice("mode", mode, get_args(Mode))
    pixel = step_mm if pixel_mm is None else pixel_mm
    for name, value in (("width_mm", width_mm), ("step_mm", step_mm), ("pixel_mm", pixel)):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} is wrong", expected="a length above 0", got=f"{value:g}")
    if image.ndim != 4 or 0 in image.shape:
        raise StepError("the image does not have the right axes", expected="(C, I, J, K)")
    curve = SpaceCurve(np.asarray(points_mm, np.float64))
    # a plane lies at the end too where the length is a multiple of the step
    arc = np.arange(math.floor(curve.length_mm / step_mm + 1e-6) + 1) * step_mm
    points, along = curve.at(arc), curve.tangents(arc)
    half = max(1, math.ceil(width_mm / 2 / pixel - 1e-6))
    grid = np.diag([pixel, pixel, step_mm, 1.0])
    grid[:2, 3] = -half * pixel
    frames = bishop_frames(points, along, start)
    bend = np.maximum(curve.curvature_per_mm(arc), 1e-9)
    data = _sample(image, np.asarray(affine, np.float64), points, frames, half, pixel, mode, fill)
    return StraightenedVolume(data, grid, points, frames, 1 / bend)


def _sample(
    image: torch.Tensor,
    affine: Affine,
    points: Array,
    frames: Array,
    half: int,
    pixel: float,
    mode: str,
    fill: float,
) -> torch.Tensor:
    """Return the image (C, W, W, L) on the planes, some planes at a time."""
    inverse = np.linalg.inv(affine)
    centers = to_mm(inverse, points)
    normals = pixel * frames[:, 1:] @ inverse[:3, :3].T
    reach = half * np.abs(normals).sum(axis=1)
    shape = np.array(image.shape[1:])
    low = np.clip(np.floor((centers - reach).min(axis=0)).astype(int) - 2, 0, shape - 1)
    high = np.clip(np.ceil((centers + reach).max(axis=0)).astype(int) + 3, low + 1, shape)
    part = image[(slice(None), *(slice(a, b) for a, b in zip(low, high, strict=True)))]
    if mode != "nearest" and not part.is_floating_point():
        part = part.float()
    real = part.dtype if part.is_floating_point() else torch.float32
    size, device = 2 * half + 1, image.device
    out = torch.empty((len(image), size, size, len(points)), dtype=part.dtype, device=device)
    offset = torch.arange(-half, half + 1, dtype=real, device=device)
    x, y = offset[:, None, None], offset[None, :, None]
    count = max(1, _SLAB_VOXELS // size**2)
    for first in range(0, len(points), count):
        rows = slice(first, first + count)
        c = torch.from_numpy((centers[rows] - low).T.copy()).to(device, real)
        u, v = torch.from_numpy(normals[rows].transpose(1, 2, 0).copy()).to(device, real)
        place = [c[a] + x * u[a] + y * v[a] for a in range(3)]
        out[..., rows] = sample_at(part, place, mode, fill)
    return out
