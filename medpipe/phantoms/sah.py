"""A simulated patient with subarachnoid haemorrhage: head CT and the truth behind it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.phantoms.anatomy import Subject
from medpipe.phantoms.diffeomorphism import Warp
from medpipe.phantoms.head_ct import ct_noise
from medpipe.phantoms.sah_blood import (
    SOURCES,
    Blood,
    cistern_mm,
    clot_thickness_mm,
    compartments_ml,
    paint_parenchyma,
    paint_subarachnoid,
    paint_ventricles,
    spread_mm,
)
from medpipe.phantoms.sah_risk import THICK_ML, Covariates, draw_covariates, modified_fisher
from medpipe.phantoms.sah_template import HeadSample, ProceduralHead, Template, TemplateHead
from medpipe.phantoms.sah_warp import head_warp, random_warp, template_points
from medpipe.phantoms.shapes import Array, F, lattice
from medpipe.types import Affine, Volume

__all__ = ["SITES", "SahCase", "SahLabel", "SahScan", "simulate_patient"]

FIELD_MM = (192.0, 232.0, 172.0)
CENTRE_MM = (0.0, -2.0, 14.0)
WORK_MM = (2.0, 4.0)
"""Least and largest voxel on which the blood is laid out."""

ARTERIES = {"acom": 0.37, "ica": 0.28, "mca": 0.22, "basilar": 0.13}
"""Share of aneurysms by artery."""


class SahLabel(IntEnum):
    """Values of the label maps."""

    OTHER = 0
    BRAIN = 1
    FLUID = 2
    VENTRICLE = 3
    BLOOD_CISTERNS = 4
    BLOOD_SULCI = 5
    BLOOD_VENTRICLES = 6
    BLOOD_BRAIN = 7


@dataclass(frozen=True, slots=True)
class Site:
    """What a hospital's scanner does to an image: noise, and a kernel that smooths or sharpens."""

    name: str
    noise: float
    smooth_mm: float
    sharpen: float


SITES = (
    Site("A", 1.0, 0.0, 0.0),
    Site("B", 1.5, 0.0, 0.6),
    Site("C", 0.75, 1.1, 0.0),
    Site("D", 1.25, 0.6, 0.0),
)


@dataclass(frozen=True, slots=True)
class SahScan:
    """How the head is scanned.

    Attributes
    ----------
    spacing_mm : tuple of float
        Voxel size; along z the step of the table.
    thickness_mm : float, optional
        Thickness of a slice; default: the step.
    tilt_deg : float
        Gantry tilt; the slices lean, the affine is sheared.
    noise_hu : float
        Standard deviation of the noise in the middle of the head.
    site : int
        Index into `SITES`.
    """

    spacing_mm: tuple[float, float, float] = (2.0, 2.0, 2.0)
    thickness_mm: float | None = None
    tilt_deg: float = 0.0
    noise_hu: float = 4.0
    site: int = 0

    def __post_init__(self) -> None:
        thick = self.thickness_mm
        if not all(0.3 <= s <= 12 for s in self.spacing_mm) or (thick and not 0.3 <= thick <= 12):
            raise UsageError("no scanner has such voxels", expected="0.3..12 mm")
        if not 0 <= self.site < len(SITES):
            raise UsageError("no such site", expected=f"0..{len(SITES) - 1}", got=str(self.site))
        if abs(self.tilt_deg) > 30 or not 0 <= self.noise_hu <= 50:
            raise UsageError(
                "no scanner does this",
                expected="tilt within 30 degrees, noise 0..50 HU",
                got=f"{self.tilt_deg:g} degrees, {self.noise_hu:g} HU",
            )

    def grid(self) -> tuple[Affine, tuple[int, int, int]]:
        """Return affine and shape of the image: RAS axes, the second one leans with the gantry."""
        spacing = np.asarray(self.spacing_mm, float)
        lean = np.radians(self.tilt_deg)
        axes = np.array([[1, 0, 0], [0, np.cos(lean), 0], [0, np.sin(lean), 1]])
        shape = tuple(int(np.ceil(f / s)) for f, s in zip(FIELD_MM, spacing, strict=True))
        affine = np.eye(4)
        affine[:3, :3] = axes * spacing
        affine[:3, 3] = CENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
        return affine, shape  # type: ignore[return-value]


