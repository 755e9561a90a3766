"""CPU seconds and memory of centerlines beside thinning, TEASAR and minimal paths on a dense grid.

    python benchmarks/centerline_speed.py [FOLDER] [--repeats 3] [--case airway]

Three masks: a simulated tree of 256³ voxels, one of 512³, and a real airway tree of 512 ×
512 × 767 voxels (FOLDER holds ``vessels``). Every measurement runs in a process of its own,
on one thread, after a first run on small masks that compiles and imports; memory is how far
the peak rises above what is resident then (Linux). Each method gets the whole volume and
crops it as it likes; for thinning and minimal paths, which do not, it is cropped here. The
rows do not make the same thing: thinning gives voxels without a tree or radii,
``MCP_Geometric`` the costs of one root alone. kimimaro (GPL-3) is a peer here and no
dependency of medpipe. ``--case`` measures all methods on one mask anew and keeps what the
results say of the others; ``--memory`` measures memory alone, which other work on the
machine does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, real_folder, spread, versions, write_results
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
CASES = {"tree 256³": 256, "tree 512³": 512, "airway": 0}


def box_of(mask: Mask) -> tuple[slice, ...]:
    """Return the bounding box of a mask with a border of one voxel."""
    places = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != i))) for i in range(3)]
    return tuple(slice(max(p[0] - 1, 0), p[-1] + 2) for p in places)


def lee(mask: Mask, affine: NDArray[Any]) -> str:
    """Thin a mask."""
    from skimage.morphology import skeletonize

    found = skeletonize(np.ascontiguousarray(mask[box_of(mask)]), method="lee")
    return f"{int((found != 0).sum())} voxels"


def kimimaro(mask: Mask, affine: NDArray[Any]) -> str:
    """Skeletonise with TEASAR, its balls as those of medpipe."""
    import kimimaro

    step = np.linalg.norm(affine[:3, :3], axis=0)
    found = kimimaro.skeletonize(
        mask.astype(np.uint8),
        teasar_params={"scale": 1.5, "const": 3 * float(np.cbrt(step.prod()))},
        anisotropy=tuple(step.tolist()),
        dust_threshold=0,
        progress=False,
        parallel=1,
    )[1]
    return f"{len(found.terminals())} ends"


def minimal_paths(mask: Mask, affine: NDArray[Any]) -> str:
    """Find the cheapest paths from the deepest voxel to all others on the dense grid."""
    from scipy.ndimage import distance_transform_edt
    from skimage.graph import MCP_Geometric

    step = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    part = mask[box_of(mask)]
    depth = distance_transform_edt(part, sampling=step)
    cost = np.where(part, 1 / np.maximum(depth, 1e-6) ** 2, -1.0)
    root = np.unravel_index(depth.argmax(), depth.shape)
    total, _ = MCP_Geometric(cost, sampling=step).find_costs([root])
    return f"{int(np.isfinite(total[part]).sum())} voxels reached"


def ours(mask: Mask, affine: NDArray[Any]) -> str:
    """Extract the tree with both radii at every node."""
    import torch

    from medpipe.centerline.extract import extract_centerline

    found = extract_centerline(torch.from_numpy(mask.view(np.uint8)), affine)
    return f"{len(found.leaves) + len(found.roots)} ends"


METHODS: dict[str, Callable[[Mask, NDArray[Any]], str]] = {
    "medpipe": ours,
    "Lee thinning (scikit-image)": lee,
    "TEASAR (kimimaro)": kimimaro,
    "MCP_Geometric (scikit-image)": minimal_paths,
}


def case_of(name: str, folder: Path) -> tuple[Mask, NDArray[Any]]:
    """Return a mask and its affine."""
    from medpipe.phantoms.vessel_tree import vessel_tree

    if name == "airway":
        import nibabel as nib

        image = nib.load(folder / "vessels" / "airway_CT_HR_label.nii.gz")
        return np.asarray(image.dataobj) > 0, image.affine
    size = CASES[name]
    more = {"branches": 151, "root_radius_voxels": 14.0} if size == 512 else {}
    tree = vessel_tree(0, shape=(size,) * 3, kind="rough", **more)  # type: ignore[arg-type]
    return tree.mask, tree.affine


def resident_mb(what: str) -> float:
    """Return the memory of this process that is resident (VmRSS), or its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def measure(method: str, stored: Path) -> dict[str, Any]:
    """Run a method once in this process."""
    from medpipe.phantoms.tube_shapes import ring
    from medpipe.phantoms.vessel_tree import vessel_tree

    for small in (vessel_tree(99, shape=(48,) * 3, root_radius_voxels=4.0, branches=3), ring()):
        METHODS[method](small.mask, small.affine)
    with np.load(stored) as file:
        mask, affine = file["mask"], file["affine"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_mb("VmRSS")
    started, wall = time.process_time(), time.perf_counter()
    made = METHODS[method](mask, affine)
    return {
        "cpu_s": time.process_time() - started,
        "wall_s": time.perf_counter() - wall,
        "memory_mb": resident_mb("VmHWM") - before,
        "made": made,
    }


def main() -> None:
    """Measure and write results/centerline_speed.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=real_folder())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), help="measure this one alone")
    parser.add_argument("--memory", action="store_true", help="measure memory alone")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], Path(args.one[1]))))
        return
    import tempfile

    stored_rows = RESULTS / "centerline_speed.json"
    known = json.loads(stored_rows.read_text())["rows"] if args.case or args.memory else []
    measured = [args.case] if args.case else list(CASES)
    rows = [row for row in known if row["case"] not in measured]
    with tempfile.TemporaryDirectory() as scratch:
        for case in measured:
            mask, affine = case_of(case, args.folder)
            stored = Path(scratch) / "mask.npz"
            np.savez(stored, mask=mask, affine=affine)
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
            for _ in range(args.repeats):  # in turn, so that all see the same machine
                for name in METHODS:
                    done = subprocess.run(
                        [sys.executable, __file__, "--one", name, str(stored)],
                        capture_output=True, text=True, check=False,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )  # fmt: skip
                    if done.returncode:
                        print(f"{case}: {name} failed: {done.stderr.strip().splitlines()[-1]}")
                        continue
                    runs[name].append(json.loads(done.stdout.splitlines()[-1]))
            for name, each in runs.items():
                if not each:
                    continue
                row = {
                    "case": case,
                    "shape": list(mask.shape),
                    "voxels": int(mask.sum()),
                    "method": name,
                    **{
                        key: spread([one[key] for one in each], 2)
                        for key in ("cpu_s", "wall_s", "memory_mb")
                    },
                    "made": each[0]["made"],
                }
                if args.memory:
                    same = [r for r in known if (r["case"], r["method"]) == (case, name)]
                    row = same[0] | {"memory_mb": row["memory_mb"]}
                print(
                    f"{case:10} {name:30} {row['cpu_s']['median']:7.2f} CPU-s "
                    f"({row['cpu_s']['min']}-{row['cpu_s']['max']}) "
                    f"{row['memory_mb']['median']:7.0f} MB  {row['made']}",
                    flush=True,
                )
                rows.append(row)
    results = {
        "versions": versions("medpipe", "numba", "numpy", "scikit-image", "scipy", "torch"),
        "rows": rows,
    }
    print(write_results("centerline_speed", results))


if __name__ == "__main__":
    main()
