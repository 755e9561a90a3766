"""Random changes of training samples: one interpolation for all that moves voxels.

Rotation, scale and elastic deformation are drawn each with a probability of its own and put
into one sampling grid, so that an image is interpolated once or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms.compose import Compose
from monai.transforms.intensity.array import RandAdjustContrast, RandGaussianNoise
from monai.transforms.spatial.array import AffineGrid, RandFlip, Resample
from monai.transforms.transform import Randomizable
from monai.transforms.utils import create_rotate
from torch import Tensor
from torch.nn import functional

from medpipe.errors import UsageError

__all__ = ["Augmentation", "RandGrid", "contrast_changes", "shape_changes"]


@dataclass(frozen=True)
class Augmentation:
    """How training samples are changed.

    The defaults suit CT, where millimetres and HU mean something: sizes and brightness that
    differ much between samples would hide how much blood there is.

    Parameters
    ----------
    probability : float
        Of each change, alone.
    mirror_axes : tuple of int
        Axes that may be mirrored; 0 is left and right in RAS volumes.
    rotate_deg : float
        Greatest angle about each axis (in the plane, of pictures).
    scale : (float, float)
        Least and greatest size, 1 is as it was; the same along all axes.
    elastic_share : float
        Standard deviation of the shift of control points, a share of the extent; 0 is off.
    elastic_points : int
        Control points along each axis; the outermost do not move.
    gamma : (float, float)
        Least and greatest exponent of the contrast of the channels.
    noise_sd : float
        Greatest standard deviation of noise, in the units of the image (HU); 0 is off.
    """

    probability: float = 0.5
    mirror_axes: tuple[int, ...] = (0,)
    rotate_deg: float = 10.0
    scale: tuple[float, float] = (0.95, 1.05)
    elastic_share: float = 0.01
    elastic_points: int = 6
    gamma: tuple[float, float] = (0.9, 1.1)
    noise_sd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mirror_axes", "scale", "gamma"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 0 <= self.probability <= 1:
            raise UsageError("the probability of augmentation is wrong", expected="0 to 1")
        if not set(self.mirror_axes) <= {0, 1, 2}:
            raise UsageError("mirror_axes is wrong", expected="axes 0, 1 or 2")
        for name in ("scale", "gamma"):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] < math.inf:
                raise UsageError(f"{name} is wrong", expected="two growing numbers above 0")
        if not 0 <= self.rotate_deg <= 180 or not 0 <= self.noise_sd < math.inf:
            raise UsageError("rotate_deg or noise_sd is wrong", expected="0 or more")
        if not 0 <= self.elastic_share < 0.1 or self.elastic_points < 4:
            raise UsageError("elastic is wrong", expected="a share below 0.1, 4 points or more")


class RandGrid(Randomizable):
    """Rotate, scale and deform an image (C, I, J[, K]) in one interpolation.

    Parameters
    ----------
    how : Augmentation
    spacing : sequence of float, optional
        Extents of a voxel, in any unit: a rotation of an image with long voxels is one of
        what it shows.
    """

    def __init__(self, how: Augmentation, spacing: Sequence[float] | None = None) -> None:
        self.how = how
        self.spacing = None if spacing is None else tuple(float(s) for s in spacing)

    def __call__(self, image: Tensor) -> Tensor:
        """Return the changed image; values beyond its border are those at the border."""
        dims = image.ndim - 1
        angles, size, shifts = self._drawn(dims)
        if angles is None and size is None and shifts is None:
            return image
        matrix = self._matrix(dims, angles, 1.0 if size is None else size)
        grid, _ = AffineGrid(device=image.device, affine=matrix)(image.shape[1:])
        if shifts is not None:
            grid[:dims] += _spread(shifts, image)
        moved = Resample(padding_mode="border", dtype=torch.float32)(image, grid)
        return _plain(moved)

    def _drawn(self, dims: int) -> tuple[Any, Any, Any]:
        """Return angles, size and shifts of control points, None for what is not done."""
        how = self.how
        turn, zoom, bend = (self.R.rand(3) < how.probability).tolist()
        reach = math.radians(how.rotate_deg)
        angles = self.R.uniform(-reach, reach, 3 if dims == 3 else 1)
        low, high = np.log(how.scale)
        size = float(np.exp(self.R.uniform(low, high)))
        shifts = self.R.normal(0, how.elastic_share, (dims, *[how.elastic_points] * dims))
        return (
            angles if turn and reach else None,
            size if zoom and size != 1 else None,
            shifts if bend and how.elastic_share else None,
        )

    def _matrix(self, dims: int, angles: Any, size: float) -> Tensor:
        """Return where to read, from where to write, in voxels from the middle."""
        matrix = np.eye(dims + 1)
        if angles is not None:
            spacing = np.diag([*(self.spacing or (1.0,) * dims), 1.0])
            rotation = create_rotate(dims, angles.tolist() if dims == 3 else float(angles[0]))
            matrix = np.linalg.inv(spacing) @ np.asarray(rotation) @ spacing
        matrix[:dims, :dims] /= size
        return torch.from_numpy(matrix).to(torch.float32)


def _spread(shifts: np.ndarray, image: Tensor) -> Tensor:
    """Return shifts in voxels at every voxel, linear between the control points."""
    dims = image.ndim - 1
    points = torch.zeros(shifts.shape, dtype=torch.float32)
    inner = (slice(None), *[slice(1, -1)] * dims)
    points[inner] = torch.from_numpy(shifts).to(torch.float32)[inner]
    mode = "trilinear" if dims == 3 else "bilinear"
    field = functional.interpolate(
        points[None].to(image.device), size=tuple(image.shape[1:]), mode=mode, align_corners=True
    )[0]
    extents = torch.tensor(image.shape[1:], device=image.device, dtype=field.dtype)
    return field * extents.reshape(-1, *[1] * dims)


def shape_changes(
    how: Augmentation, spatial_dims: int, spacing: Sequence[float] | None = None
) -> Compose:
    """Return what is done to the image before channels are made of it.

    Parameters
    ----------
    how : Augmentation
    spatial_dims : int
    spacing : sequence of float, optional
        See `RandGrid`.
    """
    steps: list[Any] = [
        RandFlip(prob=how.probability, spatial_axis=axis)
        for axis in how.mirror_axes
        if axis < spatial_dims
    ]
    steps.append(RandGrid(how, spacing))
    if how.noise_sd:
        steps.append(RandGaussianNoise(prob=how.probability, std=how.noise_sd))
    return Compose(steps)


def contrast_changes(how: Augmentation) -> Compose:
    """Return what is done to the channels."""
    return Compose([RandAdjustContrast(prob=how.probability, gamma=how.gamma)])


def _plain(image: Any) -> Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image