@dataclass(slots=True)
class SahCase:
    """One CT of a simulated patient and the truth behind it.

    Attributes
    ----------
    volume : Volume
        Whole HU as int16, noise included.
    labels : ndarray of uint8, shape (I, J, K)
        `SahLabel` of each voxel; a voxel with a quarter of blood is blood.
    facts : dict
        JSON facts: seed, artery, side, deformation, blood in ml by
        compartment, thickness of the clot, covariates as painted.
    warp : Warp
        Takes points of the image to the undeformed head.
    """

    volume: Volume
    labels: NDArray[np.uint8]
    facts: dict[str, Any]
    warp: Warp


def simulate_patient(
    seed: int,
    covariates: Covariates | None = None,
    *,
    scan: SahScan | None = None,
    repeat: int = 0,
    template: Template | None = None,
) -> SahCase:
    """Simulate one CT of one patient.

    Parameters
    ----------
    seed : int
        The patient; the same seed gives the same bytes.
    covariates : mapping, optional
        One patient of `draw_covariates`; default: drawn from the seed.
    scan : SahScan, optional
        Voxels, noise, tilt, site.
    repeat : int
        Another CT of the same patient: other pose and noise.
    template : Template, optional
        A real head to paint the blood into, instead of the procedural one.
    """
    scan = scan or SahScan()
    drawn = covariates or draw_covariates(1, np.random.default_rng([seed, 20]))
    wanted = {name: float(np.asarray(value).reshape(-1)[0]) for name, value in drawn.items()}
    rng = np.random.default_rng([seed, 21])
    artery = str(rng.choice(list(SOURCES), p=[ARTERIES[a] for a in SOURCES]))
    side = float(rng.choice((-1.0, 1.0)))
    clot_hu = float(np.clip(rng.normal(66, 4), 58, 75))
    subject = _subject(rng, seed, repeat, wanted)
    head = TemplateHead(template, subject) if template else ProceduralHead(seed, subject)
    warp, shift = head_warp(
        random_warp((seed, 22)), head.to_template, -side * wanted["shift_mm"], head.spread
    )
    affine, _ = scan.grid()
    work = scan if _is_fine(scan) else SahScan((_work_mm(scan),) * 3)
    grid = work.grid()
    points = _points(*grid)
    inner = warp(points)
    sample = head.sample(inner, max(work.spacing_mm))
    q = template_points(head.to_template, inner)
    lumps = lattice(seed * 8 + 130, 30.0)
    blood = _bleed(sample, q, points[..., 1], wanted, work.spacing_mm, (artery, side), lumps)
    facts = _truth(sample, q, blood, work.spacing_mm, head)
    if work is scan:
        hu, labels = _image(sample, blood, clot_hu), _labels(sample, q, blood)
    else:
        hu, labels = _resampled(head, warp, blood, grid, scan, clot_hu)
    image = _scanned(hu, scan, (seed, 24, repeat))
    facts |= {
        "seed": seed,
        "repeat": repeat,
        "head": head.name,
        "artery": artery,
        "side": "right" if side > 0 else "left",
        "shift_mm": abs(shift),
        "clot_hu": clot_hu,
        "ventricles": subject.ventricles,
        "atrophy_mm": subject.atrophy_mm,
        "deformation_mm": float(np.linalg.norm(warp.displacement, axis=0).max()),
        "least_jacobian": float(warp.jacobian().min()),
    }
    ml = facts["blood_ml"]
    facts["covariates"] = wanted | {
        "sah_ml": ml["cisterns"] + ml["sulci"],
        "ivh_ml": ml["ventricles"],
        "ich_ml": ml["parenchyma"],
        "shift_mm": abs(shift),
    }
    source = {"kind": "phantom", "modality": "CT", "seed": seed, "simulated": True}
    return SahCase(Volume(image, affine, source), labels, facts, warp)


