"""Heads to paint a haemorrhage into: the procedural one, or a CT template from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.errors import InputError
from medpipe.io.nifti import read_nifti
from medpipe.phantoms.anatomy import HeadAnatomy, HeadLabel, Subject
from medpipe.phantoms.head_ct import HU
from medpipe.phantoms.sah_blood import cistern_mm, fissure_mm
from medpipe.phantoms.sah_warp import template_points
from medpipe.phantoms.shapes import Array, F, capsule, ellipsoid
from medpipe.types import Affine

__all__ = ["HeadSample", "ProceduralHead", "Template", "TemplateHead", "load_template"]

_FLUID = (HeadLabel.CSF,)
_BRAIN = tuple(label for label in HeadLabel if HeadLabel.GREY <= label <= HeadLabel.BRAINSTEM)

FINEST_MM = 2.0
"""A finer template is resampled: the images that are made of it are no finer in what they show."""
BONE_HU = 250.0
OPENING_MM = 10.0
"""Radius of a ball that fits into the brain, but not through the holes of the skull's base."""
AVERAGED_HU = 0.2
"""A template with less noise is a mean of many heads, as stripped ones are; their cisterns are
blurred, and those of the procedural head are opened in them."""
_PROFILE = (
    (0.0, 1.5, 2.0, 3.5, 6.5, 8.0, 8.8, 13.0, 14.0),
    (8, 8, 900, 500, 500, 950, 40, -20, -1000),
)
"""HU by distance in mm from a stripped brain: fluid, bone, scalp."""


@dataclass(slots=True)
class HeadSample:
    """A head without blood at some points.

    Attributes
    ----------
    hu : ndarray of float32
        Noise-free HU.
    fluid, ventricle, brain : ndarray of float32
        Share of fluid outside the ventricles, of ventricle, and of brain.
    """

    hu: Array
    fluid: Array
    ventricle: Array
    brain: Array


def _to_template(subject: Subject) -> Affine:
    out = np.eye(4)
    out[:3, :3] = subject.to_template()
    out[:3, 3] = -out[:3, :3] @ np.asarray(subject.shift_mm)
    return out


class ProceduralHead:
    """The head of `HeadAnatomy`, without a headrest.

    Attributes
    ----------
    to_template : ndarray, shape (4, 4)
        World RAS mm to the template frame.
    """

    name: ClassVar[str] = "procedural"
    spread: ClassVar[float] = 1.0

    def __init__(self, seed: int, subject: Subject) -> None:
        self._anatomy = HeadAnatomy(seed, subject=subject, table=False)
        self.to_template = _to_template(subject)
        columns = [
            [HU[label], label in _FLUID, label is HeadLabel.VENTRICLE, label in _BRAIN]
            for label in HeadLabel
        ]
        self._table = np.array(columns, F)

    def sample(self, points_mm: NDArray[np.float64], edge_mm: float) -> HeadSample:
        """Return the head at RAS mm points (..., 3), tissues blended over `edge_mm`."""
        values = self._anatomy.paint(points_mm, self._table, edge_mm)[1]
        return HeadSample(*(np.ascontiguousarray(values[..., i]) for i in range(4)))


@dataclass(frozen=True, eq=False, slots=True)
class Template:
    """A head CT from a file, with its fluid and brain told apart.

    Attributes
    ----------
    values : ndarray of float32, shape (4, I, J, K)
        HU and the shares of fluid, ventricle and brain.
    from_frame : ndarray, shape (4, 4)
        Template frame of `HeadAnatomy` to voxels.
    stripped : bool
        Whether the file held the brain alone: skull and scalp were added.
    """

    values: Array
    from_frame: Affine
    stripped: bool


