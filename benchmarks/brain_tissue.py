"""Brain tissue with and without shape priors, on T1 images rendered from real label maps.

    python benchmarks/brain_tissue.py FOLDER [--size slab|half|full] [--subjects N]

FOLDER holds label maps of whole heads at 1 mm (FreeSurfer's numbers). From each a
T1-weighted image is rendered with partial volume, texture, a smooth bias field and
Rician noise, so that every voxel's tissue is known. Where there is a bias field it is
corrected as in the workflow, by N4 over the brain, before any method sees the image; one
condition leaves it in. Four methods see the same image and the same brain mask: the
Gaussian mixture alone, Boykov-Jolly cuts of tissue and of white matter apart, both as
nested layers of one cut (the first cut of `brain_tissue`), and its second cut with the
shape prior whose weight follows the noise. All cuts have the same smoothness.

"slab" takes four axial slices through the middle of the brain, after the correction of the
whole brain; "half" is the whole brain at 2 mm, "full" the whole brain at 1 mm.

Smoothness and shape prior were chosen on the first three subjects; the others were seen
by no choice. Gains are given subject by subject.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from common import spread, versions, write_results
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from scipy import ndimage

from medpipe.graphcut.brain import SMOOTHNESS, brain_tissue
from medpipe.graphcut.layers import multi_object_cut
from medpipe.graphcut.links import contrast_links, difference_sigma
from medpipe.graphcut.relations import Layer
from medpipe.graphcut.unaries import nested_costs, tissue_costs
from medpipe.steps.bias import CorrectBias

WHITE = (2, 41, 7, 46, 16, 28, 60)
GREY = (3, 42, 8, 47, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58)
FLUID = (4, 5, 14, 15, 24, 43, 44)
MEANS = (20.0, 50.0, 120.0, 180.0)
DEEP = {10: 150, 49: 150, 13: 175, 52: 175, 12: 128, 51: 128, 16: 178, 28: 170, 60: 170}
LEVELS = {
    "low noise": (0.03, 0.0, False),
    "medium": (0.05, 0.1, True),
    "high noise": (0.09, 0.0, False),
    "higher noise": (0.12, 0.0, False),
    "high bias": (0.05, 0.3, True),
    "high noise and bias": (0.09, 0.3, True),
    "high bias, not corrected": (0.05, 0.3, False),
}
"""Noise as a part of white matter, bias as ± of the brightness, and whether it is corrected."""
TUNED_ON = 3
METHODS = ("mixture", "boykov_jolly", "nested", "shape_prior")
SLAB = 4


def tissue_of(labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return 1 fluid, 2 grey, 3 white matter, 0 elsewhere."""
    out = np.zeros(labels.shape, np.uint8)
    for value, members in ((1, FLUID), (2, GREY), (3, WHITE)):
        out[np.isin(labels, members)] = value
    return out


def render(labels: NDArray[np.int64], seed: int) -> tuple[NDArray, NDArray]:
    """Return the ideal image and a bias field between -1 and 1 over the brain."""
    rng = np.random.default_rng(seed)
    tissue = tissue_of(labels)
    image = np.array(MEANS, np.float32)[tissue]
    for label in np.unique(labels[labels >= 500]):
        image[labels == label] = rng.uniform(20, 220)
    for label, value in DEEP.items():
        image[labels == label] = value
    texture = ndimage.gaussian_filter(rng.standard_normal(labels.shape, dtype=np.float32), 3)
    image = ndimage.gaussian_filter(image * (1 + 0.09 * texture), 0.6)
    x, y, z = np.meshgrid(
        *[np.linspace(-1, 1, n, dtype=np.float32) for n in labels.shape],
        indexing="ij",
        sparse=True,
    )
    field = sum(
        np.float32(rng.standard_normal()) * x**i * y**j * z**k
        for i in range(4)
        for j in range(4 - i)
        for k in range(4 - i - j)
    )
    low, high = field[tissue > 0].min(), field[tissue > 0].max()
    return image, 2 * (field - low) / (high - low) - 1


