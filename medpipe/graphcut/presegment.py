"""Rough first segmentations from which a shape prior is made.

Each function returns the same thing, a bool mask on the grid of the image, from another
source: intensities, a mask that is at hand, an atlas, or the output of a network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import is_sheared, spacing_mm
from medpipe.steps._balls import open_ball
from medpipe.steps._base import affine_of, as_image, check_same_grid, mask_of
from medpipe.steps._components import keep_largest
from medpipe.steps._sampling import sample_grid
from medpipe.steps.registration import Kind, Metric, Start, register_images
from medpipe.types import Affine

__all__ = ["from_atlas", "from_mask", "from_probability", "from_threshold"]


def from_threshold(
    image: Any,
    lower: float | None = None,
    upper: float | None = None,
    *,
    within: Any = None,
    open_mm: float = 0.0,
) -> torch.Tensor:
    """Return the largest component of the voxels in a range of intensities.

    Parameters
    ----------
    image : MetaTensor or Tensor, shape (1, X, Y, Z)
    lower, upper : float, optional
        Limits in the units of the image, both inclusive; None is no limit.
    within : MetaTensor or Tensor, shape (1, X, Y, Z), optional
        Only voxels where this mask is above 0 count.
    open_mm : float
        Radius of the ball that an opening removes thin bridges with.

    Returns
    -------
    Tensor of bool, shape (X, Y, Z)

    Raises
    ------
    StepError
        If no voxel or every voxel is selected, or the grids differ.
    UsageError
        If the limits are absent or in the wrong order.
    """
    if lower is None and upper is None:
        raise UsageError("a threshold is absent", expected="lower, upper or both")
    if lower is not None and upper is not None and lower > upper:
        raise UsageError("lower is above upper", got=f"{lower:g} > {upper:g}")
    grid = as_image(image)
    values = _one_channel(grid, "image")
    mask = torch.isfinite(values)
    if lower is not None:
        mask &= values >= lower
    if upper is not None:
        mask &= values <= upper
    if within is not None:
        mask &= mask_of(grid, within, "mask")[0]
    _check(mask, "no voxel lies between lower and upper", "choose other limits")
    if open_mm:
        mask = _opened(mask, grid, open_mm)
        _check(mask, "nothing is left after opening", "use a smaller open_mm")
    return _useful(keep_largest(mask))


def from_mask(image: Any, mask: Any, label: int | None = None) -> torch.Tensor:
    """Return a mask or one label of a label map that lies on the grid of the image.

    Parameters
    ----------
    image, mask : MetaTensor or Tensor, shape (1, X, Y, Z)
    label : int, optional
        The value that counts; by default all above 0.

    Returns
    -------
    Tensor of bool, shape (X, Y, Z)

    Raises
    ------
    StepError
        If the grids differ, or the mask is empty or full.
    """
    grid = as_image(image)
    inside = mask_of(grid, mask)
    values = _one_channel(as_image(mask), "mask").to(inside.device)
    if label is None:
        return _useful(inside[0])
    chosen = values == label
    _check(chosen, "the label is absent from the label map", "choose another label", f"{label}")
    return _useful(chosen)


def from_probability(
    image: Any,
    probability: Any,
    threshold: float = 0.5,
    *,
    channel: int = 0,
    largest: bool = True,
) -> torch.Tensor:
    """Return where the output of a network exceeds a threshold.

    Parameters
    ----------
    image : MetaTensor or Tensor, shape (C, X, Y, Z)
        Gives the grid.
    probability : MetaTensor or Tensor, shape (O, X, Y, Z)
        Probabilities of O objects, from 0 to 1, on the grid of the image.
    threshold : float
        Between 0 and 1; a probability equal to it counts.
    channel : int
        Which object.
    largest : bool
        Keep the largest component only.

    Returns
    -------
    Tensor of bool, shape (X, Y, Z)

    Raises
    ------
    StepError
        If the grids differ, the values are no probabilities, or the mask is empty or full.
    """
    if not 0 < threshold <= 1:
        raise UsageError("threshold is wrong", expected="above 0, at most 1", got=f"{threshold:g}")
    grid, output = as_image(image), as_image(probability)
    check_same_grid(grid, output, "probability map")
    if not 0 <= channel < output.shape[0]:
        raise StepError(
            "the object is absent from the probabilities",
            expected=f"a channel from 0 to {output.shape[0] - 1}",
            got=str(channel),
        )
    values = output.as_tensor()[channel].to(grid.device)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise StepError(
            "the values are no probabilities",
            expected="values from 0 to 1",
            got=f"{low:g} to {high:g}",
            hint="apply a softmax or sigmoid to the output of the network",
        )
    mask = values >= threshold
    _check(mask, "no probability reaches the threshold", "lower the threshold", f"at most {high:g}")
    return _useful(keep_largest(mask) if largest else mask)


def from_atlas(
    image: Any,
    atlas: Any,
    atlas_labels: Any,
    label: int | None = None,
    *,
    transform: Kind = "affine",
    metric: Metric = "mattes",
    initial: Start = "geometry",
    seed: int = 0,
    fixed_to_moving: Affine | None = None,
) -> torch.Tensor:
    """Return an object of an atlas, moved onto the image by registration.

    Parameters
    ----------
    image, atlas : MetaTensor, shape (C, X, Y, Z) and (C, I, J, K)
        Channel 0 of both is registered.
    atlas_labels : MetaTensor, shape (1, I, J, K)
        Label map, on any grid in the space of the atlas.
    label : int, optional
        The label that counts; by default all above 0.
    transform, metric, initial, seed
        See `medpipe.steps.registration.register_images`.
    fixed_to_moving : ndarray, shape (4, 4), optional
        The result of `register_images` for this pair; nothing is registered then,
        so several labels need one registration.

    Returns
    -------
    Tensor of bool, shape (X, Y, Z)

    Raises
    ------
    StepError
        If the registration fails, or the object is absent from the atlas or lies
        outside the image.
    """
    fixed, moving, labels = as_image(image), as_image(atlas), as_image(atlas_labels)
    values = _one_channel(labels, "label map of the atlas")
    chosen = values > 0 if label is None else values == label
    what = "the label map of the atlas is empty" if label is None else "the atlas has no such label"
    _check(chosen, what, "choose another label", None if label is None else f"{label}")
    if fixed_to_moving is None:
        # 0 would tell SimpleITK to take the seed from the clock
        fixed_to_moving, _ = register_images(
            fixed, moving, transform, metric, initial, seed=seed + 1
        )
    placed: Affine = np.asarray(np.linalg.solve(fixed_to_moving, affine_of(labels)), np.float64)
    shape = (fixed.shape[1], fixed.shape[2], fixed.shape[3])
    # a mask interpolated linearly and cut at 1/2 has a smoother surface than the nearest label
    share = sample_grid(chosen[None].float(), placed, affine_of(fixed), shape, "linear", 0.0, True)[
        0
    ]
    mask = (share >= 0.5).to(fixed.device)
    _check(mask, "the object of the atlas lies outside the image", "check the registration")
    return _useful(mask)


def _one_channel(image: MetaTensor, role: str) -> torch.Tensor:
    """Return the only channel of an image, (X, Y, Z)."""
    if image.shape[0] != 1:
        raise StepError(f"the {role} has several channels", expected="one", got=str(image.shape[0]))
    return image.as_tensor()[0]


def _opened(mask: torch.Tensor, grid: MetaTensor, radius_mm: float) -> torch.Tensor:
    """Return a mask opened by a ball."""
    affine = affine_of(grid)
    if not 0 < radius_mm < float("inf"):
        raise UsageError("open_mm is wrong", expected="0 or more", got=f"{radius_mm:g}")
    if is_sheared(affine):
        raise StepError("the grid is sheared", expected="perpendicular axes", hint="resample first")
    x, y, z = (float(s) for s in spacing_mm(affine))
    return open_ball(mask, radius_mm, (x, y, z))


def _check(mask: torch.Tensor, what: str, hint: str, got: str | None = None) -> None:
    """Raise StepError if a mask is empty."""
    if not bool(mask.any()):
        raise StepError(f"the pre-segmentation is empty: {what}", got=got, hint=hint)


def _useful(mask: torch.Tensor) -> torch.Tensor:
    """Return a mask that has a surface."""
    if bool(mask.all()):
        raise StepError(
            "the pre-segmentation fills the whole image, so it has no surface",
            hint="choose another threshold or label, or an image with a margin",
        )
    return mask
