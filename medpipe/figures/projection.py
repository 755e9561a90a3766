"""A mask or an image seen through from the front, from the left and from below.

Pictures lie on the planes of the patient's RAS+ space, in radiological orientation, for
any voxel grid; see `medpipe.figures.sampling`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medpipe.figures.sampling import VIEW_AXES, Canonical, Plane, to_canonical
from medpipe.types import Affine

if TYPE_CHECKING:
    import torch

__all__ = [
    "cut_to_box",
    "maximum_projection",
    "plane_of_box",
    "points_to_px",
    "shaded_mask",
    "windowed",
]

_TOWARDS = {"axial": -1.0, "coronal": 1.0, "sagittal": -1.0}
"""Where the viewer stands on the axis across the plane: below, in front, on the left."""

MAX_SAMPLES = 24_000_000
_OBLIQUE = 0.02
_MIP_SIDE = 320


def plane_of_box(view: str, box_mm: NDArray[np.float64], mm_per_px: float) -> Plane:
    """Return the plane that shows a box (3, 2) in mm."""
    across, col, row = VIEW_AXES[view]
    size = [max(1, math.ceil((box_mm[a, 1] - box_mm[a, 0]) / mm_per_px)) for a in (col, row)]
    centre = float(box_mm[col].mean()), float(box_mm[row].mean())
    return Plane(view, float(box_mm[across].mean()), centre, (size[0], size[1]), mm_per_px)


def points_to_px(plane: Plane, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return column and row (n, 2) of points (n, 3) in RAS+ mm; 0 is the middle of a pixel."""
    _, col, row = VIEW_AXES[plane.view]
    centre = np.array(plane.centre_mm)
    middle = (np.array(plane.size_px) - 1) / 2
    return middle + (centre - points_mm[:, [col, row]]) / plane.mm_per_px


def cut_to_box(
    volume: torch.Tensor, affine: Affine, box_mm: NDArray[np.float64]
) -> tuple[torch.Tensor, Affine]:
    """Return the part of a volume (I, J, K) around a box (3, 2) in mm, and its affine."""
    corners = np.array(np.meshgrid(*box_mm, indexing="ij")).reshape(3, -1)
    inverse = np.linalg.inv(affine)
    index = inverse[:3, :3] @ corners + inverse[:3, 3:4]
    size = np.array(volume.shape)
    start = np.clip(np.floor(index.min(1)) - 1, 0, size - 1).astype(int)
    stop = np.clip(np.ceil(index.max(1)) + 2, start + 1, size).astype(int)
    part = volume[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    moved = np.array(affine, np.float64)
    moved[:3, 3] += moved[:3, :3] @ start
    return part, moved


def shaded_mask(mask: torch.Tensor, affine: Affine, plane: Plane) -> NDArray[np.uint8]:
    """Draw the surface of a mask as seen by the viewer, lit from where they stand.

    Parameters
    ----------
    mask : bool tensor (I, J, K)
    affine : array (4, 4)
        Voxel index to RAS+ mm; any.
    plane : Plane

    Returns
    -------
    uint8 array (height, width)
        0 where there is nothing; nearer parts are brighter.
    """
    import torch

    width, height = plane.size_px
    depth = torch.full((height * width,), -math.inf, device=mask.device)
    for points in _voxel_points(mask, affine, plane.mm_per_px):
        col, row = _pixels(points, plane)
        kept = (col >= 0) & (col < width) & (row >= 0) & (row < height)
        towards = _TOWARDS[plane.view] * points[VIEW_AXES[plane.view][0]]
        place = (row * width + col)[kept]
        depth.scatter_reduce_(0, place, towards[kept], "amax")
    return _lit(depth.reshape(height, width), plane.mm_per_px)


def _voxel_points(mask: torch.Tensor, affine: Affine, mm_per_px: float) -> Iterator[torch.Tensor]:
    """Yield positions (3, n) in mm: so many in each voxel that no pixel is left between."""
    import torch

    index = torch.nonzero(mask).to(torch.float32).T
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float32, device=mask.device)
    sides = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    wanted = np.maximum(1, np.ceil(1.5 * sides / mm_per_px)).astype(int)
    while index.shape[1] * wanted.prod() > MAX_SAMPLES and wanted.max() > 1:
        wanted[wanted.argmax()] -= 1
    base = matrix[:3, :3] @ index + matrix[:3, 3:]
    for shift in np.ndindex(*wanted.tolist()):
        inside = (np.array(shift) + 0.5) / wanted - 0.5
        move = torch.as_tensor(inside, dtype=torch.float32, device=mask.device)
        yield base + (matrix[:3, :3] @ move)[:, None]


def _pixels(points: torch.Tensor, plane: Plane) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    _, col, row = VIEW_AXES[plane.view]
    found = []
    for axis, centre, n in zip((col, row), plane.centre_mm, plane.size_px, strict=True):
        place = (n - 1) / 2 + (centre - points[axis]) / plane.mm_per_px
        found.append(torch.round(place).long())
    return found[0], found[1]