def _subject(rng: np.random.Generator, seed: int, repeat: int, wanted: dict[str, float]) -> Subject:
    """Return a head whose ventricles and sulci are those of its age, in the pose of one CT."""
    aged = (wanted["age_years"] - 20) / 70
    size = rng.normal(1.0 if wanted.get("sex", 0) < 0.5 else 0.97, 0.02)
    scale = np.clip(size * rng.normal(1.0, 0.015, 3), 0.9, 1.07)
    ventricles = 0.88 + 0.5 * aged**1.5 + rng.normal(0, 0.06) + 0.02 * wanted["ivh_ml"]
    atrophy = 0.05 + 0.6 * aged + rng.normal(0, 0.06)
    skull = rng.uniform(5.5, 7.5)
    pose = np.random.default_rng([seed, 23, repeat])
    tilt = np.clip(pose.normal(0, (4.0, 1.5, 2.0)), -8, 8)
    shift = np.clip(pose.normal(0, (2.0, 3.0, 2.0)), -4, 4)
    return Subject(
        scale=tuple(scale.tolist()),
        tilt_deg=tuple(tilt.tolist()),
        shift_mm=tuple(shift.tolist()),
        ventricles=float(np.clip(ventricles, 0.8, 1.8)),
        atrophy_mm=float(max(atrophy, 0.0)),
        skull_mm=float(skull),
    )


def _is_fine(scan: SahScan) -> bool:
    """Return whether the image's own voxels serve to lay out the blood."""
    alike = all(1.5 <= s <= WORK_MM[1] for s in scan.spacing_mm)
    return alike and scan.tilt_deg == 0 and (scan.thickness_mm or 0) <= WORK_MM[1]


def _work_mm(scan: SahScan) -> float:
    """Return the voxel size on which the blood is laid out for an image of other voxels."""
    return float(np.clip(min(scan.spacing_mm), *WORK_MM))


