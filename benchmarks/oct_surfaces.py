"""Retinal boundaries against manual marks and against true subvoxel positions.

    python benchmarks/oct_surfaces.py RING.nii.gz MANUAL.csv

(a) The nine boundaries that `oct_layers` finds in a real ring scan, and the mean
unsigned distance from the manual ones, per boundary.

(b) Super-resolution: the depth of a scan, as it is looked at (fourth root of the stored
intensities), is averaged over 2, 4 and 8 samples, and two
surfaces (ILM and Bruch's membrane, the outermost) are found on the coarse samples by
`OptimalSurfaces`, once with nodes at the samples and once with nodes moved to the
vertex of a parabola through the costs. Costs, weights and limits are the same in both
arms and for all factors and scans. Errors are distances from
the positions on the full scan: manual on the real one, exact on a phantom. What stays
at a factor of 1 is the floor that resolution cannot lower: noise, and for the real
scan the habits of the person who marked it.

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
from common import versions, write_results
from monai.data.meta_tensor import MetaTensor

from medpipe.graphcut.retina import BOUNDARIES
from medpipe.graphcut.transforms.retina import OctLayers
from medpipe.graphcut.transforms.surfaces import OptimalSurfaces
from medpipe.phantoms.retina_oct import retina_oct

FIRST_SAMPLE = 1
"""Number of the first sample in the manual marks. Read as 0-based, every sharp boundary
lies one sample (3.9 µm) too deep; the result states both readings."""

EXPONENT = 0.25
SURFACES = (0, 8)
FACTORS = (1, 2, 4, 8)
SETTINGS: dict[str, Any] = {
    "edges": ["dark_to_bright", "bright_to_dark"],
    "axis": 1,
    "sigma_mm": 0.004,
    "lateral_mm": 0.02,
    "smoothness": "linear",
    "weight": 2.0,
    "max_jump_mm": 0.05,
    "min_separation_mm": 0.15,
    "max_separation_mm": 0.55,
}


def averaged(data: np.ndarray, factor: int) -> np.ndarray:
    """Return (A, K // factor, B), the mean over `factor` samples along the depth."""
    kept = data[:, : data.shape[1] // factor * factor]
    return kept.reshape(kept.shape[0], -1, factor, kept.shape[2]).mean(2)


def error_um(found_mm: np.ndarray, truth_mm: np.ndarray) -> list[float]:
    """Return the mean unsigned distance of each surface."""
    return [float(np.abs(f - t).mean() * 1000) for f, t in zip(found_mm, truth_mm, strict=True)]


def found_on(data: np.ndarray, step: np.ndarray, factor: int, wrap: list[int], irregular: bool):
    """Return depths (2, A, B) in mm of the full scan, and whether they are proved."""
    coarse = averaged(data**EXPONENT, factor).astype(np.float32)
    affine = torch.diag(torch.tensor([step[0], step[1] * factor, step[2], 1.0]).double())
    image = MetaTensor(torch.from_numpy(coarse)[None], affine=affine)
    surfaces = OptimalSurfaces(**SETTINGS, wrap=wrap, irregular=irregular)(image)
    proof = surfaces.meta["medpipe"]["source"]["minimum_cut"]["optimal_surfaces"]
    # the centre of the first coarse sample lies between the fine ones
    offset = (factor - 1) / 2 * step[1]
    return surfaces[:, :, 0].numpy().astype(float) + offset, proof["proved"]


def super_resolution(
    data: np.ndarray, step: np.ndarray, truth_mm: np.ndarray, wrap: list[int]
) -> dict[str, Any]:
    """Compare both arms at every factor; `truth_mm` is (2, A, B)."""
    rows = {}
    for factor in FACTORS:
        row: dict[str, Any] = {"spacing_um": round(float(step[1]) * factor * 1000, 2)}
        means = []
        for name, irregular in (("regular", False), ("irregular", True)):
            depth, proved = found_on(data, step, factor, wrap, irregular)
            errors = error_um(depth, truth_mm)
            means.append(float(np.mean(errors)))
            row[name] = {
                "mean_um": round(means[-1], 3),
                **{BOUNDARIES[s].name: round(e, 3) for s, e in zip(SURFACES, errors, strict=True)},
                "proved": proved,
            }
        row["ratio"] = round(means[1] / means[0], 3)
        rows[str(factor)] = row
        print(factor, row, flush=True)
    return rows


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
    proofs = found.meta["medpipe"]["source"]["minimum_cut"].values()
    return {
        "seconds": round(seconds, 1),
        "proved": all(p["proved"] for p in proofs),
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
    chosen = (marks.T[list(SURFACES)] - FIRST_SAMPLE) * step[1]
    real = super_resolution(data, step, chosen[..., None], [0])
    phantom = retina_oct(11, kind="ring", shape=(192, 496, 3), spacing_mm=(0.057, 0.00387, 0.12))
    simulated = super_resolution(
        phantom.volume.data,
        np.diag(phantom.volume.affine)[:3],
        phantom.surfaces_mm[list(SURFACES)],
        [0],
    )
    print(
        write_results(
            "oct_surfaces",
            {
                "n": 1,
                "versions": versions("torch", "monai", "numba"),
                "manual_first_sample": FIRST_SAMPLE,
                "ring": ring,
                "super_resolution": {
                    "settings": SETTINGS | {"exponent": EXPONENT},
                    "real_ring": real,
                    "phantom_volume": simulated,
                },
            },
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
