"""The exact distance from each voxel of a mask to the background, in mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from medpipe.centerline.distance_kernel import foreground_squares
from medpipe.errors import StepError, UsageError
from medpipe.steps._base import check_choice, check_triple

__all__ = ["distance_transform"]

Method = Literal["auto", "compiled", "windowed"]

FIRST_REACH = 8
"""Voxels to either side in the first window."""
CHUNK_VOXELS = 1 << 24
"""Voxels that are copied at a time: 134 MB of float64."""


def distance_transform(
    mask: torch.Tensor, spacing_mm: float | Sequence[float], *, method: Method = "auto"
) -> torch.Tensor:
    """Return the distance of each foreground voxel to the nearest background voxel.

    Parameters
    ----------
    mask : Tensor
        bool (..., I, J, K); other types are foreground where they are not 0.
    spacing_mm : float or three floats
        Distance between voxel centres along I, J and K; the axes are taken as
        perpendicular.
    method : {"auto", "compiled", "windowed"}
        ``"compiled"`` works on the host in time that goes with the number of foreground
        voxels. ``"windowed"`` works in torch on any device: a minimum over a window that
        is widened until it holds the nearest background of every voxel. ``"auto"`` is
        ``"compiled"`` for tensors of the host, else ``"windowed"``.

    Returns
    -------
    Tensor
        float32, the shape and device of `mask`: mm between voxel centres, 0 in the
        background. Both methods are exact: computed in float64 and rounded at the end.
        What lies outside the array is unknown, not background; a mask without any
        background has the distance inf.

    Raises
    ------
    StepError
        If `mask` has fewer than three axes.
    UsageError
        If the spacing or the method is wrong, or ``"compiled"`` gets a tensor of a device.
    """
    check_choice("method", method, ("auto", "compiled", "windowed"))
    spacing = check_triple("spacing_mm", spacing_mm)
    if mask.ndim < 3:
        raise StepError("the mask has too few axes", expected="three or more", got=str(mask.ndim))
    on_host = mask.device.type == "cpu"
    if method == "auto":
        method = "compiled" if on_host else "windowed"
    if method == "compiled" and not on_host:
        raise UsageError("the compiled method works on the host", hint='use method = "auto"')
    inside = mask.detach()
    if mask.dtype != torch.bool:
        inside = inside != 0
    transform = _host if method == "compiled" else _windowed
    out = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    if out.numel():
        volumes = out.view(-1, *mask.shape[-3:])
        for volume, part in zip(inside.reshape(volumes.shape), volumes, strict=True):
            transform(volume, spacing, part)
    return out


def _host(mask: torch.Tensor, spacing: tuple[float, ...], out: torch.Tensor) -> None:
    """Fill `out` (zeros) by the compiled method; nothing is copied."""
    linear = np.flatnonzero(mask.cpu().numpy())
    values = np.sqrt(foreground_squares(linear, tuple(mask.shape), spacing))
    out.view(-1).cpu().numpy()[linear] = values


def _windowed(mask: torch.Tensor, spacing: tuple[float, ...], out: torch.Tensor) -> None:
    """Fill `out` (zeros) by minima over windows, in the box around the foreground.

    The background next to the box is nearer than any behind it, so the box with a
    margin of one voxel holds all that is needed.
    """
    if bool(mask.all()):
        out.fill_(torch.inf)
        return
    box = _box(mask)
    if box is None:
        return
    inside = mask[box]
    rows = _row_squares(inside, spacing[2])
    shape = inside.shape
    window = FIRST_REACH * min(spacing[:2])
    while True:
        reach = [min(shape[a] - 1, math.ceil(window / spacing[a])) for a in (0, 1)]
        squares = rows.clone()
        for axis in (1, 0):
            _min_plus(squares, axis, spacing[axis], reach[axis])
        farthest = math.sqrt(float(squares.max()))
        # a background voxel outside the window is at least this far
        sure = min(
            (reach[a] + 1) * spacing[a] if reach[a] < shape[a] - 1 else math.inf for a in (0, 1)
        )
        if farthest < sure or math.isinf(sure):
            break
        window = min(2 * window, farthest)
    out[box] = squares.sqrt_().to(torch.float32)


def _box(mask: torch.Tensor) -> tuple[slice, ...] | None:
    """Return the box around a mask with a margin of one voxel where there is room."""
    box = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        found = mask.any(others[1]).any(others[0]).nonzero().flatten().tolist()
        if not found:
            return None
        box.append(slice(max(found[0] - 1, 0), found[-1] + 2))
    return tuple(box)


def _row_squares(mask: torch.Tensor, spacing: float) -> torch.Tensor:
    """Return squared distances in float64 along the last axis, inf where a row has no end."""
    length = mask.shape[2]
    out = torch.empty(mask.shape, dtype=torch.float64, device=mask.device)
    index = torch.arange(length, dtype=torch.int32, device=mask.device)
    for part, into in zip(_parts(mask, 0), _parts(out, 0), strict=True):
        before = torch.where(part, -length, index).cummax(2).values
        after = torch.where(part, 2 * length, index).flip(2).cummin(2).values.flip(2)
        steps = torch.minimum(index - before, after - index)
        into.copy_((steps.to(torch.float64) * spacing).square_())
        into.masked_fill_(steps >= length, torch.inf)
    return out


def _min_plus(squares: torch.Tensor, axis: int, spacing: float, reach: int) -> None:
    """Replace values by the minimum over shifts of value + (shift × spacing)², in place."""
    extent = squares.shape[axis]
    for part in _parts(squares, 1 - axis):
        before = part.clone()
        for shift in range(1, reach + 1):
            length = extent - shift
            step = shift * spacing
            for to, source in ((0, shift), (shift, 0)):
                target = part.narrow(axis, to, length)
                torch.minimum(target, before.narrow(axis, source, length) + step * step, out=target)


def _parts(values: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
    """Return views of bounded size along an axis."""
    layer = values.numel() // values.shape[axis]
    return values.split(max(1, CHUNK_VOXELS // layer), dim=axis)
