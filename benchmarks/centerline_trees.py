"""Centerlines of simulated vessel trees beside thinning and TEASAR, against the exact curves.

    python benchmarks/centerline_trees.py [--seeds 5] [--learned]

Trees of 256³ voxels, clean, with rough walls (0.45 voxel), very rough walls (0.8 voxel) and
with vessels that touch each other. A leaf is missed when no leaf of the result lies within
max(2 r, 4 voxels). kimimaro (GPL-3) is a peer here and no dependency of medpipe; its rows
are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import versions, write_results
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from medpipe.centerline.extract import extract_centerline
from medpipe.centerline.metrics import LineGraph, compare_trees, loops, removable_voxels
from medpipe.centerline.settings import ExtractionSettings
from medpipe.phantoms.vessel_tree import VesselTree, vessel_tree

KINDS = ("clean", "rough", "very-rough", "kissing")
VOXEL_MM = 0.5
SUMMED = ("leaves", "missed", "spurious", "cycles", "loops", "removable")
Row = dict[str, Any]


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the bounding box of a mask with a border of one voxel."""
    places = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != i))) for i in range(3)]
    return tuple(slice(max(p[0] - 1, 0), p[-1] + 2) for p in places)


def as_image(voxels: NDArray[Any]) -> torch.Tensor:
    """Return voxels as the mask of their bounding box."""
    index = voxels - voxels.min(0)
    image = np.zeros(index.max(0) + 1, bool)
    image[tuple(index.T)] = True
    return torch.from_numpy(image)


def scored(tree: VesselTree, result: Any, seconds: float) -> Row:
    """Compare a result with the exact tree, lengths in voxels."""
    found = compare_trees(tree, result, voxel_mm=VOXEL_MM)
    row = {
        k.replace("_mm", "_voxel"): v / VOXEL_MM if k.endswith("_mm") and v is not None else v
        for k, v in found.items()
    }
    return row | {"cpu_s": seconds}


def lee(tree: VesselTree) -> Row:
    """Thin the mask as scikit-image does, inside its bounding box."""
    started = time.process_time()
    box = box_of(tree.mask)
    thin = skeletonize(np.ascontiguousarray(tree.mask[box]), method="lee") != 0
    seconds = time.process_time() - started
    voxels = np.argwhere(thin) + [s.start for s in box]
    result = LineGraph.of_voxels(voxels, tree.affine, tree.points_mm[tree.roots])
    image = as_image(voxels)
    row = scored(tree, result, seconds)
    return row | {"loops": loops(image), "removable": removable_voxels(image)}


def kimimaro_of(scale: float, const_voxels: float) -> Callable[[VesselTree], Row]:
    """Return TEASAR as kimimaro does it, its balls of `scale` D + `const_voxels`."""
    import kimimaro

    def run(tree: VesselTree) -> Row:
        started = time.process_time()
        found = kimimaro.skeletonize(
            tree.mask.astype(np.uint8),
            teasar_params={"scale": scale, "const": const_voxels * VOXEL_MM},
            anisotropy=(VOXEL_MM,) * 3,
            dust_threshold=0,
            progress=False,
            parallel=1,
        )[1]
        seconds = time.process_time() - started
        voxels = np.round(found.vertices / VOXEL_MM).astype(int)
        points = voxels @ tree.affine[:3, :3].T + tree.affine[:3, 3]
        # kimimaro starts where it likes: paths are measured from the end next to the root
        root = np.linalg.norm(points - tree.points_mm[tree.root], axis=1).argmin()
        result = LineGraph(points, found.edges, np.array([root]))
        image = as_image(voxels)
        row = scored(tree, result, seconds)
        return row | {"loops": loops(image), "removable": removable_voxels(image)}

    return run


