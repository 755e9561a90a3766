"""How fast PERK is on a whole volume, beside torchsim's PERK and the floor of arithmetic.

    python benchmarks/perk_speed.py [--shape 256 256 160] [--repeats 3] [--no-tuning] [--gpu]

10 485 760 voxels of the problem of the PERK paper (two SPGR, one DESS pair, kappa known),
1000 features. Timed are one training, the whole search of kernel scale and ridge on the
published grid of 41 by 41, and the estimation: values with flags, the same with standard
errors, and the bare regression. The peer takes part if it can be imported, for example

    pip install --no-deps --target /somewhere torchsim==0.0.8
    PYTHONPATH=/somewhere python benchmarks/perk_speed.py

It is given the same training voxels and the same number of features, and runs in turn with
medpipe. What it does is the bare regression: no flags, no M0 of a normalised model.

The floor that the target refers to is 0.7 µs of one core per voxel: what the two products
and the cosines take one for one when nothing waits for memory. Beside it stands the time of
the arithmetic on this machine, 2 (Q + L) + 12 operations per voxel and feature at the rate of
its float32 matrix product.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import spread, versions, write_results
from perk_paper import PRIORS, PROTOCOL, SIGMA, TISSUE_M0

from medpipe.qmri.hold_out import hold_out
from medpipe.qmri.perk import Perk, train_perk
from medpipe.qmri.perk_kernel import cosine_sums
from medpipe.qmri.priors import Uniform

FEATURES = 1000
SAMPLES = 20_000
SETTINGS = {"length_scale": 0.5, "ridge": 2.0**-34}
FLOOR_US = 0.7
"""Of one core, per voxel with 1000 features."""
COSINE_OPERATIONS = 12
"""Of a cosine in float32: reduction and a polynomial."""
TARGETS = {"training_s": 5.0, "tuning_s": 120.0, "extra_memory_mb": 500.0, "times_floor": 3.0}


class Memory:
    """Peak resident memory of this process above that at the start, in MB."""

    def __enter__(self) -> Memory:
        self.extra_mb = 0.0
        self._start = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.extra_mb = max(self.extra_mb, (self._now() - self._start) / 1e6)

    @staticmethod
    def _now() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def simulate(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy magnitudes (N, 4) and kappa (N,) in float32, a part at a time."""
    g = torch.Generator().manual_seed(0)
    signal = torch.empty(count, PROTOCOL.count)
    kappa = torch.empty(count)
    priors = PRIORS | TISSUE_M0
    for start in range(0, count, 500_000):
        rows = slice(start, min(start + 500_000, count))
        n = rows.stop - start
        drawn = {name: prior.sample(n, g).float() for name, prior in priors.items()}
        ideal = PROTOCOL.signal(drawn)
        parts = torch.randn((2, *ideal.shape), generator=g) * SIGMA
        signal[rows] = torch.hypot(ideal + parts[0], parts[1])
        kappa[rows] = drawn["kappa"]
    return signal, kappa


def clock(work: Callable[[], Any]) -> tuple[float, float]:
    """Return wall and processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def floor_s(count: int, latents: int) -> dict[str, float]:
    """Return the floor, and the seconds that the arithmetic alone takes on this machine."""
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    a @ b
    rate = max(2 * 2048**3 / clock(lambda: a @ b)[0] for _ in range(10))
    regressors = PROTOCOL.count + len(PROTOCOL.knowns)
    operations = count * FEATURES * (2 * (regressors + latents) + COSINE_OPERATIONS)
    return {
        "seconds": round(FLOOR_US * 1e-6 * count / torch.get_num_threads(), 3),
        "matrix_product_gflops": round(rate / 1e9, 1),
        "operations_g": round(operations / 1e9, 1),
        "arithmetic_seconds": round(operations / rate, 3),
    }


def peer(training: Perk) -> tuple[Any, list[float]] | None:
    """Return torchsim's PERK fitted to the same kind of voxels, with the seconds it took."""
    try:
        from torchsim.estimators import PERK
    except ImportError:
        return None
    drawn = training.recipe.draw(SAMPLES, "train").samples
    values = torch.stack([drawn.values[n] for n in ("m0", "t1_s", "t2_s")], 1)
    known = drawn.known["kappa"][:, None]
    model = PERK(
        n_features=FEATURES,
        regularization=2.0**-41,
        complex_mode="magnitude",
        uncertainty=False,
        feature_seed=0,
    )
    seconds = [
        clock(lambda: model.fit(signals=drawn.signal, known=known, parameters=values))[0]
        for _ in range(3)
    ]
    return model, seconds


def bare(model: Perk, signal: torch.Tensor, kappa: torch.Tensor) -> None:
    """Regress with M0 as the published kind does: no flags, no policy."""
    q = torch.cat([signal, kappa[:, None]], 1)
    features = model.features
    cosine_sums(q, features.frequencies, features.phases, model.readout)


