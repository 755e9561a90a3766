"""The dask executor against real schedulers and workers: nothing is lost, nobody else dies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medpipe.engine.pool.local import LocalExecutor
from medpipe.engine.protocol import Job, RunSpec
from medpipe.errors import UsageError
from medpipe.workflow.compiled import CompiledStep, CompiledWorkflow, InputSpec

distributed = pytest.importorskip("distributed")

from medpipe.engine.dask import DaskExecutor, JobOptions  # noqa: E402
from medpipe.engine.dask_cluster import job_cluster  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    # Closing a cluster leaves sockets and loops of distributed to the collector.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

STEP = '''
import os, signal, time
from pathlib import Path


class Countd:
    """Count the bytes of a file; do what the file says while doing so."""

    version = "1"
    makes = "table"

    def __init__(self, keys, log, allow_missing_keys=False):
        self.keys, self.log = keys, log

    def __call__(self, data):
        path = Path(data[self.keys[0]])
        text = path.read_text()
        with open(self.log, "a") as f:
            gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
            f.write(f"{path.stem} {os.getppid()} {os.getpid()} {gpu}\\n")
        if "die" in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in text:
            time.sleep(0.4)
        if "hang" in text:
            time.sleep(600)
        return {**data, self.keys[0]: {"bytes": len(text)}}
'''


class Bench:
    """Inputs, and a place for results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "inputs").mkdir()
        self.log = folder / "starts.log"

    def jobs(self, n: int, **special: str) -> list[Job]:
        jobs = []
        for i in range(n):
            path = self.folder / "inputs" / f"c{i}.txt"
            path.write_text(special.get(path.stem, special.get("every", "")) + f" case {i}")
            jobs.append(Job(path.stem, {"x": str(path)}))
        return jobs

    def spec(self, name: str = "out", **more) -> RunSpec:
        out = self.folder / name
        out.mkdir(exist_ok=True)
        step = CompiledStep(
            id="count",
            use="count",
            target="dask_test_step:Countd",
            version="1",
            inputs=("x",),
            outputs=("n",),
            params={"log": str(self.log)},
            makes="table",
        )
        workflow = CompiledWorkflow("count", "1", "", {"x": InputSpec("file")}, (step,))
        return RunSpec(str(out), workflow.to_dict(), run_id=f"r-{name}", device="cpu", **more)

    def starts(self) -> Counter[str]:
        return Counter(line.split()[0] for line in self.lines())

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def store(self, name: str) -> dict[str, str]:
        store = self.folder / name / "store"
        return {
            p.relative_to(store).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in store.rglob("*")
            if p.is_file()
        }