def ours(**settings: Any) -> Callable[[VesselTree], Row]:
    """Return the extraction with settings; ``oracle`` gives it the true leaves."""
    oracle = settings.pop("oracle", False)

    def run(tree: VesselTree) -> Row:
        chosen = dict(settings)
        if oracle:
            ends = tuple(map(tuple, tree.points_mm[tree.leaves].tolist()))
            chosen |= {"endpoints": "given", "endpoint_points_mm": ends}
        labels = torch.from_numpy(tree.mask.astype(np.uint8))
        started = time.process_time()
        result = extract_centerline(labels, tree.affine, ExtractionSettings(**chosen))
        return scored(tree, result, time.process_time() - started)

    return run


def learned(tree: VesselTree) -> Row:
    """Extract with the learned endpoints that are shipped."""
    from medpipe.centerline.maps import learned_maps

    labels = torch.from_numpy(tree.mask.astype(np.uint8))
    started = time.process_time()
    maps = learned_maps(labels, tree.affine)
    chosen = ExtractionSettings(endpoints="learned")
    result = extract_centerline(labels, tree.affine, chosen, maps=maps)
    return scored(tree, result, time.process_time() - started)


def methods(with_learned: bool) -> dict[str, Callable[[VesselTree], Row]]:
    """Return what is compared, by name."""
    chosen: dict[str, Callable[[VesselTree], Row]] = {"Lee thinning (scikit-image)": lee}
    try:
        chosen["TEASAR (kimimaro 1.5 / 3)"] = kimimaro_of(1.5, 3)
        chosen["TEASAR (kimimaro 1.1 / 10)"] = kimimaro_of(1.1, 10)
    except ImportError:
        print("kimimaro is not installed: without its rows")
    chosen["medpipe, not smoothed"] = ours(smoothing_rounds=0)
    chosen["medpipe"] = ours()
    chosen["medpipe, true leaves given"] = ours(oracle=True)
    if with_learned:
        chosen["medpipe, learned endpoints"] = learned
    return chosen


def summed(rows: Sequence[Row]) -> Row:
    """Sum counts over the trees, take the mean of the rest and the median of seconds."""
    out: Row = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        if name in SUMMED:
            out[name] = int(sum(values))
        elif name == "cpu_s":
            out[name] = round(statistics.median(values), 2)
        else:
            out[name] = round(statistics.fmean(values), 4) if values else None
    return out


def show(kind: str, name: str, row: Row) -> None:
    """Print one row."""
    print(
        f"{kind:10} {name:28} {row['leaves']:4} {row['missed']:4} {row['spurious']:4} "
        f"{row['error_voxel']:6.2f} {row['p95_voxel']:5.2f} {row['coverage']:6.3f} "
        f"{row['cycles']:5} {row['loops']:4} {row['removable']:5} "
        f"{row['bifurcation_voxel']:5.2f}/{row['bifurcation_p90_voxel']:4.2f} "
        f"{row['length_ratio']:6.3f} {row['cpu_s']:6.2f}",
        flush=True,
    )


def main() -> None:
    """Measure and write results/centerline_trees.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="trees of each kind")
    parser.add_argument("--size", type=int, default=256, help="voxels along each axis")
    parser.add_argument("--learned", action="store_true", help="with learned endpoints")
    args = parser.parse_args()
    ways = methods(args.learned)
    warm = vessel_tree(99, shape=(48,) * 3, root_radius_voxels=4.0, branches=3)
    for run in ways.values():
        run(warm)  # compiles
    print(
        f"{'kind':10} {'method':28} leaf miss spur  error   p95  cover cycle loop remov "
        "bif/90 %    length  CPU-s"
    )
    rows = []
    for kind in KINDS:
        trees = [
            vessel_tree(seed, shape=(args.size,) * 3, kind=kind)  # type: ignore[arg-type]
            for seed in range(args.seeds)
        ]
        for name, run in ways.items():
            each = [run(tree) for tree in trees]
            row = {"kind": kind, "method": name, "n": len(each), **summed(each)}
            row["voxels"] = int(sum(t.mask.sum() for t in trees))
            show(kind, name, row)
            rows.append(row)
    results = {
        "versions": versions("medpipe", "numba", "numpy", "scikit-image", "scipy", "torch"),
        "size": args.size,
        "rows": rows,
    }
    print(write_results("centerline_trees", results))


if __name__ == "__main__":
    main()
