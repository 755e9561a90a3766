"""Retinal boundaries against manual marks and against true subvoxel positions.

    python benchmarks/oct_surfaces.py RING.nii.gz MANUAL.csv

(a) The nine boundaries that `oct_layers` finds in a real ring scan, the mean unsigned
distance from the manual ones, per boundary, and the proof of each cut.

(b) Super-resolution: the depth of a scan, as it is looked at, is averaged over 2, 4 and
8 samples, and surfaces are found on the coarse samples by `OptimalSurfaces`, once with
nodes half way between the samples and once with nodes moved to where the slopes place
the edge. Costs, weights and limits are the same in both arms and for all factors; only
the positions of the nodes differ. Errors are distances from the positions on the full
scan. What stays at a factor of 1 is the floor that resolution cannot lower: noise, and
for the real scan the habits of the person who marked it. Three scans:

- `real_ring`: ILM and Bruch's membrane, the outermost; the ellipsoid zone is found with
  them so that Bruch's membrane is not mistaken, and not counted. Truth: manual marks.
- `retina_phantom`: the same on a simulated volume. Truth: the steepest place of the
  compressed image without speckle, rendered eight times finer. The physical boundary
  lies elsewhere (`visible_minus_physical_um`), by the compression of the display alone,
  and no arm can see it.
- `wavy_steps`: a volume of two smooth surfaces between dark and bright, blurred by a
  symmetric point spread function, with speckle; nothing but sampling and noise matters.

Where a layer is thinner than a sample (the pigment epithelium above Bruch's membrane is
20 µm, a sample at a factor of 8 is 31 µm) its two edges merge, and both arms are off
alike. A part of such an error is the same everywhere, as is the habit of a reader, so
the error is also given less the median offset of the surface; the offset of one half of
the A-scans is taken from the other half, and each arm has its own.

MANUAL.csv holds depths in samples, a row an A-scan; its first sample is number 1.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import spread, versions, write_results
from monai.data.meta_tensor import MetaTensor
from scipy.special import erf

from medpipe.graphcut.retina import BOUNDARIES
from medpipe.graphcut.transforms.retina import OctLayers
from medpipe.graphcut.transforms.surfaces import OptimalSurfaces
from medpipe.phantoms.retina_oct import retina_oct

FIRST_SAMPLE = 1
"""Number of the first sample in the manual marks. Read as 0-based, every sharp boundary
lies one sample (3.9 µm) too deep; the result states both readings."""

EXPONENT = 0.25
"""The fourth root of stored intensities is what is looked at, and what is averaged."""

FACTORS = (1, 2, 4, 8)
COUNTED = {"ILM": 0, "BM": -1}
RETINA: dict[str, Any] = {"edges": ["dark_to_bright", "dark_to_bright", "bright_to_dark"]}
RING: dict[str, Any] = RETINA | {
    "min_separation_mm": [0.1, 0.042],
    "max_separation_mm": [0.5, 0.08],
    "lateral_mm": 0.06,
    "weight": 8.0,
}
PHANTOM: dict[str, Any] = RETINA | {
    "min_separation_mm": [0.1, 0.03],
    "max_separation_mm": [0.55, 0.1],
    "lateral_mm": 0.02,
    "weight": 2.0,
}
"""A-scans are four times as far apart as in the ring, so a fourth of the weight."""

STEPS: dict[str, Any] = {
    "edges": ["dark_to_bright", "bright_to_dark"],
    "min_separation_mm": 0.1,
    "max_separation_mm": 0.5,
    "lateral_mm": 0.0,
    "weight": 2.0,
}
COMMON: dict[str, Any] = {"axis": 1, "sigma_mm": 0.004, "max_jump_mm": 0.05}
SEED = 11
LOOKS = {"retina_phantom": 5, "wavy_steps": 100}
"""Frames averaged: the SNR of the speckle in a sample of the full scan is their root."""


def averaged(data: np.ndarray, factor: int) -> np.ndarray:
    """Return (A, K // factor, B), the mean over `factor` samples along the depth."""
    kept = data[:, : data.shape[1] // factor * factor]
    return kept.reshape(kept.shape[0], -1, factor, kept.shape[2]).mean(2)


def error_um(found_mm: np.ndarray, truth_mm: np.ndarray) -> list[float]:
    """Return the mean unsigned distance of each surface."""
    return [float(np.abs(f - t).mean() * 1000) for f, t in zip(found_mm, truth_mm, strict=True)]


def found_on(data: np.ndarray, step: np.ndarray, factor: int, settings: dict[str, Any]):
    """Return depths (S, A, B) in mm of the full scan, and whether they are proved."""
    coarse = averaged(data, factor).astype(np.float32)
    affine = torch.diag(torch.tensor([step[0], step[1] * factor, step[2], 1.0]).double())
    image = MetaTensor(torch.from_numpy(coarse)[None], affine=affine)
    surfaces = OptimalSurfaces(**COMMON, **settings)(image)
    proof = surfaces.meta["medpipe"]["source"]["minimum_cut"]["optimal_surfaces"]
    # the centre of the first coarse sample lies between the fine ones
    offset = (factor - 1) / 2 * step[1]
    return surfaces[:, :, 0].numpy().astype(float) + offset, proof


def without_offset(error: np.ndarray) -> np.ndarray:
    """Return errors (A, B) less the median of the other half of the A-scans."""
    half = len(error) // 2
    first, second = error[:half], error[half:]
    return np.concatenate([first - np.median(second), second - np.median(first)])


def described(error_mm: np.ndarray) -> dict[str, float]:
    """Return the errors (A, B) of one surface in numbers, in µm."""
    error = error_mm * 1000
    return {
        "mean_unsigned_um": round(float(np.abs(error).mean()), 3),
        "median_signed_um": round(float(np.median(error)), 3),
        "sd_um": round(float(error.std()), 3),
        "mean_unsigned_less_offset_um": round(float(np.abs(without_offset(error)).mean()), 3),
    }


def super_resolution(
    data: np.ndarray, step: np.ndarray, truth_mm: dict[str, np.ndarray], settings: dict[str, Any]
) -> dict[str, Any]:
    """Compare both arms at every factor; `truth_mm` holds (A, B) of each counted surface."""
    rows: dict[str, Any] = {}
    for factor in FACTORS:
        row: dict[str, Any] = {"spacing_um": round(float(step[1]) * factor * 1000, 2)}
        for arm, irregular in (("regular", False), ("irregular", True)):
            depth, proof = found_on(data, step, factor, settings | {"irregular": irregular})
            found = dict(zip(truth_mm, (depth[0], depth[-1]), strict=True))
            row[arm] = {n: described(found[n] - t) for n, t in truth_mm.items()}
            row[arm]["proved"] = proof["proved"]
        for key, name in (
            ("ratio", "mean_unsigned_um"),
            ("ratio_less_offset", "mean_unsigned_less_offset_um"),
        ):
            pair = [[row[arm][n][name] for n in truth_mm] for arm in ("irregular", "regular")]
            row[key] = {n: round(a / b, 3) for n, a, b in zip(truth_mm, *pair, strict=True)}
            row[key]["mean"] = round(sum(pair[0]) / sum(pair[1]), 3)
        rows[str(factor)] = row
        print(factor, row, flush=True)
    coarse = [rows[str(f)] for f in FACTORS if f > 1]
    n = next(iter(truth_mm.values())).size
    return {
        "columns": n,
        "ratio_of_means": {
            key: spread([r[key]["mean"] for r in coarse], 3)
            for key in ("ratio", "ratio_less_offset")
        },
        "factors": rows,
    }


def retina_phantom() -> dict[str, Any]:
    """Return the comparison on a simulated volume."""
    shape, spacing, finer = (192, 496, 3), (0.057, 0.00387, 0.12), 8
    scan = retina_oct(
        SEED, kind="ring", shape=shape, spacing_mm=spacing, looks=LOOKS["retina_phantom"]
    )
    physical = scan.surfaces_mm
    fine = retina_oct(
        SEED,
        kind="ring",
        shape=(shape[0], shape[1] * finer, shape[2]),
        spacing_mm=(spacing[0], spacing[1] / finer, spacing[2]),
        surfaces_mm=physical,
        looks=1,
    )
    # the detector adds this to every sample on average
    bright = (fine.ideal.astype(float) + BACKGROUND) ** EXPONENT
    z = (np.arange(bright.shape[1] - 1) + 0.5) * spacing[1] / finer
    truth, moved = {}, {}
    for name, sign, at in (("ILM", 1, physical[0]), ("BM", -1, physical[-1])):
        steep = sign * np.diff(bright, axis=1)
        away = np.abs(z[None, :, None] - at[:, None])
        truth[name] = z[np.where(away < 0.01, steep, -np.inf).argmax(1)]
        moved[name] = round(float((truth[name] - at).mean()) * 1000, 3)
    out = super_resolution(
        scan.volume.data**EXPONENT, np.array(spacing), truth, PHANTOM | {"wrap": [0]}
    )
    return {"visible_minus_physical_um": moved, **out}


BACKGROUND = 4e-4
"""Mean of the background of `retina_oct`."""


def wavy_steps() -> dict[str, Any]:
    """Return the comparison on blurred steps of known place."""
    count, depth, scans, finer = 192, 320, 4, 8
    step = np.array([0.03, 0.00387, 0.12])
    rng = np.random.default_rng(SEED)
    turn = 2 * np.pi * np.arange(count)[:, None] / count
    phase = rng.uniform(0, 2 * np.pi, (4, 1)) + 0.1 * np.arange(scans)
    top = 0.45 + 0.1 * np.cos(turn + phase[0]) + 0.03 * np.sin(5 * turn + phase[1])
    bottom = top + 0.22 + 0.06 * np.cos(2 * turn + phase[2]) + 0.02 * np.sin(7 * turn + phase[3])
    z = ((np.arange(depth * finer) + 0.5) / finer - 0.5) * step[1]
    sigma = 0.005 / 2.355
    inside = [erf((z[None, :, None] - s[:, None]) / (sigma * 2**0.5)) for s in (top, bottom)]
    fine = 0.2 + 0.4 * (inside[0] - inside[1])
    ideal = fine.reshape(count, depth, finer, scans).mean(2)
    looks = LOOKS["wavy_steps"]
    data = ideal * rng.gamma(looks, 1 / looks, ideal.shape)
    return super_resolution(data, step, {"top": top, "bottom": bottom}, STEPS | {"wrap": [0]})


def real_ring(data: np.ndarray, step: np.ndarray, marks: np.ndarray) -> dict[str, Any]:
    """Find nine boundaries and compare them with the marks (A, 9)."""
    affine = torch.diag(torch.tensor([*step, 1.0]).double())
    image = MetaTensor(torch.from_numpy(data)[None], affine=affine)
    start = time.perf_counter()
    found = OctLayers()(image)
    seconds = time.perf_counter() - start
    depth = found[:, :, 0, 0].numpy().astype(float)
    readings = {}
    for origin in (FIRST_SAMPLE, 1 - FIRST_SAMPLE):
        truth = (marks.T - origin) * step[1]
        readings[origin] = {
            "mean_unsigned_um": {
                b.name: round(e, 2) for b, e in zip(BOUNDARIES, error_um(depth, truth), strict=True)
            },
            "mean_signed_um": {
                b.name: round(float((d - t).mean()) * 1000, 2)
                for b, d, t in zip(BOUNDARIES, depth, truth, strict=True)
            },
        }
    proofs = found.meta["medpipe"]["source"]["minimum_cut"]
    return {
        "seconds": round(seconds, 1),
        "cuts": {
            name: {
                "proved": p["proved"],
                "energy": round(p["energy"], 4),
                "bound": round(p["bound"], 4),
                "gap_percent": round(100 * (p["energy"] - p["bound"]) / abs(p["energy"]), 4),
                "quantisation_step": p["quantisation_step"],
            }
            for name, p in proofs.items()
        },
        "first_sample_is_1": readings[1],
        "first_sample_is_0": readings[0],
    }


def main(scan: Path, manual: Path) -> None:
    """Compare, print, write the results."""
    volume = nib.load(scan)
    data = volume.get_fdata(dtype=np.float32)
    step = np.array([float(z) for z in volume.header.get_zooms()])
    marks = np.loadtxt(manual, delimiter=",", skiprows=1)
    ring = real_ring(data, step, marks)
    print(ring)
    chosen = (marks - FIRST_SAMPLE) * step[1]
    truth = {name: chosen[:, [rank]] for name, rank in COUNTED.items()}
    scans = {
        "real_ring": super_resolution(data**EXPONENT, step, truth, RING | {"wrap": [0]}),
        "retina_phantom": retina_phantom(),
        "wavy_steps": wavy_steps(),
    }
    print(
        write_results(
            "oct_surfaces",
            {
                "n": 1,
                "versions": versions("torch", "monai", "numba"),
                "manual_first_sample": FIRST_SAMPLE,
                "ring": ring,
                "super_resolution": {
                    "settings": COMMON
                    | {
                        "exponent": EXPONENT,
                        "real_ring": RING,
                        "retina_phantom": PHANTOM,
                        "wavy_steps": STEPS,
                    },
                    "speckle_snr": {name: round(n**0.5, 2) for name, n in LOOKS.items()},
                    **scans,
                },
            },
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
