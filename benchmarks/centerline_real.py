"""Centerlines of real structures: an aorta beside VMTK's, an airway tree, an aorta from CT.

    python benchmarks/centerline_real.py FOLDER

FOLDER holds ``vessels`` (VMTK's test data: a closed surface of an aorta and the centerlines
of its Voronoi diagram; an airway mask of 512 × 512 × 767 voxels) and ``aorta_ct``. The
surface is made a mask by counting how often a line along z crosses it, so both programs
see the same aorta. VMTK runs one line to each outlet through the common trunk.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import real_folder, spread, versions, write_results
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medpipe.centerline.extract import extract_centerline
from medpipe.centerline.settings import ExtractionSettings
from medpipe.centerline.topology import betti_numbers
from medpipe.centerline.tree import CenterlineTree
from medpipe.io.vtp import PolyData, read_vtp
from medpipe.phantoms.tube_shapes import ring

STEP_MM = 0.05
REPEATS = 3
"""Distance between the points at which lines are compared."""


def mask_of_surface(surface: PolyData, spacing_mm: float) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return the voxels whose centres lie inside a closed surface, and their affine."""
    low = surface.points_mm.min(0) - 2 * spacing_mm
    # no voxel centre lies on an edge of the surface
    origin = low + spacing_mm * np.array([0.31830989, 0.36787944, 0.0])
    shape = np.ceil((surface.points_mm.max(0) + 2 * spacing_mm - origin) / spacing_mm).astype(int)
    corners = (surface.points_mm[surface.triangles] - origin) / spacing_mm
    crossings = np.zeros((shape[0], shape[1], shape[2] + 1), np.int32)
    for a, b, c in corners:
        lo = np.ceil(np.minimum(np.minimum(a, b), c)[:2]).astype(int)
        hi = np.floor(np.maximum(np.maximum(a, b), c)[:2]).astype(int)
        if (hi < lo).any():
            continue
        x, y = np.meshgrid(np.arange(lo[0], hi[0] + 1), np.arange(lo[1], hi[1] + 1), indexing="ij")
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0:
            continue
        v = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
        w = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
        inside = (v >= 0) & (w >= 0) & (v + w <= 1)
        z = np.ceil(a[2] + v * (b[2] - a[2]) + w * (c[2] - a[2])).astype(int)
        np.add.at(crossings, (x[inside], y[inside], z[inside]), 1)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = origin
    return (crossings.cumsum(2) % 2 == 1)[:, :, :-1], affine


def dense(points: NDArray[Any], radius: NDArray[Any]) -> NDArray[Any]:
    """Return x, y, z and radius every STEP_MM along a polyline."""
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.arange(0, along[-1], STEP_MM)
    columns = [np.interp(at, along, v) for v in (*points.T, radius)]
    return np.stack(columns, 1)


def lines_of(tree: CenterlineTree) -> NDArray[Any]:
    """Return the branches of a tree, sampled densely, with the inscribed radius."""
    return np.concatenate(
        [dense(tree.positions_mm[b.nodes], tree.radius_mm[b.nodes]) for b in tree.branches]
    )


def timed(mask: NDArray[Any], affine: NDArray[Any], **settings: Any) -> dict[str, Any]:
    """Extract a tree three times; return it with median and range of CPU seconds."""
    labels, took = torch.from_numpy(np.asarray(mask, np.uint8)), []
    for _ in range(REPEATS):
        started = time.process_time()
        tree = extract_centerline(labels, affine, ExtractionSettings(**settings))
        took.append(time.process_time() - started)
    return {"tree": tree, "cpu_s": spread(took, 2)}


def facts(tree: CenterlineTree, cpu_s: dict[str, Any]) -> dict[str, Any]:
    """Return what a tree holds, and the loops of its voxels."""
    low = tree.voxels.min(0)
    line = np.zeros(tree.voxels.max(0) - low + 3, bool)
    line[tuple((tree.voxels - low + 1).T)] = True
    return {
        "trees": len(tree.roots),
        "ends": len(tree.leaves) + len(tree.roots),
        "branches": len(tree.branches),
        "length_mm": round(float(tree.lengths_mm.sum()), 1),
        "loops_of_the_line": betti_numbers(torch.from_numpy(line))[1],
        "cpu_s": cpu_s,
    }


