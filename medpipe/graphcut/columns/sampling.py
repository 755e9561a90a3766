"""Values of an image at points in space, on the device of the image."""

from __future__ import annotations

from itertools import product
from typing import Literal, get_args

import numpy as np
import torch

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_problem
from medpipe.types import Affine

__all__ = ["Mode", "sample_points", "to_voxels"]

Mode = Literal["linear", "nearest"]

CHUNK = 4_000_000  # points at a time; bounds the memory of indices and weights
EDGE_TOL = 1e-3  # voxels; keeps rounding from turning an edge voxel into outside
WHOLE_TOL = {torch.float64: 1e-6, torch.float32: 2e-4}
"""Points this close to a voxel centre (in voxels) are taken as that centre."""


def to_voxels(points_mm: torch.Tensor, affine: Affine) -> torch.Tensor:
    """Return voxel indices, float64 (..., 3), of RAS+ mm points.

    Points within rounding of a voxel centre are that centre.
    """
    problem = affine_problem(affine)
    if problem:
        raise StepError(problem, expected="a finite, invertible affine in mm")
    inverse = torch.from_numpy(np.linalg.inv(np.asarray(affine, float))).to(points_mm.device)
    voxels = points_mm.to(torch.float64) @ inverse[:3, :3].T + inverse[:3, 3]
    whole = voxels.round()
    near = (voxels - whole).abs() < WHOLE_TOL.get(points_mm.dtype, 1e-3)
    return torch.where(near, whole, voxels)


def sample_points(
    image: torch.Tensor, points_mm: torch.Tensor, affine: Affine, mode: Mode, outside: float
) -> torch.Tensor:
    """Return the values of `image` (C, I, J, K) at points (..., 3), shape (C, ...).

    A voxel is a box: up to half a voxel outside the outermost centres the value of
    the edge counts, further out `outside`.
    """
    if mode not in get_args(Mode):
        raise UsageError("unknown mode", expected=" | ".join(get_args(Mode)), got=repr(mode)[:40])
    data = image.as_subclass(torch.Tensor)  # a MetaTensor would carry its meta into every step
    if mode == "linear" and not data.is_floating_point():
        data = data.float()
    flat = points_mm.reshape(-1, 3)
    pick = _pick_linear if mode == "linear" else _pick_nearest
    size = torch.tensor(data.shape[1:], device=flat.device)
    parts = []
    for chunk in flat.split(CHUNK):
        voxels = to_voxels(chunk, affine)
        inside = ((voxels >= -0.5 - EDGE_TOL) & (voxels <= size - 0.5 + EDGE_TOL)).all(-1)
        values = pick(data, voxels)
        if not bool(inside.all()):
            _check_fill(data, outside)
            values = values.masked_fill(~inside, outside)
        parts.append(values)
    return torch.cat(parts, 1).reshape(data.shape[0], *points_mm.shape[:-1])


def _check_fill(data: torch.Tensor, outside: float) -> None:
    if not data.is_floating_point() and outside != outside // 1:
        raise StepError(
            "columns leave an image of integers, which has no NaN",
            hint="give the value outside, e.g. 0, or sample with mode linear",
        )


def _pick_linear(data: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Return trilinear values (C, N); corners of weight 0 are not read."""
    base, fraction = [], []
    for axis, size in enumerate(data.shape[1:]):
        x = voxels[:, axis].clamp(0, size - 1)
        low = x.floor()
        base.append(low.long())
        fraction.append((x - low).to(data.dtype))
    on_grid = [bool((f == 0).all()) for f in fraction]
    out = torch.zeros((data.shape[0], len(voxels)), dtype=data.dtype, device=data.device)
    for corner in product(*[(0,) if whole else (0, 1) for whole in on_grid]):
        weight = torch.ones_like(fraction[0])
        index = []
        for axis, high in enumerate(corner):
            weight = weight * (fraction[axis] if high else 1 - fraction[axis])
            index.append((base[axis] + high).clamp_(max=data.shape[axis + 1] - 1))
        value = data[:, index[0], index[1], index[2]]
        # a NaN beside a voxel centre has weight 0 and must stay there
        out += torch.where(weight == 0, 0, weight * value)
    return out


def _pick_nearest(data: torch.Tensor, voxels: torch.Tensor) -> torch.Tensor:
    """Return the values (C, N) of the nearest voxels in the dtype of `data`."""
    index = [
        (voxels[:, axis] + 0.5).floor().long().clamp_(0, size - 1)
        for axis, size in enumerate(data.shape[1:])
    ]
    return data[:, index[0], index[1], index[2]]
