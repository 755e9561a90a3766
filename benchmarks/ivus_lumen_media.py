"""Lumen and media in simulated IVUS of real vessel shape, beside simpler ways to find them.

    python benchmarks/ivus_lumen_media.py [--quick] [--seeds N ...] [--every N]

The lumen contours are those of a real coronary pullback, up to its ostium; the media,
speckle, guide wire and calcium are simulated, as is the place of the catheter. All
methods see the same rays, edges and brightness. "strongest edge" takes the strongest
edge of each ray as media and the strongest one before it as lumen; "dynamic programming"
finds first the lumen and then the media beyond it, frame by frame, each as a closed path
of least cost.
MEDPIPE_REAL_DATA names the folder of the real contours.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from common import real_folder, versions, write_results
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial.distance import cdist

from medpipe.graphcut import vessel_wall as recipe
from medpipe.graphcut.surface_costs import gaussian_filter, gradient_cost
from medpipe.phantoms.ivus import IVUSPhantom, contour_radius, ivus

F64 = NDArray[np.float64]
ANGLES = 512
P = recipe.VesselWallParameters()
JUMP_MM = 0.3
NARROW_MM = 1.05
SHIFT_MM = 0.3


def real_contours(every: int) -> tuple[list[F64], float]:
    """Return lumen contours around their mean point in mm, and the distance of the frames."""
    rows = np.loadtxt(real_folder() / "ivus_contours" / "diastolic_contours.csv", delimiter="\t")
    frames = [rows[rows[:, 0] == f][:, 1:] for f in np.unique(rows[:, 0])]
    step = float(np.median(np.diff([f[0, 2] for f in frames])))
    around = [f[:, :2] - f[:, :2].mean(0) for f in frames]
    # At the ostium the lumen is a slit that the catheter cannot stand in whole.
    narrow = [n for n, c in enumerate(around) if np.hypot(*c.T).min() < NARROW_MM]
    return around[: narrow[0]][::every], step * every


def vessel(seed: int, every: int, shadows: bool) -> IVUSPhantom:
    """Return frames of real shape with the catheter away from the middle of the vessel."""
    contours, step = real_contours(every)
    turn = np.random.default_rng([seed, 7]).uniform(0, 2 * np.pi)
    shift = SHIFT_MM * np.array([np.cos(turn), np.sin(turn)])
    moved = [c - shift for c in contours]
    for contour in moved:
        contour_radius(contour)  # refuses what the catheter cannot see
    return ivus(seed, lumen_mm=moved, frame_mm=step, guide_wire=shadows, calcium=shadows)


def strongest_edges(edges: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Return both contours (2, angles, frames), each ray by itself."""
    media = edges.argmin(-1)
    before = nodes < nodes[media][..., None] - P.min_wall_mm
    lumen = torch.where(before, edges, torch.inf).argmin(-1)
    return torch.stack([nodes[torch.minimum(lumen, media)], nodes[media]])


