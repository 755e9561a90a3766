"""Values of an image at the voxels of another grid.

Two paths lead there. When the axes of both grids run along each other the
interpolation is separable: one weighted sum of shifted copies per axis, exact
for any kernel and cheap in memory. Otherwise the output is made slab by slab
from three coordinates per voxel.

A voxel is a box: positions up to half a voxel outside the outermost centres
take the value of the edge, positions further out take the fill value. MONAI's
resampling is not used, because outside the image it knows the edge value or
zero (water, in a CT) and nothing else, it leaves a grid unchanged when the
matrices differ by less than 1e-3 per voxel (half a millimetre over 512
voxels), has no anti-aliasing, and holds a float64 grid of the whole output.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from medpipe.types import Affine

__all__ = ["sample_at", "sample_grid"]

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
SLAB_VOXELS = 4_000_000
NO_BLUR = 0.13  # voxels; the neighbours would weigh less than 1e-12
EDGE_TOL = 1e-3  # voxels; keeps rounding from turning an edge voxel into fill


def sample_grid(
    data: torch.Tensor,
    src_affine: Affine,
    dst_affine: Affine,
    dst_shape: tuple[int, int, int],
    mode: str,
    fill: float,
    anti_alias: bool,
) -> torch.Tensor:
    """Return `data` at the voxel centres of another grid.

    Parameters
    ----------
    data : Tensor, shape (C, I, J, K)
        Any dtype and device. For ``"linear"`` and ``"cubic"`` integers are
        returned as float32; complex values are interpolated part by part.
    src_affine, dst_affine : ndarray, shape (4, 4)
        Voxel index to RAS+ mm of the input and of the output.
    dst_shape : tuple of int
    mode : {"linear", "nearest", "cubic"}
        ``"cubic"`` is the Keys kernel, a = -0.5 (doi 10.1109/TASSP.1981.1163711).
    fill : float
        Value outside the field of view.
    anti_alias : bool
        Smooth along axes that become coarser, by the Gaussian that matches the
        point spread functions (Cardoso 2015, doi 10.1007/978-3-319-24571-3_81).

    Returns
    -------
    Tensor, shape (C, *dst_shape)
    """
    if data.is_complex():
        parts = [
            sample_grid(p, src_affine, dst_affine, dst_shape, mode, f, anti_alias)
            for p, f in ((data.real, fill), (data.imag, 0.0))
        ]
        return torch.complex(parts[0], parts[1])
    if mode != "nearest" and not data.is_floating_point():
        data = data.float()
    if data.dtype in (torch.float16, torch.bfloat16):
        return sample_grid(
            data.float(), src_affine, dst_affine, dst_shape, mode, fill, anti_alias
        ).to(data.dtype)
    m: Affine = np.asarray(np.linalg.solve(src_affine, dst_affine), np.float64)
    scale = np.linalg.norm(m[:3, :3], axis=1)
    blur = anti_alias and mode != "nearest"
    sigma = np.sqrt(np.maximum(scale**2 - 1, 0)) / FWHM_PER_SIGMA if blur else np.zeros(3)
    order = _separable_order(m, dst_shape)
    if order is None:
        return _sample_oblique(_smooth(data, sigma), m, dst_shape, mode, fill)
    # order[n] is the input axis that output axis n runs along
    data = data.permute(0, *(1 + a for a in order))
    outside = []
    for n, a in enumerate(order):
        positions = m[a, n] * np.arange(dst_shape[n]) + m[a, 3]
        size = data.shape[n + 1]
        outside.append((positions < -0.5 - EDGE_TOL) | (positions > size - 0.5 + EDGE_TOL))
        index, weights = _taps(positions, mode, sigma[a])
        data = _apply_taps(data, n + 1, np.clip(index, 0, size - 1), weights)
    for n, out in enumerate(outside):
        if out.any():
            rows = torch.from_numpy(np.flatnonzero(out)).to(data.device)
            data = data.index_fill(n + 1, rows, fill)
    return data.contiguous()


def _separable_order(m: Affine, dst_shape: tuple[int, int, int]) -> list[int] | None:
    """Return the input axis of each output axis, or None when the grids are oblique.

    Off-axis drift below 1e-4 voxel over the whole output counts as none.
    """
    linear = np.abs(m[:3, :3])
    order = [int(a) for a in linear.argmax(axis=0)]
    if sorted(order) != [0, 1, 2]:
        return None
    off = linear * np.maximum(np.asarray(dst_shape) - 1, 1)
    off[order, range(3)] = 0
    return order if off.max() < 1e-4 else None


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Keys cubic kernel with a = -0.5 at distances `x` in voxels."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _taps(
    positions: NDArray[np.float64], mode: str, sigma: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return source indices and weights, both (n, taps), for 1-D interpolation at `positions`.

    Positions within 1e-6 of a voxel centre are taken as that centre, so that a
    grid resampled on itself comes back bit for bit.
    """
    whole = np.round(positions)
    positions = np.where(np.abs(positions - whole) < 1e-6, whole, positions)
    if mode == "nearest":
        index = np.floor(positions + 0.5).astype(np.int64)[:, None]
        return index, np.ones(index.shape)
    base = np.floor(positions).astype(np.int64)
    offsets = np.arange(2) if mode == "linear" else np.arange(-1, 3)
    distance = (positions - base)[:, None] - offsets
    weights = 1 - np.abs(distance) if mode == "linear" else _keys(distance)
    if sigma > 0:
        g = _gaussian(sigma)
        radius = len(g) // 2
        wide = np.zeros((len(positions), len(offsets) + 2 * radius))
        for t, gt in enumerate(g):
            wide[:, t : t + len(offsets)] += gt * weights
        weights, offsets = wide, np.arange(offsets[0] - radius, offsets[-1] + radius + 1)
    return base[:, None] + offsets, weights


