"""Orientation, resampling, cropping and padding, exact in world millimetres."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_from_parts, axis_codes, to_mm
from medpipe.geometry import spacing_mm as spacing_of
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    check_triple,
    fill_value,
    mask_of,
    read_key,
    rewrap,
)
from medpipe.steps._sampling import sample_grid
from medpipe.types import Affine

__all__ = [
    "CropForeground",
    "CropForegroundD",
    "CropForegroundDict",
    "CropForegroundd",
    "CropOrPad",
    "CropOrPadD",
    "CropOrPadDict",
    "CropOrPadd",
    "Orient",
    "OrientD",
    "OrientDict",
    "Orientd",
    "Resample",
    "ResampleD",
    "ResampleDict",
    "Resampled",
    "rectilinear_grid",
]

MAX_VOXELS = 2**31
"""Largest output grid; beyond it a wrong spacing is likelier than a wish."""

Mode = Literal["linear", "nearest", "cubic"]

AXES = ("LR", "PA", "IS")


class Orient(ArrayStep):
    """Flip and permute the voxel axes until they point as asked; no value changes.

    Own code instead of MONAI's `Orientation`, so that the naming of axes is
    that of `medpipe.geometry.axis_codes` also for strongly oblique affines and
    does not depend on a ``"space"`` entry in the metadata.

    Parameters
    ----------
    axcodes : str
        The world direction of each voxel axis, e.g. ``"RAS"`` or ``"LPS"``.

    Raises
    ------
    UsageError
        If `axcodes` does not name each of R/L, A/P and S/I once.
    """

    def __init__(self, axcodes: str = "RAS") -> None:
        known = sorted(axcodes.translate(str.maketrans("LPI", "RAS"))) == ["A", "R", "S"]
        if not known:
            raise UsageError(
                "axcodes is wrong", expected="one each of R/L, A/P, S/I", got=repr(axcodes)[:40]
            )
        self.axcodes = axcodes

    def __call__(self, img: Any) -> MetaTensor:
        """Return the image (C, I, J, K) with its axes reordered and its affine to match."""
        image = as_image(img)
        affine = affine_of(image)
        world = [next(w for w in AXES if c in w) for c in axis_codes(affine)]
        order = [world.index(next(w for w in AXES if c in w)) for c in self.axcodes]
        flips = [n for n, a in enumerate(order) if axis_codes(affine)[a] != self.axcodes[n]]
        data = image.as_tensor().permute(0, *(1 + a for a in order)).flip([1 + n for n in flips])
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for n, a in enumerate(order):
            step[a, n] = -1 if n in flips else 1
            step[a, 3] = image.shape[1 + a] - 1 if n in flips else 0
        return rewrap(image, data, affine @ step)


class Orientd(DictStep):
    """Flip and permute the voxel axes until they point as asked; no value changes.

    Parameters
    ----------
    keys : keys of the images
    axcodes : str
        The world direction of each voxel axis, e.g. ``"RAS"`` or ``"LPS"``.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self, keys: KeysCollection, axcodes: str = "RAS", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = Orient(axcodes)


def rectilinear_grid(
    affine: Affine,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    deshear: bool = True,
) -> tuple[Affine, tuple[int, int, int]]:
    """Return the grid of a given spacing that covers the field of view of another.

    The field of view is that of the voxels as boxes, not of their centres, and
    both grids have the same centre; so 10 voxels of 1 mm become 5 of 2 mm.

    Axes that are perpendicular are kept. Of a sheared grid the two axes with
    the finest spacing are kept, and the third is made perpendicular to them: a
    CT with a tilted gantry keeps its slice planes, as dcm2niix does. The
    handedness of the grid is kept.

    Parameters
    ----------
    affine : ndarray, shape (4, 4)
    shape : tuple of int
    spacing : tuple of float
        Wanted distance of the voxel centres along each voxel axis, in mm.
    deshear : bool
        Whether to make a sheared grid rectilinear; otherwise its axes stay.

    Returns
    -------
    affine : ndarray, shape (4, 4)
    shape : tuple of int
    """
    old = spacing_of(affine)
    unit = affine[:3, :3] / old
    axes = unit.copy()
    if deshear:
        done: list[int] = []
        for a in np.argsort(old, kind="stable"):
            for b in done:
                axes[:, a] -= (axes[:, a] @ axes[:, b]) * axes[:, b]
            axes[:, a] /= np.linalg.norm(axes[:, a])
            done.append(int(a))
    # how far the old field of view reaches along each new axis, in mm
    reach = np.abs(np.linalg.solve(axes, affine[:3, :3])) @ np.asarray(shape, float)
    count = np.maximum(np.ceil(reach / np.asarray(spacing) - 1e-3), 1)
    if count.prod() > MAX_VOXELS:
        raise StepError(
            "the output grid is too large",
            expected=f"at most {MAX_VOXELS} voxels",
            got=" × ".join(f"{n:.0f}" for n in count),
            hint="use a coarser spacing_mm",
        )
    middle = to_mm(affine, (np.asarray(shape) - 1) / 2)
    out = affine_from_parts(axes, spacing, middle)
    out[:3, 3] -= out[:3, :3] @ ((count - 1) / 2)
    return out, (int(count[0]), int(count[1]), int(count[2]))