def closed_paths(costs: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Return the closed path of each frame: dynamic programming over two turns, one kept."""
    angles, frames, _ = costs.shape
    arc = float(nodes.mean()) * 2 * math.pi / angles
    reach = int(max(P.slope * arc, 1.5 * P.node_mm) / P.node_mm)
    steps = torch.arange(-reach, reach + 1)
    price = P.stiffness / arc * steps.abs() * P.node_mm
    best, choices = costs[0], []
    for a in range(1, 2 * angles):
        padded = torch.nn.functional.pad(best, (reach, reach), value=math.inf)
        options = padded.unfold(-1, 2 * reach + 1, 1) + price
        value, choice = options.min(-1)
        choices.append(choice - reach)
        best = value + costs[a % angles]
    at = best.argmin(-1)
    path = torch.empty((2 * angles, frames), dtype=torch.int64)
    for a in range(2 * angles - 1, -1, -1):
        path[a] = at
        if a:
            at = at + choices[a - 1].gather(-1, at[:, None])[:, 0]
    middle = path[angles // 2 : angles // 2 + angles]
    return nodes[middle.roll(angles // 2, 0)]


def one_at_a_time(smooth: torch.Tensor, edges: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Return both contours (2, angles, frames): first the lumen, then the media beyond it."""
    levels = recipe._first_levels(smooth, nodes, P)
    lit = ~recipe._shadow(smooth, torch.ones_like(smooth, dtype=torch.bool), levels)
    for _ in range(P.rounds):
        costs = torch.where(lit[..., None], recipe._costs(smooth, edges, levels, P), 0.0)
        lumen = closed_paths(costs[0], nodes)
        away = nodes - lumen[..., None]
        allowed = (away >= P.min_wall_mm) & (away <= P.max_wall_mm)
        media = closed_paths(torch.where(allowed, costs[1], torch.inf), nodes)
        levels = recipe._measured(smooth, nodes, lumen, media, lit, levels)
    return torch.stack([lumen, media])


def found_by(phantom: IVUSPhantom) -> dict[str, tuple[torch.Tensor, float]]:
    """Return the contours (2, angles, frames) and CPU seconds of every method."""
    image = torch.from_numpy(phantom.volume.data)[None]
    center = torch.from_numpy(phantom.center_mm)
    start = time.process_time()
    cut = recipe.vessel_wall(image, phantom.volume.affine, center_mm=center)
    cut_s = time.process_time() - start
    assert cut.proved
    values = cut.columns.sample(image, phantom.volume.affine)
    values = torch.nan_to_num(values, nan=float(values.nanmedian()))
    smooth = gaussian_filter(values, [P.blur_deg / 360 * P.angles, 0.0, 0.0], wrap=(0,))
    edges = gradient_cost(smooth, P.node_mm, direction="dark_to_bright", sigma_mm=P.edge_mm)
    nodes = cut.columns.positions_mm[0, 0]
    start = time.process_time()
    simple = strongest_edges(edges, nodes)
    simple_s = time.process_time() - start
    start = time.process_time()
    paths = one_at_a_time(smooth, edges, nodes)
    return {
        "one cut": (cut.radius_mm, cut_s),
        "dynamic programming": (paths, time.process_time() - start),
        "strongest edge": (simple, simple_s),
    }


def finer(radius: F64) -> F64:
    """Return a contour (angles,) at the angles of the truth."""
    at = np.arange(ANGLES) * (len(radius) / ANGLES)
    return np.interp(at, np.arange(len(radius) + 1), np.append(radius, radius[0]))


def points(radius: F64) -> F64:
    """Return a contour (angles,) as points (angles, 2)."""
    turn = np.arange(len(radius)) * (2 * np.pi / len(radius))
    return radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1)


def area(radius: F64) -> float:
    """Return the area within a contour as a polygon."""
    return float(0.5 * np.sin(2 * np.pi / len(radius)) * (radius * np.roll(radius, -1)).sum())


def closed_and_nested(lumen: F64, media: F64, size: int = 400, step_mm: float = 0.025) -> bool:
    """Whether, drawn on pixels, lumen and vessel are one piece each and the wall closes."""
    across = (np.arange(size) - (size - 1) / 2) * step_mm
    turn = np.arctan2(across, across[:, None]) % (2 * np.pi) * (len(lumen) / (2 * np.pi))
    radius = np.hypot(across[:, None], across)
    inner, outer = (
        radius <= np.interp(turn, np.arange(len(c) + 1), np.append(c, c[0])) for c in (lumen, media)
    )
    pieces = [label(m)[1] for m in (inner, outer, ~outer, outer & ~inner)]
    return pieces == [1, 1, 1, 1] and bool((lumen < media).all())


