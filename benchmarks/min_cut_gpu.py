"""Minimum cuts on a GPU: seconds, memory, the proof, and the CPU solver beside them.

    python benchmarks/min_cut_gpu.py [--device cuda] [--quick] [--repeats N] [--only TEXT ...]

Each problem lies on the device when the clock starts and the source side lies there when
it stops. A tiny problem of the same kind runs first, so compiling is not in the figures.
Every flow is compared with the cut, computed anew from the capacities; up to 20 million
nodes also with the flow of the CPU solver. Memory is the peak that torch allocated, above
the problem itself. Without a GPU, --device cpu --quick tries the script.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "graphcut"))

from common import spread, versions, write_results  # noqa: E402

CPU_LIMIT = 20_000_000
"""Nodes up to which the CPU solves the same problem."""


def instances(quick: bool) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return, by name, what makes each problem and a tiny one of its kind."""
    import cut_instances as make

    n, c, k, oct_size = (24, 12, 12, (16, 8)) if quick else (128, 128, 64, (512, 200))
    table: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {}
    for size in (n,) if quick else (n, 2 * n):
        for kind, weight in (("regional", 10), ("smooth", 60)):
            table[f"grid {size}³, {kind}, λ {weight}"] = (
                lambda s=size, kind=kind, w=weight: make.grid(kind, s, 6, w),
                lambda kind=kind, w=weight: make.grid(kind, 8, 6, w),
            )
    table[f"two nested objects, 2×{n}³"] = (
        lambda: make.nested(n, 4),
        lambda: make.nested(12, 4),
    )
    for kind in make.SMOOTH:
        table[f"columns {c}×{c}×{k}×3, {kind}"] = (
            lambda kind=kind: make.columns(kind, (c, c), k),
            lambda kind=kind: make.columns(kind, (6, 6), 12),
        )
    depth = 24 if quick else 496
    table[f"columns {oct_size[0]}×{oct_size[1]}×{depth}×7, linear"] = (
        lambda: make.columns("linear", oct_size, depth, 7),
        lambda: make.columns("linear", (6, 6), 24, 7),
    )
    table[f"maze {n}×{n}×8"] = (lambda: make.maze(n), lambda: make.maze(12))
    return table


def on_device(problem: Any, device: torch.device) -> Any:
    """Return the problem with its tensors on the device."""
    from medpipe.graphcut.problem import ArcFamily, CutProblem

    def move(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    arcs = [ArcFamily(f.offset, move(f.forward), move(f.backward)) for f in problem.arcs]
    return CutProblem(
        move(problem.source), move(problem.sink), arcs, problem.wrap, move(problem.links)
    )


def wait(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(make: tuple[Callable[[], Any], ...], device: torch.device, n: int) -> dict[str, Any]:
    """Solve one problem `n` times and check the flow."""
    from medpipe.graphcut.problem import cut_value
    from medpipe.graphcut.solve import SOLVERS

    SOLVERS["stencil"](on_device(make[1](), device))
    host = make[0]()
    problem = on_device(host, device)
    seconds, peaks = [], []
    for _ in range(n):
        wait(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        start = time.perf_counter()
        side, flow, stats = SOLVERS["stencil"](problem)
        wait(device)
        seconds.append(time.perf_counter() - start)
        if device.type == "cuda":
            peaks.append((torch.cuda.max_memory_allocated(device) - before) / 1e9)
    row: dict[str, Any] = {
        "nodes": problem.source.numel(),
        "seconds": spread(seconds),
        "peak_gb": spread(peaks) if peaks else None,
        "flow": flow,
        "proved": flow == cut_value(problem, side),
        "stats": stats,
    }
    if row["nodes"] <= CPU_LIMIT:
        start = time.perf_counter()
        other, other_flow, _ = SOLVERS["pseudoflow"](host)
        row["cpu_seconds"] = round(time.perf_counter() - start, 3)
        row["agrees_with_cpu"] = other_flow == flow and torch.equal(other, side.to(other.device))
    return row


def main() -> None:
    """Print a table; write results/min_cut_gpu.json unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="problems whose name holds one of these")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU: --device cpu --quick tries the script")
    results: dict[str, Any] = {}
    print("| problem | seconds | peak GB | proved | CPU s | same cut |\n|-|-|-|-|-|-|")
    for name, make in instances(args.quick).items():
        if args.only and not any(text in name for text in args.only):
            continue
        try:
            row = measure(make, device, args.repeats)
        except torch.cuda.OutOfMemoryError:
            results[name] = {"failed": "out of GPU memory"}
            print(f"| {name} | out of memory |", flush=True)
            continue
        results[name] = row
        peak = row["peak_gb"]["median"] if row["peak_gb"] else "–"
        print(
            f"| {name} | {row['seconds']['median']} ({row['seconds']['min']}–"
            f"{row['seconds']['max']}) | {peak} | {row['proved']} | "
            f"{row.get('cpu_seconds', '–')} | {row.get('agrees_with_cpu', '–')} |",
            flush=True,
        )
    if not args.quick:
        record = {"versions": versions("medpipe", "torch", "numba"), "results": results}
        print(write_results("min_cut_gpu", record))


if __name__ == "__main__":
    main()
