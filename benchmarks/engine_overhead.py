"""What the engine costs: planning, overhead for each case, resume, memory of the driver.

``python benchmarks/engine_overhead.py`` prints a table and writes
``benchmarks/results/engine_overhead.json``. The cases are text files of a few
bytes and the workflow makes one small table of each, so nearly all the time is
the engine's: reading the input's digest, one object with its fsyncs, a link, a
sidecar, a record, and the messages in between.

It is measured on the disk (the folder for temporary files) and in memory
(/dev/shm), because the disk's own share varies from hour to hour. The "floor"
is that share: the same folders, files, fsyncs, links and renames, made by two
processes that do nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from multiprocessing import Process
from pathlib import Path
from typing import Any

from common import spread, write_results

from medpipe.engine.plan import CaseStatus, plan_run
from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.run import run_workflow
from medpipe.io.atomic import fsync_dir, fsync_file
from medpipe.io.case import Case
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec, SaveSpec

REPEATS = {1_000: 5, 10_000: 2}  # number of cases → how often it is measured
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
    """Return the peak resident memory of this process in bytes.

    Not ru_maxrss, which starts at the size of the process that forked this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


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


def _make_files(root: Path, n: int) -> None:
    """Make what the engine makes for each case, and nothing else."""
    for i in range(n):
        tmp = root / f"tmp{i}"
        tmp.mkdir()
        for name in ("size.json", "object.json"):
            (tmp / name).write_bytes(b"x" * 300)
            fsync_file(tmp / name)
        fsync_dir(tmp)
        final = root / f"object{i}"
        tmp.rename(final)
        case = root / f"case{i}"
        case.mkdir()
        os.link(final / "size.json", case / "size.json")
        for name in ("size.json.json", "case.json"):
            (case / f".{name}").write_bytes(b"x" * 1000)
            (case / f".{name}").rename(case / name)


def floor_ms(n: int, workers: int, place: str) -> float:
    """Return the wall-clock milliseconds a case that the file system alone takes."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        roots = [Path(name) / str(w) for w in range(workers)]
        for root in roots:
            root.mkdir()
        start = time.perf_counter()
        processes = [Process(target=_make_files, args=(r, n // workers)) for r in roots]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return 1000 * (time.perf_counter() - start) / n


def in_fresh_process(n: int, workers: int, place: str) -> dict[str, float]:
    """Measure in a process of its own, on new files that have settled."""
    with tempfile.TemporaryDirectory(dir=place) as name:
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
    result = json.loads(text)
    result["overhead_ms_per_case"] = 1000 * result["run_s"] / n
    result["overhead_cpu_ms_per_case"] = 1000 * result["run_cpu_s"] / n
    result["floor_ms_per_case"] = floor_ms(n, workers, place)
    return result


def main() -> None:
    """Measure, print and write the results."""
    workers = 2
    places = {"disk": tempfile.gettempdir()}
    if Path("/dev/shm").is_dir():  # noqa: S108 - a place to measure
        places["memory"] = "/dev/shm"  # noqa: S108
    results: dict[str, Any] = {}
    for place, folder in places.items():
        for n, repeats in REPEATS.items():
            runs = [in_fresh_process(n, workers, folder) for _ in range(repeats)]
            rows = {name: spread([run[name] for run in runs]) for name in runs[0]}
            results[f"{place}, {n} cases"] = rows
            for name, row in rows.items():
                text = f"{row['median']:14.3f}  ({row['min']:.3f} to {row['max']:.3f})"
                print(f"{place:7s}{n:6d}  {name:26s}{text}", flush=True)
    print(write_results("engine_overhead", {"workers": workers, "results": results}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