def coarse(volume: NDArray) -> NDArray:
    """Return means over 2 × 2 × 2 voxels."""
    even = volume[tuple(slice(0, n - n % 2) for n in volume.shape)]
    a, b, c = (n // 2 for n in even.shape)
    return even.reshape(a, 2, b, 2, c, 2).mean((1, 3, 5))


def subject(path: Path, size: str, seed: int) -> tuple[NDArray, NDArray, NDArray, float]:
    """Return ideal image, bias, tissue and voxel size of one subject, cut to the brain."""
    labels = np.asarray(nib.load(path).dataobj).astype(np.int64)
    image, bias = render(labels, seed)
    tissue, voxel_mm = tissue_of(labels), 1.0
    if size == "half":
        share = np.stack([coarse((tissue == t).astype(np.float32)) for t in range(4)])
        image, bias, tissue, voxel_mm = coarse(image), coarse(bias), share.argmax(0), 2.0
    where = np.argwhere(tissue > 0)
    low, high = np.maximum(where.min(0) - 2, 0), where.max(0) + 3
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return image[box], bias[box], tissue[box], voxel_mm


def corrected(image: NDArray, brain: NDArray, mm: float) -> NDArray:
    """Return the image divided by its bias field, as the workflow does within the brain."""
    affine = torch.diag(torch.tensor([mm, mm, mm, 1.0], dtype=torch.float64))
    mask = MetaTensor(torch.from_numpy(brain[None].astype(np.uint8)), affine=affine)
    return CorrectBias()(MetaTensor(torch.from_numpy(image[None]), affine=affine), mask).numpy()[0]


def part_of(brain: NDArray, slices: int) -> tuple[slice, slice, slice]:
    """Return the box of so many axial slices through the middle, one voxel around the brain."""
    first = (brain.shape[2] - slices) // 2
    where = np.argwhere(brain[:, :, first : first + slices])
    low, high = np.maximum(where.min(0) - 1, 0), where.max(0) + 2
    return np.s_[low[0] : high[0], low[1] : high[1], first : first + slices]


def segment(x: torch.Tensor, brain: torch.Tensor, mm: float) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each method's labels; the methods share densities and links."""
    spacing = (mm, mm, mm)
    costs, _ = tissue_costs(x, 3, brain)
    yield "mixture", torch.where(brain, costs.argmin(0) + 1, 0)
    links = contrast_links(x, spacing, 6, SMOOTHNESS, difference_sigma(x, brain))
    apart = [
        multi_object_cut([Layer(str(n), data, links, outside=~brain)], (), spacing).masks[0]
        for n, data in enumerate(nested_costs(costs))
    ]
    # without nesting white matter may lie outside tissue; it is white matter all the same
    grey = torch.where(brain, 1 + apart[0].int(), 0)
    yield "boykov_jolly", torch.where(apart[1], 3, grey)
    found = brain_tissue(x, brain, spacing)
    yield "nested", brain.int() + found.presegmentation.masks.sum(0)
    yield "shape_prior", found.labels


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the Dice coefficient of two masks."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def measure(path: Path, size: str, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return Dice of grey and white matter of one subject: level → method → [GM, WM]."""
    ideal, bias, tissue, mm = subject(path, size, seed)
    part = part_of(tissue > 0, SLAB if size == "slab" else tissue.shape[2])
    truth = torch.from_numpy(tissue[part].astype(np.int64))
    rng = np.random.default_rng([seed, 1])
    out: dict[str, dict[str, list[float]]] = {}
    for level, (noise, strength, correct) in LEVELS.items():
        clean = ideal * (1 + strength * bias)
        real, imaginary = noise * MEANS[3] * rng.standard_normal((2, *clean.shape), np.float32)
        image = np.hypot(clean + real, imaginary).astype(np.float32)
        if correct:
            image = corrected(image, tissue > 0, mm)
        x = torch.from_numpy(image[part].copy())
        row: dict[str, list[float]] = {}
        start = time.perf_counter()
        for method, labels in segment(x, truth > 0, mm):
            row[method] = [round(dice(labels == t, truth == t), 5) for t in (2, 3)]
        row["seconds"] = [round(time.perf_counter() - start, 1)]
        out[level] = row
        print(path.stem.split(".")[0], level, row, flush=True)
    return out


def summary(subjects: list[dict[str, dict[str, list[float]]]]) -> dict[str, object]:
    """Return the spread per level and method, and what the prior gains on each subject."""
    out: dict[str, object] = {}
    everywhere = [0.0] * len(subjects)
    for level, (noise, strength, correct) in LEVELS.items():
        mean = {m: [sum(s[level][m]) / 2 for s in subjects] for m in METHODS}
        gains = {m: less(mean["shape_prior"], mean[m]) for m in METHODS[:3]}
        for n, gain in enumerate(gains["nested"]):
            everywhere[n] += gain / len(LEVELS)
        out[level] = {
            "noise": noise,
            "bias": strength,
            "corrected": correct,
            "dice": {m: spread(v) for m, v in mean.items()},
            "gain_of_prior": {f"over_{m}": spread(v, 5) for m, v in gains.items()},
            "gain_of_prior_by_subject": [round(g, 5) for g in gains["nested"]],
            "subjects_prior_loses": sum(g < 0 for g in gains["nested"]),
        }
    return {
        "by_level": out,
        "mean_gain_of_prior_by_subject": [round(g, 5) for g in everywhere],
        "subjects_prior_loses_on_the_mean": sum(g < 0 for g in everywhere),
    }


def less(a: list[float], b: list[float]) -> list[float]:
    """Return a minus b."""
    return [x - y for x, y in zip(a, b, strict=True)]


def main() -> None:
    """Measure all subjects, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=["slab", "half", "full"], default="slab")
    parser.add_argument("--subjects", type=int, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(options.folder.glob("*.nii.gz"))[: options.subjects]
    subjects = []
    for number, path in enumerate(paths):
        subjects.append(measure(path, options.size, number))
        # what is measured so far is kept if the run is stopped
        report(subjects, options.size)


def report(subjects: list[dict[str, dict[str, list[float]]]], size: str) -> None:
    """Write the results of the subjects so far and print what they sum up to."""
    results = summary(subjects)
    record = {
        "size": f"{SLAB} slices of 1 mm" if size == "slab" else size,
        "subjects": len(subjects),
        "tuned_on_the_first": TUNED_ON,
        "load_at_end": round(os.getloadavg()[0], 1),
        "measured": "mean Dice of grey and white matter per subject; each: [GM, WM]",
        "versions": versions("torch", "numpy", "scipy", "nibabel"),
        "summary": results,
        "each": subjects,
    }
    path = write_results("brain_tissue", record)
    print(json.dumps(results, indent=1))
    print(path, flush=True)


if __name__ == "__main__":
    main()