def _gaussian(sigma: float) -> NDArray[np.float64]:
    """Return Gaussian weights of sum 1 out to three standard deviations."""
    radius = int(np.ceil(3 * sigma))
    g = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return g / g.sum()


def _apply_taps(
    data: torch.Tensor, axis: int, index: NDArray[np.int64], weights: NDArray[np.float64]
) -> torch.Tensor:
    """Return the weighted sum of selected slices along `axis`; zero weights are skipped.

    Skipping keeps a NaN from spreading to voxels that do not use it.
    """
    n, size = len(index), data.shape[axis]
    used = [t for t in range(index.shape[1]) if (weights[:, t] != 0).any()]
    if len(used) == 1 and (weights[:, used[0]] == 1).all():
        column = index[:, used[0]]
        if n == size and (column == np.arange(size)).all():
            return data
        return data.index_select(axis, torch.from_numpy(column.copy()).to(data.device))
    shape = [1] * data.ndim
    shape[axis] = n
    out: torch.Tensor | None = None
    for t in used:
        rows = torch.from_numpy(index[:, t].copy()).to(data.device)
        w = torch.from_numpy(weights[:, t].copy()).to(data).view(shape)
        part = data.index_select(axis, rows).mul_(w)
        if (weights[:, t] == 0).any():
            part = torch.where(w == 0, torch.zeros_like(part), part)
        out = part if out is None else out.add_(part)
    assert out is not None  # noqa: S101 - the weights of a position sum to 1
    return out


def _smooth(data: torch.Tensor, sigma: NDArray[np.float64]) -> torch.Tensor:
    """Return `data` smoothed by `sigma` voxels per axis, edges repeated."""
    for axis, s in enumerate(sigma):
        size = data.shape[axis + 1]
        if s > NO_BLUR and size > 1:
            data = _convolved(data, axis + 1, _gaussian(s))
    return data


def _convolved(data: torch.Tensor, axis: int, weights: NDArray[np.float64]) -> torch.Tensor:
    """Return the weighted sums of an odd number of neighbours along `axis`, edges repeated."""
    size, radius = data.shape[axis], len(weights) // 2
    ends = [data.narrow(axis, n, 1).repeat_interleave(radius, axis) for n in (0, size - 1)]
    wide = torch.cat([ends[0], data, ends[1]], axis)
    out = wide.narrow(axis, 0, size) * float(weights[0])
    for shift, weight in enumerate(weights[1:].tolist(), 1):
        out += wide.narrow(axis, shift, size) * weight
    return out


