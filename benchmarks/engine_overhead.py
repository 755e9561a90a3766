"""What the engine costs: planning, overhead for each case, resume, memory of the driver.

``python benchmarks/engine_overhead.py`` prints a table and writes
``benchmarks/results/engine_overhead.json``. The cases are text files of a few
bytes and the workflow makes one small table of each, so nearly all the time is
the engine's: reading the input's digest, one object with two fsyncs' worth of
files, a link, a sidecar, a record, and the messages in between.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from medpipe.engine.plan import CaseStatus, plan_run
from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.run import run_workflow
from medpipe.io.case import Case
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, SaveSpec

REPEATS = {1_000: 3, 10_000: 1}  # number of cases → how often it is measured
STEP = """
class Lengthd:
    def __init__(self, keys):
        self.keys = keys

    def __call__(self, data):
        out = dict(data)
        for key in self.keys:
            out[key] = {"letters": len(open(out[key]).read())}
        return out
"""


class Cases(Collection[Case]):
    """Cases that are made when they are asked for, so that only the engine holds memory."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n = folder, n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Case]:
        for i in range(self.n):
            yield Case(f"c{i:05d}", {"text": f"{self.folder}/{i // 1000}/c{i:05d}.txt"})

    def __contains__(self, case: object) -> bool:
        return any(case == other for other in self)


def workflow() -> CompiledWorkflow:
    """One table, saved."""
    step = CompiledStep(
        id="length",
        use="bench.length",
        target="bench_steps:Lengthd",
        version="1",
        inputs=("text",),
        outputs=("size",),
        makes="table",
        save=(SaveSpec("size", "size.json"),),
    )
    return CompiledWorkflow("bench", "1", "", {"text": InputSpec("file")}, (step,))


def clocks() -> tuple[float, float]:
    """Return wall-clock seconds and CPU seconds of this process and the children that ended."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return time.perf_counter(), cpu


def peak_rss() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(root: Path, n: int, workers: int) -> dict[str, float]:
    """Plan, run, plan again and resume `n` cases; called in a fresh process."""
    cases, out, compiled = Cases(root / "inputs", n), root / "out", workflow()
    result: dict[str, float] = {}

    def timed(name: str, action: Any) -> Any:
        wall, cpu = clocks()
        value = action()
        now = clocks()
        result[f"{name}_s"], result[f"{name}_cpu_s"] = now[0] - wall, now[1] - cpu
        return value

    def run() -> Any:
        return run_workflow(compiled, cases, out, executor=LocalExecutor(workers, gpus=[]))

    timed("plan_before", lambda: plan_run(compiled, cases, out))
    result["driver_rss_start_bytes"] = peak_rss()
    assert timed("run", run).done == n
    result["driver_rss_peak_bytes"] = peak_rss()
    plan = timed("plan_after", lambda: plan_run(compiled, cases, out))
    assert plan.count(CaseStatus.CACHED) == n
    summary = timed("resume", run)
    assert (summary.cached, summary.done) == (n, 0)
    return result


def in_fresh_process(n: int, workers: int) -> dict[str, float]:
    """Measure in a process of its own, on new files that have settled."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "bench_steps.py").write_text(STEP)
        for i in range(n):
            folder = root / "inputs" / str(i // 1000)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"c{i:05d}.txt").write_text("x" * (1 + i % 97) + str(i))
        time.sleep(2.5)
        path = os.pathsep.join([name, os.environ.get("PYTHONPATH", "")])
        text = subprocess.run(
            [sys.executable, __file__, "--one", name, str(n), str(workers)],
            env=os.environ | {"PYTHONPATH": path},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        shutil.rmtree(root / "out")
    return json.loads(text)


def main() -> None:
    """Measure, print and write the results."""
    workers = 2
    rows: dict[str, Any] = {}
    for n, repeats in REPEATS.items():
        runs = [in_fresh_process(n, workers) for _ in range(repeats)]
        for run in runs:
            run["overhead_ms_per_case"] = 1000 * run["run_s"] / n
            run["overhead_cpu_ms_per_case"] = 1000 * run["run_cpu_s"] / n
        rows[str(n)] = {
            name: {
                "n": repeats,
                "median": round(statistics.median(r[name] for r in runs), 4),
                "min": round(min(r[name] for r in runs), 4),
                "max": round(max(r[name] for r in runs), 4),
            }
            for name in runs[0]
        }
        for name, row in rows[str(n)].items():
            print(
                f"{n:6d} {name:28s} {row['median']:14.4f}  ({row['min']:.4f} to {row['max']:.4f})"
            )
    record = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared with other work",
        "load_average_at_end": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "workers": workers,
        "results": rows,
    }
    path = Path(__file__).parent / "results" / "engine_overhead.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
