"""Latents sampled and volumes decoded by several processes, and in turns by one.

    python benchmarks/synthesis_parallel.py [--small] [--ranks 2 4] [--repeats 3]

Processes on this machine, over gloo, one thread each. Weights are drawn at random: times,
memory, bytes and the error of displaced sampling are measured, not the quality of samples.
On a machine with fewer cores than processes, CPU seconds of a process count, not seconds.
Writes results/synthesis_parallel.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from common import spread, versions, write_results
from torch import Tensor

from medpipe.synthesis.autoencoder import AutoencoderSettings, LatentAutoencoder
from medpipe.synthesis.denoiser import Denoiser, DenoiserSettings
from medpipe.synthesis.flow import sample_latents
from medpipe.synthesis.parallel.decode import decode_slabs, halo_decode
from medpipe.synthesis.parallel.exchange import Traffic
from medpipe.synthesis.parallel.patches import PatchParallel

Measured = dict[str, Any]


def lively(net: Any) -> Any:
    """Give every layer weights: MONAI begins with zeros in the last ones."""
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=made) / p[0].numel() ** 0.5)
    return net.eval()


def measured(work: Callable[[], Tensor]) -> tuple[Tensor, Measured]:
    """Return a result, its seconds, CPU seconds, and MB above what was there before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    found: Measured = {"seconds": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    found["peak_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return made, found


def _rank(rank: int, count: int, folder: str, queue: Any, job: Callable[[], Measured]) -> None:
    torch.set_num_threads(1)
    if count > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count
        )
    found = job()
    queue.put({"rank": rank} | found)
    if count > 1:
        dist.barrier()
        dist.destroy_process_group()


def in_processes(count: int, job: Callable[[], Measured]) -> list[Measured]:
    """Run a job in fresh processes that know each other; return what each found."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        children = [
            context.Process(target=_rank, args=(rank, count, folder, queue, job))
            for rank in range(count)
        ]
        for child in children:
            child.start()
        found = [queue.get() for _ in children]
        for child in children:
            child.join()
    return sorted(found, key=lambda row: row["rank"])


def summary(runs: list[list[Measured]]) -> Measured:
    """Return the spread over repeats of the slowest process, and what all repeats share."""
    out: Measured = {
        name: spread([max(row[name] for row in run) for run in runs], 3)
        for name in ("seconds", "cpu_s", "peak_mb")
    }
    fixed = {k: v for k, v in runs[0][0].items() if k not in (*out, "rank")}
    return out | fixed


def sampling(args: argparse.Namespace) -> dict[str, Measured]:
    """Sample on one device, synchronously, and displaced."""
    settings = DenoiserSettings(
        channels=(16, 32, 32) if args.small else (64, 128, 256), groups=8 if args.small else 16,
        attention=(False, True, True),
    )  # fmt: skip
    net = lively(Denoiser(settings))
    shape = (8, 16, 8) if args.small else (20, 28, 20)
    ask: dict[str, Any] = {"seeds": [1, 2], "steps": args.steps}
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        alone = torch.tensor(pool.apply(_alone, (net, shape, ask)))
    apart = float((alone[0] - alone[1]).square().mean().sqrt())

    def job(how: dict[str, Any] | None) -> Measured:
        parallel = None if how is None else PatchParallel(**how)
        made, found = measured(lambda: sample_latents(net, shape, parallel=parallel, **ask))
        found["rms_error"] = float((made - alone).square().mean().sqrt())
        found["error_of_distance"] = found["rms_error"] / apart
        if parallel is not None:
            found["bytes_sent_by_the_first"] = parallel.traffic.to_json()
        return found

    ways: dict[str, tuple[int, dict[str, Any] | None]] = {"one device": (1, None)}
    for count in args.ranks:
        ways[f"synchronous, {count}"] = (count, {})
        for warmup in (1, 4):
            how = {"mode": "displaced", "warmup": warmup}
            ways[f"displaced after {warmup}, {count}"] = (count, how)
    rows = {
        name: summary([in_processes(count, lambda how=how: job(how)) for _ in range(args.repeats)])
        for name, (count, how) in ways.items()
    }
    facts = {"latent": list(shape), "steps": args.steps, "rms_distance_of_two_samples": apart}
    return {"facts": facts, **rows}


def _alone(net: Denoiser, shape: tuple[int, ...], ask: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    return sample_latents(net, shape, **ask).tolist()


def decoding(args: argparse.Namespace) -> dict[str, Measured]:
    """Decode at once, in turns, and shared."""
    settings = AutoencoderSettings(
        channels=(16, 32, 32) if args.small else (32, 64, 64), groups=16, residual_blocks=2
    )
    decoder = lively(LatentAutoencoder(settings)).decoder
    shape = (6, 8, 6) if args.small else (40, 56, 40)
    latent = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    with tempfile.NamedTemporaryFile() as file:

        def at_once() -> Measured:
            with torch.no_grad():
                made, found = measured(lambda: decoder(latent))
            torch.save(made, file.name)
            return found

        in_processes(1, at_once)
        whole = torch.load(file.name, weights_only=True)

    def compared(work: Callable[[], Tensor]) -> Measured:
        with torch.no_grad():
            made, found = measured(work)
        return found | {"largest_error": float((made - whole).abs().max())}

    def shared() -> Measured:
        traffic = Traffic()
        found = compared(lambda: halo_decode(decoder, latent, traffic=traffic))
        return found | {"bytes_sent_by_the_first": traffic.to_json()}

    slabs = 4 if args.small else 14
    ways: dict[str, tuple[int, Callable[[], Measured]]] = {
        "at once": (1, lambda: compared(lambda: decoder(latent))),
        "in turns": (1, lambda: compared(lambda: decode_slabs(decoder, latent, slabs=slabs))),
        "in turns, features kept": (
            1,
            lambda: compared(lambda: decode_slabs(decoder, latent, slabs=slabs, storage="cpu")),
        ),
    }
    ways |= {f"shared by {count}": (count, shared) for count in args.ranks}
    rows = {
        name: summary([in_processes(count, job) for _ in range(args.repeats)])
        for name, (count, job) in ways.items()
    }
    return {"facts": {"latent": list(shape), "turns": slabs}, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes of a minute")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", default="synthesis_parallel", help="of the results file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of the biases, which `lively` leaves as they are
    results = {"sampling": sampling(args), "decoding": decoding(args)}
    record = {"versions": versions("torch", "monai"), "arguments": vars(args), **results}
    path = write_results(args.name, record)
    print(path)


if __name__ == "__main__":
    main()
