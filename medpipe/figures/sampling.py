"""Planes of the patient's space, cut through a volume by its affine.

Pictures are drawn on planes of RAS+ space, not on planes of voxels: that is
what makes the orientation right for any permutation, flip, rotation or shear
of the voxel grid. A volume is first brought, by exact permutation and flips,
to the voxel order nearest to RAS, so that the same image stored in another
voxel order gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medpipe.geometry import axis_codes
from medpipe.types import Affine

if TYPE_CHECKING:
    import torch

__all__ = ["Canonical", "Plane", "fov_box_mm", "sample_plane", "to_canonical"]

_WORLD = (("L", "R"), ("P", "A"), ("I", "S"))
VIEW_AXES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""View → world axis across the plane, along the picture's columns, along its rows."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A volume (I, J, K) whose voxel axes point nearest to R, A and S."""

    data: torch.Tensor
    affine: Affine


@dataclass(frozen=True, slots=True)
class Plane:
    """A picture's plane in the patient.

    Attributes
    ----------
    view : {"axial", "coronal", "sagittal"}
    position_mm : float
        Where the plane cuts the world axis that it is normal to.
    centre_mm : tuple of float
        World position of the middle of the picture along columns and rows.
    size_px : tuple of int
        Width and height.
    mm_per_px : float
        The same along both directions.
    """

    view: str
    position_mm: float
    centre_mm: tuple[float, float]
    size_px: tuple[int, int]
    mm_per_px: float

    def pixel_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the world position of every column (width,) and every row (height,).

        Both decrease: patient right is on the viewer's left, anterior on the
        left of a sagittal view, anterior or superior at the top.
        """
        out = []
        for centre, n in zip(self.centre_mm, self.size_px, strict=True):
            out.append(centre + ((n - 1) / 2 - np.arange(n)) * self.mm_per_px)
        return out[0], out[1]


def to_canonical(data: torch.Tensor, affine: Affine) -> Canonical:
    """Permute and flip the voxel axes of (I, J, K) data to the order nearest to RAS."""
    codes = axis_codes(affine)
    order = [next(v for v in range(3) if codes[v] in names) for names in _WORLD]
    flips = [w for w in range(3) if codes[order[w]] in "LPI"]
    out = np.array(affine, float)
    out[:, :3] = out[:, order]
    data = data.permute(order)
    for w in flips:
        out[:3, 3] += out[:3, w] * (data.shape[w] - 1)
        out[:3, w] *= -1
    data = data.flip(flips) if flips else data
    # Without rounding, two voxel orders of one image differ in the last bit of the origin.
    return Canonical(data.contiguous(), np.round(out, 8) + 0.0)  # -0.0 becomes 0.0


def fov_box_mm(affine: Affine, shape: tuple[int, ...]) -> np.ndarray:
    """Return the box (3, 2) in mm around a volume, to the outer faces of its voxels."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in shape[:3]], indexing="ij"))
    mm = affine[:3, :3] @ corners.reshape(3, -1) + affine[:3, 3:4]
    return np.stack([mm.min(1), mm.max(1)], 1)


def _index_lines(volume: Canonical, plane: Plane, supersample: int) -> NDArray[np.float64]:
    """Return, as rows, the voxel index of the first subpixel, its step down and its step right."""
    inverse = np.linalg.inv(volume.affine)
    across, col_axis, row_axis = VIEW_AXES[plane.view]
    fine = plane.mm_per_px / supersample
    n_cols, n_rows = (n * supersample for n in plane.size_px)
    start = np.zeros(3)
    start[across] = plane.position_mm
    start[col_axis] = plane.centre_mm[0] + (n_cols - 1) / 2 * fine
    start[row_axis] = plane.centre_mm[1] + (n_rows - 1) / 2 * fine
    origin = inverse[:3, :3] @ start + inverse[:3, 3]
    return np.stack([origin, -fine * inverse[:3, row_axis], -fine * inverse[:3, col_axis]])


def _spread(lines: NDArray[np.float64], rows: int, cols: int, like: torch.Tensor) -> torch.Tensor:
    """Return lines[0] + row · lines[1] + column · lines[2], shape (rows, cols, 3)."""
    import torch

    dtype, device = like.dtype, like.device
    origin, down, right = torch.as_tensor(lines, dtype=dtype, device=device)
    r = torch.arange(rows, dtype=dtype, device=device)[:, None, None]
    c = torch.arange(cols, dtype=dtype, device=device)[None, :, None]
    return (origin + r * down) + c * right


def sample_plane(
    volume: Canonical, plane: Plane, *, nearest: bool = False, supersample: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a volume along a plane.

    Parameters
    ----------
    volume : Canonical
    plane : Plane
    nearest : bool
        Nearest voxel (labels) instead of trilinear.
    supersample : int
        Samples along each side of a pixel, averaged: keeps fine voxels from aliasing.

    Returns
    -------
    values : tensor (height, width), float32
    inside : tensor (height, width), bool
        Whether the pixel's centre lies in the volume, to the outer faces of its voxels.
    """
    import torch
    from torch.nn import functional

    width, height = plane.size_px
    size = np.array(volume.data.shape, float)
    exact = torch.empty(0, dtype=torch.float64, device=volume.data.device)
    index = _spread(_index_lines(volume, plane, 1), height, width, exact)
    top = torch.as_tensor(size, device=index.device) - 0.5 + 1e-6
    inside = ((index > -0.5 - 1e-6) & (index < top)).all(-1)
    # grid_sample wants x, y, z of a (D, H, W) volume in -1..1 between outer voxel faces.
    lines = 2 * _index_lines(volume, plane, supersample) / size
    lines[0] += 1 / size - 1
    grid = _spread(
        lines[:, ::-1].copy(), height * supersample, width * supersample, exact.to(torch.float32)
    )
    values = functional.grid_sample(
        volume.data[None, None].to(torch.float32),
        grid[None, None],
        mode="nearest" if nearest else "bilinear",
        padding_mode="border",
        align_corners=False,
    )[0, 0, 0]
    if supersample > 1:
        values = functional.avg_pool2d(values[None], supersample)[0]
    return values, inside