def estimations(
    signal: torch.Tensor, kappa: torch.Tensor, repeats: int
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return wall and processor seconds of every way, in turn, and extra memory in MB."""
    model = train_perk(PROTOCOL, PRIORS | TISSUE_M0, SIGMA, **SETTINGS)
    published = train_perk(
        PROTOCOL,
        PRIORS | {"m0": Uniform(0.01, 1.0)},
        SIGMA,
        normalize=False,
        logarithm=False,
        **SETTINGS,
    )
    known = {"kappa": kappa}
    ways: dict[str, Callable[[], Any]] = {
        "values_and_flags": lambda: model.estimate(signal, known, errors=False),
        "with_errors": lambda: model.estimate(signal, known),
        "bare_regression": lambda: bare(published, signal, kappa),
    }
    rival = peer(published)
    if rival is not None:
        ways["torchsim"] = lambda: rival[0](signal, known=kappa[:, None])
    some = slice(0, 10_000)
    model.estimate(signal[some], {"kappa": kappa[some]})  # compiles
    walls: dict[str, list[float]] = {name: [] for name in ways}
    cpus: dict[str, list[float]] = {name: [] for name in ways}
    extra = {}
    for _ in range(repeats):
        for name, work in ways.items():
            with Memory() as memory:
                wall, cpu = clock(work)
            walls[name].append(wall)
            cpus[name].append(cpu)
            extra[name] = max(extra.get(name, 0.0), round(memory.extra_mb, 1))
            print(f"  {name:20} {wall:8.2f} s wall {cpu:8.2f} s cpu {extra[name]:8.1f} MB")
    seconds: dict[str, Any] = {
        name: {"wall_s": spread(walls[name], 3), "cpu_s": spread(cpus[name], 3)} for name in ways
    }
    if rival is not None:
        seconds["torchsim"]["training_s"] = spread(rival[1], 3)
    return seconds, extra


def on_gpu(count: int, repeats: int) -> dict[str, Any]:
    """Return the seconds of the estimation on a GPU, images already there."""
    signal, kappa = (t.cuda() for t in simulate(count))
    model = train_perk(PROTOCOL, PRIORS | TISSUE_M0, SIGMA, **SETTINGS)
    out = {}
    for name, errors in (("values_and_flags", False), ("with_errors", True)):

        def work(errors: bool = errors) -> None:
            model.estimate(signal, {"kappa": kappa}, errors=errors)
            torch.cuda.synchronize()

        work()
        out[name] = spread([clock(work)[0] for _ in range(repeats)])
    return out


def judge(record: dict[str, Any]) -> dict[str, bool]:
    """Return which targets are met."""
    seconds = record["estimation"]
    wall = {name: entry["wall_s"]["median"] for name, entry in seconds.items()}
    verdict = {
        "training at most 5 s": record["training_s"]["median"] <= TARGETS["training_s"],
        "extra memory below 500 MB": max(
            mb for name, mb in record["extra_memory_mb"].items() if name != "torchsim"
        )
        < TARGETS["extra_memory_mb"],
        "at most 3 × the floor": wall["values_and_flags"]
        <= TARGETS["times_floor"] * record["floor"]["seconds"],
    }
    if "torchsim" in wall:
        verdict["not slower than torchsim"] = wall["values_and_flags"] <= wall["torchsim"]
    if "tuning_s" in record:
        verdict["tuning at most 2 min"] = record["tuning_s"] <= TARGETS["tuning_s"]
    return verdict


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs=3, type=int, default=(256, 256, 160))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-tuning", action="store_true")
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="time the GPU instead of the host")
    args = parser.parse_args(arguments)
    count = args.shape[0] * args.shape[1] * args.shape[2]
    record: dict[str, Any] = {
        "versions": versions("torch", "numba"),
        "threads": torch.get_num_threads(),
        "voxels": count,
        "features": FEATURES,
        "training_voxels": SAMPLES,
    }
    if args.gpu:
        record["gpu_s"] = on_gpu(count, args.repeats)
        print(record)
        if not args.no_write:
            print(write_results("perk_speed_gpu", record))
        return

    def train() -> None:
        train_perk(PROTOCOL, PRIORS | TISSUE_M0, SIGMA, samples=SAMPLES, **SETTINGS)

    train()  # compiles
    trainings = [clock(train) for _ in range(args.repeats)]
    record["training_s"] = spread([wall for wall, _ in trainings])
    record["training_cpu_s"] = spread([cpu for _, cpu in trainings])
    print("training", record["training_s"], "cpu", record["training_cpu_s"])
    if not args.no_tuning:
        wall, cpu = clock(lambda: hold_out(PROTOCOL, PRIORS | TISSUE_M0, SIGMA))
        record["tuning_s"], record["tuning_cpu_s"] = round(wall, 1), round(cpu, 1)
        print("tuning", record["tuning_s"], "cpu", record["tuning_cpu_s"])
    signal, kappa = simulate(count)
    record["floor"] = floor_s(count, 2)
    print("floor", record["floor"])
    record["estimation"], record["extra_memory_mb"] = estimations(signal, kappa, args.repeats)
    record["times_floor"] = round(
        record["estimation"]["values_and_flags"]["wall_s"]["median"] / record["floor"]["seconds"],
        2,
    )
    record["targets"] = judge(record)
    for text, met in record["targets"].items():
        print(f"  {'met ' if met else 'MISSED'} {text}")
    if not args.no_write:
        print(write_results("perk_speed", record))


if __name__ == "__main__":
    main()
