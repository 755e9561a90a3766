"""CPU seconds and memory of drawing the codes of a volume, beside MONAI's sampler.

    python benchmarks/synthesis_sampling.py [--tokens 64 256 512 1400 11200] [--repeats 3]
    python benchmarks/synthesis_sampling.py --plot

One volume at a time, on one thread, every measurement in a process of its own after a first
run at 64 tokens; memory is how far the peak rises above that. The rows ``MONAI`` and
``medpipe, weights of MONAI`` are one network: 6 layers of width 256 with 8 heads,
cross-attention to 4 tokens and 2048 codes, random weights. MONAI's
``VQVAETransformerInferer`` is given a first stage that does nothing, so decoding is in no
row; it has no cache, and is left out above ``--peer-limit`` tokens, where its time follows
from the growth between the two largest sizes (``expected_cpu_s``). The other rows are priors
of the same size as medpipe trains them, with four conditions. ``growth`` is the exponent of
the time from one size to the next. results/synthesis_sampling.svg shows it; ``--plot`` draws
this again from the results that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import RESULTS, spread, versions, write_results

GRIDS = {64: (4, 4, 4), 256: (4, 8, 8), 512: (8, 8, 8), 1400: (10, 14, 10), 11200: (20, 28, 20)}
CODES, WIDTH, LAYERS, HEADS, CONTEXT = 2048, 256, 6, 8, 4
Draw = Callable[[int], Any]


def peer_network(tokens: int, flash: bool) -> Any:
    """Return MONAI's network with random weights, the same for both kinds of attention."""
    import torch
    from monai.networks.nets import DecoderOnlyTransformer

    torch.manual_seed(0)
    return DecoderOnlyTransformer(
        num_tokens=CODES + 1, max_seq_len=tokens, attn_layers_dim=WIDTH,
        attn_layers_depth=LAYERS, attn_layers_heads=HEADS, with_cross_attention=True,
        use_flash_attention=flash,
    ).eval()  # fmt: skip


def context() -> Any:
    """Return what both attend to."""
    import torch

    return torch.randn(1, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(1))


def monai(tokens: int, flash: bool) -> Draw:
    """Return MONAI's sampler."""
    import torch
    from monai.inferers import VQVAETransformerInferer
    from monai.utils.ordering import Ordering

    network, grid = peer_network(tokens, flash), GRIDS[tokens]
    ordering = Ordering("raster_scan", 3, (1, *grid))
    nothing = SimpleNamespace(num_embeddings=CODES, decode_samples=lambda codes: codes)
    start = torch.full((1, 1), CODES)
    return lambda seed: VQVAETransformerInferer().sample(
        grid, start, nothing, network, ordering, context(), verbose=False
    )


def same_weights(tokens: int) -> Draw:
    """Return the cached sampler with MONAI's network."""
    from medpipe.synthesis.monai_prior import prior_from_monai
    from medpipe.synthesis.sampling import sample_codes

    prior = prior_from_monai(peer_network(tokens, False), GRIDS[tokens]).eval()
    return lambda seed: sample_codes(prior, seeds=[seed], context=context())


def own(tokens: int, attention: str) -> Draw:
    """Return the cached sampler with a prior of medpipe."""
    import torch

    from medpipe.synthesis.prior import Prior, PriorSettings
    from medpipe.synthesis.sampling import sample_codes

    torch.manual_seed(0)
    settings = PriorSettings(
        CODES, GRIDS[tokens], WIDTH, LAYERS, HEADS, conditions=CONTEXT,
        attention=attention,  # type: ignore[arg-type]
    )  # fmt: skip
    prior = Prior(settings).eval()
    values = torch.tensor([[-0.5, 0.0, 0.5, 1.0]])
    return lambda seed: sample_codes(prior, values, seeds=[seed])


METHODS: dict[str, Callable[[int], Draw]] = {
    "MONAI": lambda tokens: monai(tokens, False),
    "MONAI, fused attention": lambda tokens: monai(tokens, True),
    "medpipe, weights of MONAI": same_weights,
    "medpipe, dense": lambda tokens: own(tokens, "dense"),
    "medpipe, plane and column": lambda tokens: own(tokens, "plane-column"),
}


def difference() -> float:
    """Return the largest difference of the logits of both implementations, 512 tokens."""
    import torch

    from medpipe.synthesis.cache import CachedPrior
    from medpipe.synthesis.monai_prior import prior_from_monai

    network = peer_network(512, False)
    cached = CachedPrior(prior_from_monai(network, GRIDS[512]), 1, context())
    codes = torch.randint(CODES, (1, 512), generator=torch.Generator().manual_seed(2))
    started = torch.cat([torch.full((1, 1), CODES), codes[:, :-1]], dim=1)
    with torch.no_grad():
        theirs = network(started, context=context())[0, :, :CODES]
        ours = [cached.step(codes[:, i - 1] if i else None, i) for i in range(512)]
    return float((torch.cat(ours) - theirs).abs().max())