@pytest.fixture(scope="module", autouse=True)
def _step_on_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let child processes find the step; give them two GPUs to see."""
    folder = tmp_path_factory.mktemp("step")
    (folder / "dask_test_step.py").write_text(STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        yield


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@contextlib.contextmanager
def scheduler_process(folder: Path, workers: int, *options: str) -> Iterator[tuple[str, list]]:
    """Start `dask scheduler` and `dask worker` as one would by hand; all on loopback."""
    info = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    loopback = ["--host", "127.0.0.1", "--no-dashboard"]
    free = ["--dashboard-address", "127.0.0.1:0"]
    command = [*dask, "scheduler", *loopback, *free, "--port", "0", "--scheduler-file", str(info)]
    processes = [subprocess.Popen(command, cwd=folder, **quiet)]
    try:
        deadline = time.monotonic() + 60
        while not info.exists() or not info.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(info.read_text())["address"]
        for _ in range(workers):
            command = [*dask, "worker", address, *loopback, "--no-nanny", "--nthreads", "1"]
            processes.append(subprocess.Popen([*command, *options], cwd=folder, **quiet))
        yield address, processes[1:]
    finally:
        for process in processes[::-1]:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def foreign(
    _step_on_path: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list]]:
    """A scheduler with three workers, for tests that leave the workers alive."""
    with scheduler_process(tmp_path_factory.mktemp("dask"), 3) as (address, workers):
        yield address, workers


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_one_case_kills_itself_and_no_other(bench: Bench) -> None:
    events: list[dict] = []
    executor = DaskExecutor(workers=2)
    assert executor.workers == 2
    jobs = bench.jobs(12, c5="die")
    outcomes = list(executor.run(jobs, bench.spec(), events.append))
    status = {o.case_id: o.status for o in outcomes}
    assert len(outcomes) == 12
    assert status == {f"c{i}": "died" if i == 5 else "done" for i in range(12)}
    dead = next(o for o in outcomes if o.status == "died")
    assert dead.error is not None
    assert (dead.error["signal"], dead.error["step"], dead.attempts) == ("SIGKILL", "count", 2)
    assert bench.starts() == {f"c{i}": 2 if i == 5 else 1 for i in range(12)}
    assert bench.starts().total() == 13
    assert len({line.split()[1] for line in bench.lines()}) == 2  # both workers took part
    for outcome in outcomes:
        names = [e["event"] for e in outcome.events]
        if outcome.status == "done":
            assert names == ["step_started", "step_finished"]
            assert len(json.dumps(outcome.to_dict())) < 1500
    assert not [e for e in events if e["event"] == "worker_refused"]
    again = LocalExecutor(1).run(jobs[:4], bench.spec())  # the store is the same
    assert {o.computed for o in again} == {0}


@pytest.mark.slow
def test_a_lost_worker_costs_its_case_one_more_start(bench: Bench) -> None:
    jobs = bench.jobs(12, every="sleep")
    reference = list(LocalExecutor(2).run(jobs, bench.spec("local")))
    assert {o.status for o in reference} == {"done"}
    bench.log.unlink()
    events: list[dict] = []
    with scheduler_process(bench.folder, 3) as (address, workers):
        executor = DaskExecutor(address)
        run = executor.run(jobs, bench.spec("dask"), events.append)
        outcomes = [next(run)]
        victim = bench.lines()[-1].split()
        assert int(victim[1]) in [w.pid for w in workers]
        os.kill(int(victim[1]), signal.SIGKILL)
        outcomes += run
        wait_until_gone([int(line.split()[2]) for line in bench.lines()])
        assert executor.workers == 2
        assert sorted(w.poll() is None for w in workers) == [False, True, True]
    assert Counter(o.case_id for o in outcomes) == Counter(job.case_id for job in jobs)
    assert {o.status for o in outcomes} == {"done"}
    assert bench.store("dask") == bench.store("local")
    assert sum(name.endswith("object.json") for name in bench.store("local")) == 12
    lost = [e["case_id"] for e in events if e["event"] == "worker_died"]
    assert len(lost) == 1
    assert 12 <= bench.starts().total() <= 13
    assert [o.attempts for o in outcomes if o.case_id == lost[0]] == [2]


@pytest.mark.slow
def test_a_case_whose_workers_are_lost_twice_is_given_up(bench: Bench) -> None:
    jobs = bench.jobs(4, c1="hang")
    killed: list[int] = []

    def kill_those_that_hang(stop: threading.Event) -> None:
        while not stop.wait(0.05):
            for line in bench.lines():
                name, worker, _, _ = line.split()
                if name == "c1" and int(worker) not in killed:
                    killed.append(int(worker))
                    os.kill(int(worker), signal.SIGKILL)

    stop = threading.Event()
    thread = threading.Thread(target=kill_those_that_hang, args=(stop,))
    thread.start()
    try:
        outcomes = list(DaskExecutor(workers=2).run(jobs, bench.spec()))
    finally:
        stop.set()
        thread.join()
    status = {o.case_id: o.status for o in outcomes}
    assert status == {"c0": "done", "c1": "died", "c2": "done", "c3": "done"}
    dead = next(o for o in outcomes if o.status == "died")
    assert dead.error is not None
    assert "Dask worker that ran it was lost" in dead.error["message"]
    assert bench.starts()["c1"] == 2
    assert len(killed) == 2


def test_closing_the_iterator_kills_children_of_foreign_workers(
    bench: Bench, foreign: tuple[str, list]
) -> None:
    address, workers = foreign
    jobs = bench.jobs(6, c0="hang", c1="hang")
    run = DaskExecutor(address).run(jobs, bench.spec())
    assert next(run).case_id == "c2"  # the third worker: the first two hang
    deadline = time.monotonic() + 60
    while not {"c0", "c1"} <= set(bench.starts()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.close()
    wait_until_gone([int(line.split()[2]) for line in bench.lines()])
    assert all(w.poll() is None for w in workers)
    finished = DaskExecutor(address).run(jobs[3:], bench.spec())
    assert {o.status for o in finished} == {"done"}


def test_jobs_are_pulled_only_when_a_worker_is_free(
    bench: Bench, foreign: tuple[str, list]
) -> None:
    pulled: list[str] = []

    def lazily() -> Iterator[Job]:
        for job in bench.jobs(10):
            pulled.append(job.case_id)
            yield job

    run = DaskExecutor(foreign[0]).run(lazily(), bench.spec())
    for seen, outcome in enumerate(run, start=1):
        assert outcome.status == "done"
        assert len(pulled) <= seen + 2


def test_each_worker_of_a_machine_gets_a_gpu_of_its_own(
    bench: Bench, foreign: tuple[str, list]
) -> None:
    jobs = bench.jobs(8, every="sleep")
    outcomes = list(DaskExecutor(foreign[0], gpus=[0, 1]).run(jobs, bench.spec()))
    assert {o.status for o in outcomes} == {"done"}
    of_worker = {(line.split()[1], line.split()[3]) for line in bench.lines()}
    assert sorted(gpu for _, gpu in of_worker) == ["4", "7"]  # the third has none, and no case


@pytest.mark.parametrize(("gpus", "seen"), [(None, ["4,7"]), ([], [])])
def test_gpus_are_left_alone_or_hidden(
    bench: Bench, foreign: tuple[str, list], gpus: list[int] | None, seen: list[str]
) -> None:
    outcomes = list(DaskExecutor(foreign[0], gpus=gpus).run(bench.jobs(1), bench.spec()))
    assert [o.status for o in outcomes] == ["done"]
    assert bench.lines()[0].split()[3:] == seen


def test_workers_that_cannot_be_used_are_named(bench: Bench, foreign: tuple[str, list]) -> None:
    spec = bench.spec()
    os.rmdir(spec.out)  # as on a machine without the shared file system
    with pytest.raises(UsageError, match="shared file system"):
        list(DaskExecutor(foreign[0]).run(bench.jobs(1), spec))
    with (
        scheduler_process(bench.folder, 0) as (address, _),
        pytest.raises(UsageError, match="no Dask worker has come up"),
    ):
        list(DaskExecutor(address, start_timeout_s=1).run(bench.jobs(1), bench.spec()))


def test_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="address"):
        DaskExecutor("head:8786")
    with pytest.raises(UsageError, match="address"):
        DaskExecutor("tcp://head:8786", cluster="slurm")
    with pytest.raises(UsageError, match="at least one"):
        DaskExecutor(workers=0)
    with pytest.raises(UsageError, match="JobOptions"):
        DaskExecutor(cluster="pbs", gpus=[0])
    monkeypatch.setenv("PATH", "")
    for kind, command in (("slurm", "sbatch"), ("pbs", "qsub")):
        with pytest.raises(UsageError, match=f"no {command} on this machine"):
            next(DaskExecutor(cluster=kind).run([], RunSpec("/tmp", {}, "r")))
    monkeypatch.setattr("medpipe.engine.dask_cluster.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(UsageError, match="does not answer"):
        _ = DaskExecutor("tcp://127.0.0.1:9").workers
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'medpipe\[dask\]'"):
        DaskExecutor()


OPTIONS = JobOptions(
    queue="gpu",
    account="lab7",
    cores=6,
    memory_gb=24,
    walltime="02:30:00",
    gpus=1,
    directives=("--exclusive",),
    prologue=("module load cuda",),
    host="127.0.0.1",
)


def script(kind: str, options: JobOptions) -> list[str]:
    pytest.importorskip("dask_jobqueue")
    with job_cluster(kind, options) as cluster:
        assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")
        return cluster.job_script().splitlines()


def test_slurm_jobs() -> None:
    lines = script("slurm", OPTIONS)
    for wanted in (
        "#SBATCH -J medpipe",
        "#SBATCH -p gpu",
        "#SBATCH -A lab7",
        "#SBATCH -n 1",
        "#SBATCH --cpus-per-task=6",
        "#SBATCH --mem=23G",
        "#SBATCH -t 02:30:00",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --exclusive",
        "module load cuda",
    ):
        assert wanted in lines
    worker = lines[-1]
    assert "--resources GPU=1" in worker
    assert "--nthreads 6" in worker
    assert "--nworkers" not in worker


def test_pbs_jobs() -> None:
    lines = script("pbs", OPTIONS)
    for wanted in (
        "#PBS -N medpipe",
        "#PBS -q gpu",
        "#PBS -A lab7",
        "#PBS -l select=1:ncpus=6:mem=22889MB:ngpus=1",
        "#PBS -l walltime=02:30:00",
        "module load cuda",
    ):
        assert wanted in lines
    assert "--resources GPU=1" in lines[-1]


@pytest.mark.parametrize("kind", ["slurm", "pbs"])
def test_jobs_without_gpu_ask_for_none(kind: str) -> None:
    text = "\n".join(script(kind, JobOptions(host="127.0.0.1")))
    assert "gpu" not in text.lower()