def compared(found: F64, phantom: IVUSPhantom) -> dict[str, list[float]]:
    """Return every measure of every frame, by name."""
    out: dict[str, list[float]] = {}
    for n, truth in enumerate(zip(phantom.lumen_mm, phantom.media_mm, strict=True)):
        mine = [finer(found[s, :, n]) for s in (0, 1)]
        row: dict[str, float] = {}
        for name, a, b, rays in zip(recipe.SURFACES, mine, truth, found[:, :, n], strict=True):
            apart = cdist(points(a), points(b))
            row[f"{name}_error_um"] = 1000 * float(np.abs(a - b).mean())
            row[f"{name}_hausdorff_um"] = 1000 * float(max(apart.min(0).max(), apart.min(1).max()))
            row[f"{name}_area_error_percent"] = 100 * abs(area(a) / area(b) - 1)
            jumps = np.abs(np.diff(rays, append=rays[0])) > JUMP_MM
            row[f"{name}_jumps"] = float(jumps.sum())
        hidden = phantom.shadow[n]
        if hidden.any():
            row["media_error_in_shadow_um"] = 1000 * float(
                np.abs(mine[1] - truth[1])[hidden].mean()
            )
        burden = [100 * (1 - area(c[0]) / area(c[1])) for c in (mine, truth)]
        row["plaque_burden_error_points"] = abs(burden[0] - burden[1])
        row["topology_violations"] = float(not closed_and_nested(found[0, :, n], found[1, :, n]))
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return out


def summary(rows: dict[str, list[float]]) -> dict[str, Any]:
    """Return mean, median, 95th percentile and largest over frames, and counts as sums."""
    out: dict[str, Any] = {}
    for name, values in rows.items():
        if name.endswith(("_jumps", "_violations")):
            out[name] = int(sum(values))
            continue
        v = np.array(values)
        told = {
            "mean": v.mean(),
            "median": np.median(v),
            "p95": np.percentile(v, 95),
            "max": v.max(),
        }
        out[name] = {"frames": len(v)} | {k: round(float(x), 2) for k, x in told.items()}
    return out


def main() -> None:
    """Print a table; write results/ivus_lumen_media.json unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three frames, nothing written")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--every", type=int, default=2, help="every which real frame")
    args = parser.parse_args()
    every, seeds = (8, [0]) if args.quick else (args.every, args.seeds)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for shadows in (True, False):
        rows: dict[str, dict[str, list[float]]] = {}
        seconds: dict[str, list[float]] = {}
        for seed in seeds:
            phantom = vessel(seed, every, shadows)
            for method, (radius, cpu_s) in found_by(phantom).items():
                seconds.setdefault(method, []).append(cpu_s)
                kept = rows.setdefault(method, {})
                for name, values in compared(radius.numpy(), phantom).items():
                    kept.setdefault(name, []).extend(values)
        case = "guide wire and calcium" if shadows else "no shadow"
        frames = len(phantom.lumen_mm)
        results[case] = {
            m: summary(r) | {"cpu_s_per_frame": round(sum(seconds[m]) / len(seeds) / frames, 3)}
            for m, r in rows.items()
        }
        for method, found in results[case].items():
            told = [
                f"{n} {found[f'{n}_error_um']['mean']:.0f} µm, "
                f"{found[f'{n}_area_error_percent']['mean']:.2f} %"
                for n in recipe.SURFACES
            ]
            print(
                f"{case} | {method} | {' | '.join(told)} | {found['topology_violations']}",
                flush=True,
            )
    if args.quick:
        return
    record = {
        "versions": versions("medpipe", "torch", "numba", "numpy", "scipy"),
        "what": "lumen contours of a real pullback, simulated media, speckle and shadows",
        "seeds": seeds,
        "frames_per_seed": frames,
        "catheter_off_centre_mm": SHIFT_MM,
        "pixel_um": 25,
        "results": results,
    }
    print(write_results("ivus_lumen_media", record))


if __name__ == "__main__":
    main()
