"""Minimum cuts of one problem by every solver: seconds, memory, and whether they agree.

    python benchmarks/min_cut.py [--quick] [--repeats N] [--limit-s S] [--only TEXT ...]

Each run is a process of its own with one thread. It makes the problem, solves a tiny
one first (imports, compiled code), and is then timed from the arrays of the problem
to flow and source side, so building a solver's graph is part of it. Memory is the
peak above what was resident when the arrays were loaded. Runs that pass the limit
are killed and reported as killed. PyMaxflow (GPL) is measured where it is installed;
medpipe does not use it. Each row is written when it is measured; rows of an earlier
run stay, if packages and machine are the same. MEDPIPE_REAL_DATA names
the folder of the real ring scan.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "graphcut"))

from common import RESULTS, machine, real_folder, spread, versions, write_results  # noqa: E402

PEER = "PyMaxflow"
SIZES = {"grid": (128, 16), "columns": (64, 10), "large": (128, 12), "maze": (128, 16)}


def instances(quick: bool) -> dict[str, Callable[[], Any]]:
    """Return what makes each problem, by name."""
    import cut_instances as make

    n, c, wide, m = (pair[quick] for pair in SIZES.values())
    table: dict[str, Callable[[], Any]] = {
        f"grid {n}³, regional, λ 10": lambda: make.grid("regional", n, 6, 10),
        f"grid {n}³, seeds, λ 30": lambda: make.grid("seeds", n, 6, 30),
        f"grid {n}³, smooth, λ 60": lambda: make.grid("smooth", n, 6, 60),
        f"grid {n}³, 26 neighbours, λ 30": lambda: make.grid("regional", n, 26, 30),
        f"two nested objects, 2×{n}³": lambda: make.nested(n, min(4, n // 6)),
    }
    for width, depth in ((c, c), (wide, 10 if quick else 64)):
        size = f"{width}×{width}×{depth}×3"
        for kind in make.SMOOTH:
            table[f"columns {size}, {kind}"] = lambda k=kind, w=width, d=depth: make.columns(
                k, (w, w), d
            )
        table[f"columns {size}, irregular"] = lambda w=width, d=depth: make.irregular((w, w), d)
    if (real_folder() / "oct_ring").is_dir():
        table["real OCT ring, 768×284×3"] = lambda: make.real_ring(real_folder())
    table[f"maze {m}×{m}×8"] = lambda: make.maze(m)
    levels = 512 if not quick else 16
    table[f"random levels {levels}×{levels}"] = lambda: make.random_levels(levels, levels)
    return table


def solve_pymaxflow(problem: Any) -> tuple[Any, int, dict[str, float]]:
    """Solve with PyMaxflow, built with its vectorised calls only."""
    import maxflow
    import numpy as np
    import torch

    from medpipe.graphcut.problem import tails_and_heads

    start = time.process_time()
    shape = problem.shape
    arcs = sum(problem.source.numel() for _ in problem.arcs)
    graph = maxflow.GraphInt(problem.source.numel(), arcs)
    nodes = graph.add_grid_nodes(shape)
    index = torch.arange(problem.source.numel()).reshape(shape)
    for family in problem.arcs:
        forward, backward = (
            torch.as_tensor(v, dtype=torch.int64).expand(shape)
            for v in (family.forward, family.backward)
        )
        unit = max(map(abs, family.offset)) == 1 and not problem.wrap and problem.links is None
        if unit and len(shape) <= 3 and family.forward is family.backward:
            structure = np.zeros((3,) * len(shape))
            structure[tuple(o + 1 for o in family.offset)] = 1
            graph.add_grid_edges(nodes, forward.numpy(), structure, symmetric=True)
            continue
        tail, head = (v.reshape(-1) for v in tails_and_heads(problem, family.offset, index))
        out, back = forward.reshape(-1)[tail], backward.reshape(-1)[tail]
        some = (out > 0) | (back > 0)
        graph.add_edges(*(v[some].numpy() for v in (tail, head, out, back)))
    graph.add_grid_tedges(nodes, problem.source.numpy(), problem.sink.numpy())
    built = time.process_time()
    flow = graph.maxflow()
    side = torch.from_numpy(~graph.get_grid_segments(nodes))
    cpu = {"build_cpu_s": built - start, "solve_cpu_s": time.process_time() - built}
    return side, int(flow), cpu


def solvers() -> dict[str, Callable[[Any], tuple[Any, int, dict[str, Any]]]]:
    """Return every solver of medpipe, and the peer where it is installed."""
    from medpipe.graphcut.solve import SOLVERS

    peer = {PEER: solve_pymaxflow} if importlib.util.find_spec("maxflow") else {}
    return {**SOLVERS, **peer}


def resident(field: str) -> int:
    """Return a line of this process's memory in bytes: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def run_one(instance: str, solver: str, quick: bool) -> dict[str, Any]:
    """Solve one problem in this process and measure it."""
    import cut_instances as make
    import torch

    from medpipe.graphcut.problem import cut_value

    torch.set_num_threads(1)
    solve = solvers()[solver]
    for tiny in (make.columns("linear", (4, 4), 6, 2), make.random_levels(3, 4)):
        solve(tiny)
    problem = instances(quick)[instance]()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    side, flow, stats = solve(problem)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resident("VmHWM") - before
    return {
        "cpu_s": cpu,
        "wall_s": wall,
        "peak_mb": peak / 1e6,
        "nodes": problem.source.numel(),
        "families": len(problem.arcs),
        "flow": flow,
        "proved": flow == cut_value(problem, side),
        "side": hashlib.sha256(side.numpy().tobytes()).hexdigest()[:16],
        "stats": {k: v for k, v in stats.items() if isinstance(v, int | float | str)},
    }