class Resample(ArrayStep):
    """Resample an image to a spacing, or to the grid of another image.

    Any affine is accepted, sheared or left-handed. Positions are computed in
    world millimetres in float64; up to half a voxel outside the outermost voxel
    centres the edge value holds, beyond it `fill`.

    Parameters
    ----------
    spacing_mm : float or list of 3 float, optional
        Wanted spacing along the voxel axes. Left out when called with `like`.
    mode : {"linear", "nearest", "cubic"}
        Use ``"nearest"`` for label maps; it keeps the dtype, the others return
        integers as float32.
    anti_alias : bool
        Smooth along axes that become coarser (Cardoso 2015,
        doi 10.1007/978-3-319-24571-3_81); never applied in mode nearest.
    deshear : bool
        Put a sheared image on a rectilinear grid (see `rectilinear_grid`).
    fill : float, optional
        Value outside the field of view; by default the smallest of the image.
    """

    def __init__(
        self,
        spacing_mm: float | list[float] | None = None,
        mode: Mode = "linear",
        anti_alias: bool = True,
        deshear: bool = True,
        fill: float | None = None,
    ) -> None:
        self.spacing_mm = None if spacing_mm is None else check_triple("spacing_mm", spacing_mm)
        self.mode = check_choice("mode", mode, get_args(Mode))
        self.anti_alias = anti_alias
        self.deshear = deshear
        self.fill = fill

    def __call__(self, img: Any, like: Any = None) -> MetaTensor:
        """Return the image (C, I, J, K) on the new grid, or on the grid of `like`."""
        if (like is None) == (self.spacing_mm is None):
            raise UsageError("resample needs one target", expected="either spacing_mm or like")
        image = as_image(img)
        affine = affine_of(image)
        if self.spacing_mm is None:
            other = as_image(like)
            target, size = affine_of(other), tuple(other.shape[1:])
        else:
            shape = tuple(image.shape[1:])
            target, size = rectilinear_grid(affine, shape, self.spacing_mm, self.deshear)
        data = image.as_tensor()
        fill = fill_value(data, self.fill, self.mode)
        moved = sample_grid(data, affine, target, size, self.mode, fill, self.anti_alias)
        return rewrap(image, moved, target)


class Resampled(DictStep):
    """Resample images to a spacing in mm, or to the grid of another image.

    Parameters
    ----------
    keys : keys of the images
    spacing_mm : float or list of 3 float, optional
        Wanted spacing along the voxel axes, in mm.
    mode : {"linear", "nearest", "cubic"}
        Interpolation; ``"nearest"`` for label maps.
    anti_alias : bool
        Smooth along axes that become coarser.
    deshear : bool
        Put a sheared image on a rectilinear grid that keeps its slice planes.
    like : str, optional
        Key of an image whose grid is taken instead of `spacing_mm`.
    fill : float, optional
        Value outside the field of view; by default the smallest of the image.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("like",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: float | list[float] | None = None,
        mode: Mode = "linear",
        anti_alias: bool = True,
        deshear: bool = True,
        like: str | None = None,
        fill: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if (like is None) == (spacing_mm is None):
            raise UsageError("resample needs one target", expected="either spacing_mm or like")
        self.like = like
        self.step = Resample(spacing_mm, mode, anti_alias, deshear, fill)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key resampled."""
        out = dict(data)
        like = None if self.like is None else read_key(data, self.like, "image to match")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], like)
        return out


def _crop_pad(image: MetaTensor, start: list[int], size: list[int], fill: float) -> MetaTensor:
    """Return voxels ``start .. start + size`` per axis, `fill` outside the image."""
    data = image.as_tensor()
    inner, where = [slice(None)], [slice(None)]
    for s, n, have in zip(start, size, data.shape[1:], strict=True):
        low, high = max(s, 0), min(s + n, have)
        inner.append(slice(low, max(high, low)))
        where.append(slice(low - s, max(high, low) - s))
    if all(w.start == 0 and w.stop == n for w, n in zip(where[1:], size, strict=True)):
        out = data[tuple(inner)].clone()
    else:
        out = torch.full((data.shape[0], *size), fill, dtype=data.dtype, device=data.device)
        if all(i.stop > i.start for i in inner[1:]):
            out[tuple(where)] = data[tuple(inner)]
    affine = affine_of(image)
    affine[:3, 3] = to_mm(affine, start)
    return rewrap(image, out, affine)