def _points(affine: Affine, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def _bleed(
    sample: HeadSample,
    q: tuple[Array, Array, Array],
    height_mm: NDArray[np.float64],
    wanted: dict[str, float],
    spacing_mm: tuple[float, float, float],
    where: tuple[str, float],
    lumps: Any,
) -> Blood:
    """Lay out the blood, the haematoma first: it takes the place of sulci too."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    soft = sample.brain + sample.fluid
    inside, oedema = paint_parenchyma(q, soft, wanted["ich_ml"], voxel_ml, *where, lumps)
    sah = wanted["sah_ml"]
    thickness = 5.0 + 0.25 * sah if sah >= THICK_ML else 0.35 + 0.05 * sah
    outside = paint_subarachnoid(
        spread_mm(q, *where, lumps), sample.fluid * (1 - inside), sah, thickness, spacing_mm
    )
    settled = paint_ventricles(height_mm.astype(F), sample.ventricle, wanted["ivh_ml"], voxel_ml)
    return Blood(outside, settled, inside, oedema)


def _truth(
    sample: HeadSample,
    q: tuple[Array, Array, Array],
    blood: Blood,
    spacing_mm: tuple[float, float, float],
    head: ProceduralHead | TemplateHead,
) -> dict[str, Any]:
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    fluid = sample.fluid * (1 - blood.parenchymal)
    ml = compartments_ml(q, fluid, sample.ventricle, sample.brain + sample.fluid, blood, voxel_ml)
    thickness = clot_thickness_mm(fluid * blood.subarachnoid, spacing_mm)
    return {
        "blood_ml": ml,
        "clot_thickness_mm": thickness,
        "modified_fisher": int(modified_fisher(thickness, ml["ventricles"])),
        "ventricles_ml": float(sample.ventricle.sum(dtype=float) * voxel_ml),
        "fluid_ml": float(sample.fluid.sum(dtype=float) * voxel_ml),
        "brain_ml": float(sample.brain.sum(dtype=float) * voxel_ml),
    }


def _image(sample: HeadSample, blood: Blood, clot_hu: float) -> Array:
    """Return noise-free HU: blood takes the place of what was there."""
    inside = blood.parenchymal
    fresh = sample.fluid * (1 - inside) * blood.subarachnoid * F(clot_hu - 8)
    settled = sample.ventricle * blood.ventricular * F(clot_hu - 4 - 6)
    clot = inside * (sample.brain * F(clot_hu + 3 - 33) + sample.fluid * F(clot_hu + 3 - 8))
    return sample.hu + fresh + settled + clot - F(9) * blood.oedema


def _labels(sample: HeadSample, q: tuple[Array, Array, Array], blood: Blood) -> NDArray[np.uint8]:
    parts = np.stack([np.full_like(sample.hu, 0.4), sample.brain, sample.fluid, sample.ventricle])
    out = parts.argmax(0).astype(np.uint8)
    fluid = sample.fluid * (1 - blood.parenchymal)
    fresh = fluid * blood.subarachnoid > 0.25
    basal = cistern_mm(q) < 3
    out[fresh & basal], out[fresh & ~basal] = SahLabel.BLOOD_CISTERNS, SahLabel.BLOOD_SULCI
    out[sample.ventricle * blood.ventricular > 0.25] = SahLabel.BLOOD_VENTRICLES
    out[(sample.brain + sample.fluid) * blood.parenchymal > 0.5] = SahLabel.BLOOD_BRAIN
    return out


def _resampled(
    head: ProceduralHead | TemplateHead,
    warp: Warp,
    blood: Blood,
    grid: tuple[Affine, tuple[int, int, int]],
    scan: SahScan,
    clot_hu: float,
) -> tuple[Array, NDArray[np.uint8]]:
    """Return image and labels on the scan's grid: the mean over the thickness of each slice."""
    affine, shape = scan.grid()
    to_work = np.linalg.inv(grid[0])
    edge = max(scan.spacing_mm[:2])
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    thick = scan.thickness_mm or scan.spacing_mm[2]
    parts = 1 + 2 * int(np.ceil(max(thick / max(2.0, edge) - 1, 0) / 2))  # odd: one is central
    hu = np.empty(shape, F)
    labels = np.empty(shape, np.uint8)
    plane = _points(affine, (shape[0], shape[1], 1))[:, :, 0]
    for k in range(shape[2]):
        total = np.zeros(shape[:2], F)
        for part in range(parts):
            off = ((part + 0.5) / parts - 0.5) * thick
            points = plane + k * affine[:3, 2] + off * normal
            inner = warp(points)
            sample = head.sample(inner, edge)
            at = np.moveaxis(points @ to_work[:3, :3].T + to_work[:3, 3], -1, 0)
            there = Blood(
                *(
                    ndimage.map_coordinates(a, at, order=1, mode="nearest")
                    for a in (
                        blood.subarachnoid,
                        blood.ventricular,
                        blood.parenchymal,
                        blood.oedema,
                    )
                )
            )
            total += _image(sample, there, clot_hu)
            if part == parts // 2:
                q = template_points(head.to_template, inner)
                labels[:, :, k] = _labels(sample, q, there)
        hu[:, :, k] = total / parts
    return hu, labels


def _scanned(hu: Array, scan: SahScan, seed: tuple[int, ...]) -> NDArray[np.int16]:
    """Return whole HU with the site's kernel and noise."""
    site = SITES[scan.site]
    pixel = scan.spacing_mm[0]
    if site.smooth_mm:
        hu = ndimage.gaussian_filter(hu, [site.smooth_mm / s for s in scan.spacing_mm[:2]] + [0])
    if site.sharpen:
        dull = ndimage.gaussian_filter(hu, [1.2 / pixel, 1.2 / pixel, 0])
        hu = hu + F(site.sharpen) * (hu - dull)
    if scan.noise_hu:
        noisy = np.empty_like(hu)
        for k in range(hu.shape[2]):
            one = hu[:, :, k]
            noisy[:, :, k] = one + ct_noise(one, scan.noise_hu * site.noise, (*seed, k))
        hu = noisy
    return np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