def measured(instance: str, solver: str, quick: bool, limit_s: float) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", instance, solver]
    try:
        done = subprocess.run(
            command + ["--quick"] * quick,
            capture_output=True,
            text=True,
            timeout=limit_s,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return {"killed_after_s": limit_s}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"failed": f"exit status {done.returncode}: {last[:120]}"}
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the repeats of one solver on one problem."""
    bad = next((r for r in runs if "flow" not in r), None)
    if bad is not None:
        return bad
    first = runs[0]
    same = ("nodes", "families", "flow", "proved", "side")
    return {
        **{key: spread([r[key] for r in runs]) for key in ("cpu_s", "wall_s", "peak_mb")},
        **{key: first[key] for key in same},
        "repeats_agree": all(r[key] == first[key] for r in runs for key in same),
        "stats": first["stats"],
    }


def cell(result: dict[str, Any]) -> str:
    """One cell of the table."""
    if "killed_after_s" in result:
        return f"killed at {result['killed_after_s']:g} s"
    if "failed" in result:
        return "failed"
    cpu, peak = result["cpu_s"], result["peak_mb"]["median"]
    return f"{cpu['median']:.2f} ({cpu['min']:.2f}–{cpu['max']:.2f}) s, {peak:.0f} MB"


def compare(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the result of each problem, solvers in turn within each repeat."""
    names = [s for s in solvers() if not args.solver or s in args.solver]
    print("| problem | " + " | ".join(names) + " | agree |")
    print("|-|" + "-|" * (len(names) + 1))
    for instance in instances(args.quick):
        if args.only and not any(text in instance for text in args.only):
            continue
        load = os.getloadavg()[0]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(args.repeats):
            for name in names:
                if all("flow" in r for r in runs[name]):  # what was killed once stays out
                    runs[name].append(measured(instance, name, args.quick, args.limit_s))
        row = {name: summary(found) for name, found in runs.items()}
        solved = [r for r in row.values() if "flow" in r]
        agree = bool(solved) and all(
            r["repeats_agree"] and r["proved"] and r["flow"] == solved[0]["flow"] for r in solved
        )
        sides = len({r["side"] for r in solved}) == 1
        told = ("flow" if agree else "NO") + (", side" if sides else "")
        print(f"| {instance} | " + " | ".join(map(cell, row.values())) + f" | {told} |", flush=True)
        yield (
            instance,
            {
                "repeats": args.repeats,
                "limit_s": args.limit_s,
                "load_average_before": round(load, 2),
                "solvers": row,
                "flows_agree": agree,
                "sides_agree": sides,
            },
        )


def earlier(found: dict[str, str]) -> dict[str, Any]:
    """Return the results of an earlier run of the same packages on a machine of this kind."""
    path = RESULTS / "min_cut.json"
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    same = record["versions"] == found and record["machine"] == machine()
    return dict(record["results"]) if same else {}


def main() -> None:
    """Print a table; write each row to results/min_cut.json unless --quick."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing written")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=400, help="wall time of one run")
    parser.add_argument("--only", nargs="*", help="problems whose name holds one of these")
    parser.add_argument("--solver", nargs="*", help="solvers to run (default: all)")
    parser.add_argument("--one", nargs=2, metavar=("PROBLEM", "SOLVER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_one(*args.one, args.quick)))
        return
    packages = ["medpipe", "torch", "numba", "numpy", "scipy", "ortools"]
    packages += [PEER] if importlib.util.find_spec("maxflow") else []
    found = versions(*packages)
    results = earlier(found)
    for problem, result in compare(args):
        if args.quick:
            continue
        results[problem] = result
        record = {
            "versions": found,
            "what": "build and solve; CPU seconds and peak memory above the loaded arrays",
            "threads": 1,
            "results": results,
        }
        write_results("min_cut", record)


if __name__ == "__main__":
    main()