def _slabs(shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield ranges of the first axis that hold at most about SLAB_VOXELS voxels."""
    step = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def _sample_oblique(
    data: torch.Tensor, m: Affine, shape: tuple[int, int, int], mode: str, fill: float
) -> torch.Tensor:
    """Return `data` at the positions ``m @ (i, j, k, 1)``, slab by slab."""
    real = data.dtype if data.is_floating_point() else torch.float32
    device = data.device
    out = torch.empty((data.shape[0], *shape), dtype=data.dtype, device=device)
    j = torch.arange(shape[1], device=device, dtype=real)[None, :, None]
    k = torch.arange(shape[2], device=device, dtype=real)[None, None, :]
    for start, stop in _slabs(shape):
        i = torch.arange(start, stop, device=device, dtype=real)[:, None, None]
        p = [float(r[0]) * i + float(r[1]) * j + float(r[2]) * k + float(r[3]) for r in m[:3]]
        out[:, start:stop] = sample_at(data, p, mode, fill)
    return out


def sample_at(data: torch.Tensor, p: list[torch.Tensor], mode: str, fill: float) -> torch.Tensor:
    """Return `data` at any places.

    Parameters
    ----------
    data : Tensor, shape (C, I, J, K)
        Floating point for ``"linear"`` and ``"cubic"``.
    p : list of three Tensors of the same shape (X, Y, Z)
        Voxel coordinates, floating point, on the device of `data`.
    mode : {"linear", "nearest", "cubic"}
    fill : float
        Value outside the field of view.

    Returns
    -------
    Tensor, shape (C, X, Y, Z)
    """
    pick = {"nearest": _pick_nearest, "linear": _pick_linear, "cubic": _pick_cubic}[mode]
    out = pick(data, p)
    inside = torch.ones(p[0].shape, dtype=torch.bool, device=data.device)
    for x, n in zip(p, data.shape[1:], strict=True):
        inside &= (x >= -0.5 - EDGE_TOL) & (x <= n - 0.5 + EDGE_TOL)
    return out.masked_fill_(~inside, fill)


def _pick_linear(data: torch.Tensor, p: list[torch.Tensor]) -> torch.Tensor:
    """Return trilinear values, edges repeated."""
    # grid_sample wants (x, y, z) = (last, middle, first) axis, scaled to -1..1
    sizes = data.shape[1:]
    grid = torch.stack(
        [x * (2 / max(n - 1, 1)) - 1 for x, n in zip(p, sizes, strict=True)][::-1], -1
    )
    return functional.grid_sample(
        data[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]


def _pick_nearest(data: torch.Tensor, p: list[torch.Tensor]) -> torch.Tensor:
    """Return the values of the nearest voxels in the dtype of `data`."""
    index = [
        (x + 0.5).floor().long().clamp_(0, n - 1) for x, n in zip(p, data.shape[1:], strict=True)
    ]
    return data[:, index[0], index[1], index[2]]


def _pick_cubic(data: torch.Tensor, p: list[torch.Tensor]) -> torch.Tensor:
    """Return tricubic values from 64 neighbours, edges repeated."""
    index, weight = [], []
    for x, n in zip(p, data.shape[1:], strict=True):
        base = x.floor()
        f = x - base
        taps = (
            ((-0.5 * f + 1) * f - 0.5) * f,
            (1.5 * f - 2.5) * f * f + 1,
            ((-1.5 * f + 2) * f + 0.5) * f,
            (0.5 * f - 0.5) * f * f,
        )
        index.append([(base.long() + o).clamp_(0, n - 1) for o in (-1, 0, 1, 2)])
        weight.append(taps)
    out = torch.zeros((data.shape[0], *p[0].shape), dtype=data.dtype, device=data.device)
    for a, b, c in product(range(4), repeat=3):
        values = data[:, index[0][a], index[1][b], index[2][c]]
        out += values * (weight[0][a] * weight[1][b] * weight[2][c])
    return out