def vmtk_aorta(folder: Path) -> list[dict[str, Any]]:
    """Compare with VMTK's lines of an aorta at three voxel sizes."""
    surface = read_vtp(folder / "vmtk_aorta-surface.vtp", assume_space="RAS")
    lines = read_vtp(folder / "vmtk_aorta-centerline.vtp", assume_space="RAS")
    radius = lines.point_data["MaximumInscribedSphereRadius"]
    reference = np.concatenate([dense(lines.points_mm[i], radius[i]) for i in lines.lines])
    rows = []
    for spacing in (1.0, 0.5, 0.25):
        mask, affine = mask_of_surface(surface, spacing)
        found = timed(mask, affine)
        ours = lines_of(found["tree"])
        away, nearest = cKDTree(ours[:, :3]).query(reference[:, :3])
        back, _ = cKDTree(reference[:, :3]).query(ours[:, :3])
        bias = ours[nearest, 3] - reference[:, 3]
        row = {
            "voxel_mm": spacing,
            "voxels": int(mask.sum()),
            "vmtk_to_ours_mean_mm": round(float(away.mean()), 3),
            "vmtk_to_ours_p95_mm": round(float(np.percentile(away, 95)), 3),
            "ours_to_vmtk_mean_mm": round(float(back.mean()), 3),
            "radius_bias_mm": round(float(bias.mean()), 3),
            "radius_sd_mm": round(float(bias.std()), 3),
            **facts(found["tree"], found["cpu_s"]),
        }
        print(
            f"VMTK aorta, {spacing} mm: VMTK to ours {row['vmtk_to_ours_mean_mm']} mm "
            f"(95 % below {row['vmtk_to_ours_p95_mm']}), ours to VMTK "
            f"{row['ours_to_vmtk_mean_mm']} mm, radius {row['radius_bias_mm']:+} mm, "
            f"{row['ends']} ends, {row['cpu_s']['median']} CPU-s"
        )
        rows.append(row)
    return rows


def airway(folder: Path) -> dict[str, Any]:
    """Extract the airway tree, root at the trachea."""
    image = nib.load(folder / "airway_CT_HR_label.nii.gz")
    mask = np.asarray(image.dataobj) > 0
    found = timed(mask, image.affine, root="superior")
    thin = np.asarray(nib.load(folder / "airway_CT_HR_label_thinned_itk.nii.gz").dataobj) > 0
    tree = found["tree"]
    skeleton = np.argwhere(thin) @ image.affine[:3, :3].T + image.affine[:3, 3]
    near, _ = cKDTree(lines_of(tree)[:, :3]).query(skeleton)
    row = {
        "voxels": int(mask.sum()),
        "loops_of_the_mask": betti_numbers(torch.from_numpy(mask))[1],
        **facts(tree, found["cpu_s"]),
        "thinning_within_2_mm": round(float((near <= 2).mean()), 4),
    }
    print(
        f"airway: {row['ends']} ends, {row['loops_of_the_line']} loops (mask "
        f"{row['loops_of_the_mask']}), {row['length_mm']} mm, {row['cpu_s']['median']} CPU-s; "
        f"{100 * row['thinning_within_2_mm']:.1f} % of ITK's thinning within 2 mm"
    )
    return row


def aorta_ct(folder: Path) -> dict[str, Any]:
    """Extract the aorta of a CT at 1.5 mm."""
    image = nib.load(folder / "aorta_aorta.nii.gz")
    mask = np.asarray(image.dataobj) > 0
    found = timed(mask, image.affine)
    tree = found["tree"]
    row = {
        "voxels": int(mask.sum()),
        **facts(tree, found["cpu_s"]),
        "radius_mm": [round(float(r), 1) for r in np.percentile(tree.radius_mm, (5, 50, 95))],
    }
    print(
        f"aorta of a CT: {row['trees']} trees, {row['ends']} ends, {row['length_mm']} mm, "
        f"radius {row['radius_mm'][0]} to {row['radius_mm'][2]} mm, {row['cpu_s']['median']} CPU-s"
    )
    return row


def main() -> None:
    """Measure and write results/centerline_real.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=real_folder())
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    warm = ring()
    timed(warm.mask, warm.affine)  # compiles
    results = {
        "versions": versions("medpipe", "numba", "numpy", "scipy", "torch"),
        "vmtk_aorta": vmtk_aorta(folder / "vessels"),
        "airway": airway(folder / "vessels"),
        "aorta_ct": aorta_ct(folder / "aorta_ct"),
    }
    print(write_results("centerline_real", results))


if __name__ == "__main__":
    main()