def measure(method: str, tokens: int) -> dict[str, float]:
    """Draw one volume in this process."""
    import torch

    torch.set_num_threads(1)
    METHODS[method](64)(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    draw = METHODS[method](tokens)
    started, wall = time.process_time(), time.perf_counter()
    draw(1)
    return {
        "cpu_s": time.process_time() - started,
        "wall_s": time.perf_counter() - wall,
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }


def in_a_process(method: str, tokens: int) -> dict[str, float]:
    """Measure in a new process, on one thread."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", method, str(tokens)],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def with_growth(rows: list[dict[str, Any]], tokens: list[int]) -> list[dict[str, Any]]:
    """Add the growth between sizes, and what was too long to run."""
    found = []
    for method in METHODS:
        mine = [row for row in rows if row["method"] == method]
        for former, row in pairwise(mine):
            ratio = row["cpu_s"]["median"] / former["cpu_s"]["median"]
            row["growth"] = round(math.log(ratio) / math.log(row["tokens"] / former["tokens"]), 2)
        if mine and "growth" in mine[-1]:
            last = mine[-1]
            for size in (t for t in tokens if t > last["tokens"]):
                expected = last["cpu_s"]["median"] * (size / last["tokens"]) ** last["growth"]
                row = {"method": method, "tokens": size, "expected_cpu_s": round(expected)}
                mine.append(row)
        found += mine
    return found


def plot(rows: list[dict[str, Any]]) -> Path:
    """Draw CPU seconds against tokens; what follows from growth alone is hollow."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "medpipe", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for n, method in enumerate(METHODS):
        mine = [row for row in rows if row["method"] == method]
        run = [(row["tokens"], row["cpu_s"]["median"]) for row in mine if "cpu_s" in row]
        (line,) = ax.plot(*zip(*run, strict=True), "os^Dv"[n] + "-", label=method, markersize=5)
        more = [(row["tokens"], row["expected_cpu_s"]) for row in mine if "expected_cpu_s" in row]
        if more:
            how = {"color": line.get_color(), "markersize": 5, "markerfacecolor": "none"}
            ax.plot(*zip(run[-1], *more, strict=True), "os^Dv"[n] + ":", **how)
    ax.set(
        xscale="log", yscale="log", xlabel="tokens of a volume", ylabel="CPU s on one thread",
        title="Drawing the tokens of one volume; hollow: extrapolated",
    )  # fmt: skip
    ax.set_xticks(list(GRIDS), map(str, GRIDS))
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    path = RESULTS / "synthesis_sampling.svg"
    fig.savefig(path, metadata={"Date": None})
    return path


def main() -> None:
    """Measure and write results/synthesis_sampling.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int, default=1, help="above 512 tokens")
    parser.add_argument("--peer-limit", type=int, default=1400)
    parser.add_argument("--plot", action="store_true", help="only draw the curves again")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    if args.plot:
        known = json.loads((RESULTS / "synthesis_sampling.json").read_text())
        print(plot(known["rows"]))
        return
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for tokens in sorted(args.tokens):
        for repeat in range(args.repeats):  # in turn, so that all see the same machine
            for method in METHODS:
                peer = method.startswith("MONAI")
                if peer and (
                    tokens > args.peer_limit or (tokens > 512 and repeat >= args.peer_repeats)
                ):
                    continue
                one = in_a_process(method, tokens)
                runs.setdefault((method, tokens), []).append(one)
                print(
                    f"{tokens:6} tokens  {method:27} {one['cpu_s']:8.2f} CPU-s "
                    f"{one['memory_mb']:6.0f} MB",
                    flush=True,
                )
    measured = [
        {
            "method": method,
            "tokens": tokens,
            "grid": list(GRIDS[tokens]),
            **{key: spread([one[key] for one in each], 3) for key in each[0]},
        }
        for (method, tokens), each in runs.items()
    ]
    rows = with_growth(measured, sorted(args.tokens))
    print(plot(rows))
    print(
        write_results(
            "synthesis_sampling",
            {
                "versions": versions("medpipe", "monai", "torch"),
                "largest_difference_of_logits": difference(),
                "rows": rows,
            },
        )
    )


if __name__ == "__main__":
    main()
