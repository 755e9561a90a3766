"""Remarks that an image's numbers alone justify, in the form of findings."""

from __future__ import annotations

import numpy as np

from medpipe.figures.histogram import Statistics
from medpipe.geometry import axis_codes, is_sheared, shear_angle_deg, spacing_mm
from medpipe.types import Affine, Finding, Severity

__all__ = ["geometry_flags", "obliquity_deg", "value_flags"]

ANISOTROPY = 3.0
OBLIQUE_DEG = 5.0
CONSTANT_SHARE = 0.97


def obliquity_deg(affine: Affine) -> float:
    """Return the largest angle between a voxel axis and its nearest world axis, in degrees."""
    unit = affine[:3, :3] / spacing_mm(affine)
    rows = [next(w for w, n in enumerate(("LR", "PA", "IS")) if c in n) for c in axis_codes(affine)]
    cosines = [abs(unit[w, v]) for v, w in enumerate(rows)]
    return float(np.degrees(np.arccos(np.clip(min(cosines), 0, 1))))


def geometry_flags(affine: Affine, shape: tuple[int, ...]) -> list[Finding]:
    """Return remarks about the grid: shear, obliquity, anisotropy, single slices, odd sizes."""
    found = []

    def say(check: str, severity: Severity, message: str) -> None:
        found.append(Finding(f"qc.{check}", severity, message))

    step = spacing_mm(affine)
    if is_sheared(affine):
        angle = shear_angle_deg(affine)
        say("sheared", Severity.WARNING, f"sheared grid: the axes are {angle:.1f}° from square")
    elif obliquity_deg(affine) > OBLIQUE_DEG:
        angle = obliquity_deg(affine)
        say("oblique", Severity.INFO, f"oblique grid: {angle:.1f}° from the patient's axes")
    ratio = float(step.max() / step.min())
    if ratio >= ANISOTROPY:
        say("anisotropic", Severity.INFO, f"anisotropic voxels, 1:{ratio:.3g}")
    if min(shape) == 1:
        say("single_slice", Severity.INFO, "a single slice")
    extent = step * np.array(shape)
    if extent.max() < 10 or extent.max() > 2500:
        longest = f"the longest side is {extent.max():.4g} mm"
        say("extent", Severity.WARNING, f"{longest}; the spacing may be in another unit")
    return found


def value_flags(stats: Statistics) -> list[Finding]:
    """Return remarks about the values: empty, NaN, constant, saturated, HU without offset."""
    found = []

    def say(check: str, severity: Severity, message: str) -> None:
        found.append(Finding(f"qc.{check}", severity, message))

    if stats.n_voxels == 0:
        say("empty", Severity.ERROR, "the image holds no voxels")
        return found
    bad = 100 * (stats.n_nan + stats.n_inf) / stats.n_voxels
    if bad:
        severity = Severity.ERROR if bad > 50 else Severity.WARNING
        say("not_finite", severity, f"{bad:.3g} % of the voxels are NaN or infinite")
    if stats.low is None or stats.high is None:
        return found
    if stats.constant:
        say("constant", Severity.ERROR, f"every finite voxel is {stats.low:g}")
        return found
    if stats.distinct <= 64 and stats.integer:
        say("few_values", Severity.INFO, f"only {stats.distinct} different values: a label map?")
        return found
    if stats.mode_share >= CONSTANT_SHARE:
        share = 100 * stats.mode_share
        say("mostly_constant", Severity.WARNING, f"{share:.3g} % of the voxels are {stats.mode:g}")
    if _hu_without_offset(stats):
        say("hu_offset", Severity.WARNING,
            "values look like Hounsfield units without their offset of 1024 or 1000")  # fmt: skip
    if stats.high <= stats.percentiles["p99"]:
        say("saturated", Severity.WARNING,
            f"at least 1 % of the voxels are at the highest value, {stats.high:g}")  # fmt: skip
    return found


def _hu_without_offset(stats: Statistics) -> bool:
    """Whole numbers from 0, much air near 0, and a soft tissue peak where water plus 1024 lies."""
    low, high = stats.low or 0.0, stats.high or 0.0
    if not (stats.integer and low >= 0 and 1500 <= high <= 5000 and stats.distinct > 64):
        return False
    edges, counts = np.array(stats.edges), np.array(stats.counts, float)
    middle = (edges[1:] + edges[:-1]) / 2
    total = counts.sum() + stats.above
    tissue = counts[(middle > 900) & (middle < 1150)].sum() / total
    around = counts[((middle > 500) & (middle < 800)) | ((middle > 1250) & (middle < 1550))].sum()
    return bool(tissue > 0.05 and tissue > 1.5 * around / total)