class CropForeground(ArrayStep):
    """Crop an image to the bounding box of a mask and a margin in mm.

    Parameters
    ----------
    margin_mm : float
        Kept around the box on each side, as far as the image reaches; measured
        perpendicular to the faces of the box, so also right for a shear.
    """

    def __init__(self, margin_mm: float = 0.0) -> None:
        if not margin_mm >= 0:
            raise UsageError("margin_mm is wrong", expected="0 or more", got=str(margin_mm)[:20])
        self.margin_mm = margin_mm

    def __call__(self, img: Any, mask: Any = None) -> MetaTensor:
        """Return the cropped image; without `mask` the box is that of its values above 0.

        Raises
        ------
        StepError
            If the mask is empty or on another grid.
        """
        image = as_image(img)
        inside = mask_of(image, image if mask is None else mask).any(0)
        planes = 1 / np.linalg.norm(np.linalg.inv(affine_of(image)[:3, :3]), axis=1)
        start, size = [], []
        for axis, plane_mm in enumerate(planes):
            others = [a for a in range(3) if a != axis]
            hit = torch.nonzero(inside.any(others[1]).any(others[0])).flatten()
            margin = int(np.ceil(self.margin_mm / plane_mm - 1e-6))
            low = max(int(hit[0]) - margin, 0)
            start.append(low)
            size.append(min(int(hit[-1]) + 1 + margin, inside.shape[axis]) - low)
        return _crop_pad(image, start, size, 0.0)


class CropForegroundd(DictStep):
    """Crop images to the bounding box of a mask and a margin in mm.

    Parameters
    ----------
    keys : keys of the images
    mask : str, optional
        Key of the mask; by default the box of each image's own values above 0.
    margin_mm : float
        Kept around the box on each side, as far as the image reaches.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        mask: str | None = None,
        margin_mm: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = CropForeground(margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key cropped to the same box."""
        out = dict(data)
        mask = None if self.mask is None else read_key(data, self.mask, "mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


class CropOrPad(ArrayStep):
    """Bring an image to a size by cropping or padding around a centre.

    Parameters
    ----------
    size_voxels : int or list of 3 int, optional
        Wanted size along the voxel axes.
    size_mm : float or list of 3 float, optional
        The same in mm, rounded up to whole voxels. Exactly one is given.
    fill : float, optional
        Value of padded voxels; by default the smallest of the image.
    """

    def __init__(
        self,
        size_voxels: int | list[int] | None = None,
        size_mm: float | list[float] | None = None,
        fill: float | None = None,
    ) -> None:
        if (size_voxels is None) == (size_mm is None):
            raise UsageError("crop_or_pad needs one size", expected="either size_voxels or size_mm")
        self.size_voxels = None if size_voxels is None else check_triple("size_voxels", size_voxels)
        if self.size_voxels is not None and any(n % 1 for n in self.size_voxels):
            raise UsageError("size_voxels is wrong", expected="whole numbers")
        self.size_mm = None if size_mm is None else check_triple("size_mm", size_mm)
        self.fill = fill

    def __call__(self, img: Any, center: Any = None) -> MetaTensor:
        """Return the image with the wanted size.

        The middle of the new grid lies within half a voxel of the middle of the
        old one, or of the centroid of the mask `center` when there is one.
        """
        image = as_image(img)
        affine = affine_of(image)
        if self.size_mm is None:
            size = np.asarray(self.size_voxels)
        else:
            size = np.ceil(np.asarray(self.size_mm) / spacing_of(affine) - 1e-6)
        if size.prod() > MAX_VOXELS:
            raise StepError("the output grid is too large", expected=f"at most {MAX_VOXELS} voxels")
        middle = (np.asarray(image.shape[1:]) - 1) / 2
        if center is not None:
            inside = mask_of(image, center, "mask to centre on").any(0)
            middle = np.array([float(axis.double().mean()) for axis in torch.nonzero(inside).T])
        start = np.floor(middle - (size - 1) / 2 + 0.5)
        fill = fill_value(image.as_tensor(), self.fill)
        return _crop_pad(image, [int(s) for s in start], [int(n) for n in size], fill)


class CropOrPadd(DictStep):
    """Bring images to a size by cropping or padding around a centre.

    Parameters
    ----------
    keys : keys of the images
    size_voxels : int or list of 3 int, optional
        Wanted size along the voxel axes.
    size_mm : float or list of 3 float, optional
        The same in mm, rounded up to whole voxels. Exactly one is given.
    center : str, optional
        Key of a mask whose centroid is the centre; by default the image's middle.
    fill : float, optional
        Value of padded voxels; by default the smallest of the image.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("center",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        size_voxels: int | list[int] | None = None,
        size_mm: float | list[float] | None = None,
        center: str | None = None,
        fill: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.center = center
        self.step = CropOrPad(size_voxels, size_mm, fill)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key brought to the size."""
        out = dict(data)
        center = None if self.center is None else read_key(data, self.center, "mask to centre on")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], center)
        return out


OrientD = OrientDict = Orientd
ResampleD = ResampleDict = Resampled
CropForegroundD = CropForegroundDict = CropForegroundd
CropOrPadD = CropOrPadDict = CropOrPadd