def _lit(depth: torch.Tensor, mm_per_px: float) -> NDArray[np.uint8]:
    import torch
    from torch.nn import functional

    seen = torch.isfinite(depth)
    if not bool(seen.any()):
        return np.zeros(tuple(depth.shape), np.uint8)
    low, high = (float(v) for v in torch.aminmax(depth[seen]))
    near = torch.where(seen, (depth - low) / max(high - low, mm_per_px), torch.zeros_like(depth))
    smooth = _smoothed(torch.where(seen, depth - low, torch.zeros_like(depth)), seen)
    down = torch.diff(smooth, dim=0, append=smooth[-1:]) / mm_per_px
    right = torch.diff(smooth, dim=1, append=smooth[:, -1:]) / mm_per_px
    facing = 1 / torch.sqrt(1 + 0.35 * (down**2 + right**2))
    grey = torch.where(seen, 255 * (0.30 + 0.70 * facing) * (0.5 + 0.5 * near), 0.0 * near)
    soft = functional.avg_pool2d(grey[None], 3, 1, 1)[0]  # no stairs along the outline
    return soft.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _smoothed(values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Average over 5 x 5 pixels among those that are seen, without stair steps of voxels."""
    from torch.nn import functional

    weight = seen.to(values.dtype)[None, None]
    total = functional.avg_pool2d((values * seen)[None, None], 5, 1, 2, count_include_pad=False)
    count = functional.avg_pool2d(weight, 5, 1, 2, count_include_pad=False)
    return (total / count.clamp(min=1e-6))[0, 0].where(seen, values)


def maximum_projection(
    image: torch.Tensor,
    affine: Affine,
    plane: Plane,
    box_mm: NDArray[np.float64],
    window: Sequence[float] | None = None,
) -> NDArray[np.uint8]:
    """Draw the largest value along each line of sight inside a box.

    Parameters
    ----------
    image : tensor (I, J, K)
    affine : array (4, 4)
        Voxel index to RAS+ mm; an oblique grid is resampled, one along the patient's
        axes is not.
    plane : Plane
    box_mm : array (3, 2)
        What is looked through.
    window : (low, high), optional
        Values that become black and white; by default the 5th and 99.7th percentile of
        the picture.

    Returns
    -------
    uint8 array (height, width)
    """
    import torch
    from torch.nn import functional

    straight = _straight(to_canonical(image, affine), box_mm)
    across, col, row = VIEW_AXES[plane.view]
    flat = straight.data.amax(across)
    # after amax the axes left are (lower, higher) world axis: columns first, then rows
    step = np.diagonal(straight.affine)[:3]
    grid = []
    for axis, centres in zip((col, row), plane.pixel_mm(), strict=True):
        index = (centres - straight.affine[axis, 3]) / step[axis]
        n = straight.data.shape[axis]
        grid.append(torch.as_tensor((2 * index + 1) / n - 1, dtype=torch.float32))
    x, y = grid[0].to(flat.device), grid[1].to(flat.device)
    where = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)
    # grid_sample's first coordinate runs along the last axis, which are the rows here
    values = functional.grid_sample(
        flat[None, None].to(torch.float32), where[None], padding_mode="border", align_corners=False
    )[0, 0]
    return windowed(values, window)


def _straight(volume: Canonical, box_mm: NDArray[np.float64]) -> Canonical:
    """Return the part of a volume in a box, on axes along the patient's."""
    import torch
    from torch.nn import functional

    sides = np.abs(np.diagonal(volume.affine)[:3])
    leaning = np.abs(volume.affine[:3, :3] - np.diag(np.diagonal(volume.affine)[:3])).max()
    if leaning <= _OBLIQUE * sides.min():
        affine = np.diag(np.append(np.diagonal(volume.affine)[:3], 1.0))
        affine[:3, 3] = volume.affine[:3, 3]
        return Canonical(*cut_to_box(volume.data, affine, box_mm))
    extent = box_mm[:, 1] - box_mm[:, 0]
    spacing = max(
        float(np.linalg.norm(volume.affine[:3, :3], axis=0).min()), extent.max() / _MIP_SIDE
    )
    shape = np.maximum(1, np.ceil(extent / spacing)).astype(int)
    affine = np.diag(np.array([spacing, spacing, spacing, 1.0], np.float64))
    affine[:3, 3] = box_mm[:, 0] + spacing / 2
    to_index = np.linalg.inv(volume.affine) @ affine
    theta = _grid_theta(to_index, np.array(volume.data.shape), shape)
    grid = functional.affine_grid(theta[None], [1, 1, *shape.tolist()], align_corners=False)
    data = functional.grid_sample(
        volume.data[None, None].to(torch.float32), grid.to(volume.data.device), align_corners=False,
        padding_mode="border",
    )[0, 0]  # fmt: skip
    return Canonical(data, affine)


def _grid_theta(
    to_index: NDArray[np.float64], source: NDArray[np.int64], target: NDArray[np.int64]
) -> torch.Tensor:
    """Return the (3, 4) matrix of `affine_grid` for a map of voxel indices."""
    import torch

    # outer faces of voxels are -1 and 1; affine_grid counts axes from the last
    from_unit = np.diag([*(target / 2), 1.0])
    from_unit[:3, 3] = (target - 1) / 2
    to_unit = np.diag([*(2 / source), 1.0])
    to_unit[:3, 3] = 1 / source - 1
    matrix = to_unit @ to_index @ from_unit
    flip = [2, 1, 0]
    theta = np.concatenate([matrix[flip][:, flip], matrix[flip, 3:4]], 1)
    return torch.as_tensor(theta, dtype=torch.float32)


def windowed(values: torch.Tensor, window: Sequence[float] | None) -> NDArray[np.uint8]:
    """Return values as grey levels on the host.

    Parameters
    ----------
    values : tensor (height, width)
        NaN and infinity are 0.
    window : (low, high) or None
        What is black and white; None for the 5th and 99.7th percentile.
    """
    import torch

    values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if window is None:
        sample = values.reshape(-1)[:: max(1, values.numel() // 1_000_000)]
        window = torch.quantile(sample, torch.tensor([0.05, 0.997], device=sample.device)).tolist()
    low, high = float(window[0]), float(window[1])
    scaled = (values - low) / max(high - low, 1e-9)
    return (255 * scaled.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()