class TemplateHead:
    """A template in the pose, at the size and at the age of one subject."""

    name: ClassVar[str] = "template"

    def __init__(self, template: Template, subject: Subject) -> None:
        self._template = template
        self.to_template = _to_template(subject)
        self.spread = float(np.clip(1 + 0.5 * (subject.ventricles - 1), 0.9, 1.3))
        self._widen = 1 + 1.2 * (subject.atrophy_mm - 0.25)

    def sample(self, points_mm: NDArray[np.float64], edge_mm: float) -> HeadSample:
        """Return the head at RAS mm points (..., 3); a file's own sharpness bounds `edge_mm`."""
        q = np.stack(template_points(self.to_template, points_mm))
        m = self._template.from_frame
        at = np.tensordot(m[:3, :3], q, 1) + m[:3, 3].reshape(3, *(1,) * (q.ndim - 1))
        outside = (-1000.0, 0.0, 0.0, 0.0)
        hu, fluid, ventricle, brain = (
            ndimage.map_coordinates(a, at, order=1, cval=c).astype(F)
            for a, c in zip(self._template.values, outside, strict=True)
        )
        wide = np.clip(fluid * F(self._widen), 0, np.maximum(1 - ventricle, 0))
        more = np.minimum(wide - fluid, brain)
        return HeadSample(hu - more * F(25), fluid + more, ventricle, brain - more)


def load_template(path: Path) -> Template:
    """Read a head CT or a stripped CT template and tell fluid and brain apart.

    HU are taken as they are; values of the Cormack scale of the templates of
    Rorden (doi:10.1016/j.neuroimage.2012.03.020), which has no negative ones
    and stretches -124..76 HU elevenfold, are turned back into HU. The head
    should lie straight: its place comes from the extent of the skull's inside.

    Raises
    ------
    InputError
        If there is no head in the file.
    """
    volume = read_nifti(path)
    data, affine = _canonical(np.asarray(volume.data, F), volume.affine)
    hu = np.maximum(_hounsfield(data), -1000)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stripped = float((hu > BONE_HU).sum() * np.prod(spacing)) < 100e3
    inside = _solid(hu, spacing) if stripped else _endocranial(hu, spacing)
    ml = float(inside.sum() * np.prod(spacing)) / 1000
    if not 600 <= ml <= 2500:
        raise InputError(
            "no head was found in the template",
            expected="600..2500 ml inside the skull",
            got=f"{ml:.0f} ml",
            hint="give an upright head CT in HU, or a stripped brain",
        )
    frame = _frame(inside, affine)
    values = _shares(hu, inside, np.asarray(np.linalg.inv(frame), np.float64), stripped, spacing)
    return Template(values, frame, stripped)


def _canonical(data: Array, affine: Affine) -> tuple[Array, Affine]:
    """Return the image with axes R, A, S and voxels of 2 mm or more."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(data, affine))
    data, affine = np.asarray(image.dataobj, F), np.asarray(image.affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.maximum(1.0, FINEST_MM / spacing)
    if (step > 1.01).any():
        data = ndimage.gaussian_filter(data, 0.4 * (step - 1))
        shape = np.floor((np.array(data.shape) - 1) / step).astype(int) + 1
        data = ndimage.affine_transform(data, step, output_shape=tuple(shape), order=1)
        affine = affine @ np.diag([*step, 1.0])
    return data, affine


def _hounsfield(data: Array) -> Array:
    """Return HU; values without negatives that reach beyond 1500 are Cormack's."""
    if data.min() < -1 or data.max() < 1500:
        return data
    return np.interp(data, (0, 900, 3100, 6000), (-1024, -124, 76, 2976)).astype(F)


def _solid(hu: Array, spacing: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the brain of a stripped template: what differs from its corner, filled."""
    mask = (np.abs(hu - hu[0, 0, 0]) > 1) & (hu > -50)
    mask = _largest(mask)
    closed = ndimage.binary_closing(np.pad(mask, 6), iterations=max(1, round(4 / spacing.min())))
    return ndimage.binary_fill_holes(closed)[6:-6, 6:-6, 6:-6]


def _endocranial(hu: Array, spacing: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the inside of the skull: soft matter that no narrow passage joins to the face."""
    smooth = ndimage.gaussian_filter(hu, 0.8 / spacing)
    soft = (smooth > -15) & (smooth < 110)
    reach = ndimage.distance_transform_edt(soft, sampling=spacing)
    core = _largest(reach > OPENING_MM)
    near = ndimage.distance_transform_edt(~core, sampling=spacing) < OPENING_MM + 0.5
    inside = near & (soft | (smooth < 150) & (smooth > -30))
    return ndimage.binary_fill_holes(inside)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask
    return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])


def _frame(inside: NDArray[np.bool_], affine: Affine) -> Affine:
    """Return template frame → voxels: the skull's inside is 138 mm wide, 172 long, its top at 73.

    These are the figures of `anatomy.endocranium`.
    """
    at = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    low, high = np.percentile(at, 0.1, axis=0), np.percentile(at, 99.9, axis=0)
    scale = np.array([138, 172, 0]) / np.maximum(high - low, 1)
    scale[2] = (scale[0] + scale[1]) / 2
    middle = (low + high) / 2
    to_frame = np.diag([*scale, 1.0])
    to_frame[:3, 3] = (-scale[0] * middle[0], -4 - scale[1] * middle[1], 73 - scale[2] * high[2])
    return np.asarray(np.linalg.inv(to_frame @ affine), float)


def _shares(
    hu: Array,
    inside: NDArray[np.bool_],
    to_frame: Affine,
    stripped: bool,
    spacing: NDArray[Any],
) -> Array:
    at = np.nonzero(inside)
    smooth = ndimage.gaussian_filter(hu, 0.7 / spacing)
    q = template_points(to_frame, np.stack(at, -1).astype(np.float64))
    basal, central = cistern_mm(q), ventricles_mm(q)
    # White matter is darker than the mean brain. Where fluid is expected, less will do.
    brain_hu = float(np.median(smooth[at]))
    expected = np.minimum(np.minimum(basal, fissure_mm(q)), central + 3) < 2
    below = brain_hu * np.where(expected, F(0.9), F(0.7))
    low = float(np.clip(np.percentile(smooth[at], 0.5), 2, 0.45 * brain_hu))
    shown = np.clip((below - smooth[at]) / (below - low), 0, 1)
    # Averaging and thick slices have closed cisterns and the space under the arachnoid.
    depth = ndimage.distance_transform_edt(inside, sampling=spacing)[at]
    fluid = np.where(expected, np.minimum(2 * shown, 1), shown)
    noise = float(np.median(np.abs(hu - smooth)[at]))
    if stripped or noise < AVERAGED_HU:
        fluid = np.maximum(fluid, 0.9 * np.clip(-0.5 * basal, 0, 1))
    fluid = np.maximum(fluid, 0.6 * np.clip(1 - depth / 3, 0, 1))
    values = np.zeros((4, *hu.shape), F)
    values[0] = hu
    values[0][at] -= (fluid - shown) * np.clip(hu[at] - 8, 0, 60)
    values[1][at] = fluid * (central >= 0)
    values[2][at] = fluid * (central < 0)
    values[3][at] = (1 - fluid) * (smooth[at] < 110)
    if stripped:
        away = ndimage.distance_transform_edt(~inside, sampling=spacing)
        values[0] = np.where(inside, values[0], np.interp(away, *_PROFILE))
        values[1][(away > 0) & (away <= 1.6)] = 1
    return values


def ventricles_mm(q: tuple[Array, Array, Array]) -> Array:
    """Return the signed distance to the region that holds the ventricles, in the template frame."""
    h = (np.abs(q[0]), q[1], q[2])
    out = capsule(h, (9, 26, 8), (13, -20, 19), 9.5)
    out = np.minimum(out, capsule(h, (13, -20, 18), (25, -42, 5), 9.5))
    out = np.minimum(out, capsule(h, (25, -42, 4), (24, -64, 3), 6.5))
    out = np.minimum(out, ellipsoid(h, (0, -6, 0), (5, 16, 11)))
    return np.minimum(out, ellipsoid(h, (0, -38, -33), (9, 7, 10)))
