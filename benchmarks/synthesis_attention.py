"""CPU seconds of sparse attention beside dense, forward and with gradients.

    python benchmarks/synthesis_attention.py [--grid 20 28 20] [--repeats 5]

Causal attention of one volume, 8 heads of width 32, single precision, one thread. Dense is
``scaled_dot_product_attention(is_causal=True)``. At a grid of 1,000 tokens or fewer every
kind is also compared with attention under its mask.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from common import spread, versions, write_results
from torch.nn.functional import scaled_dot_product_attention

from medpipe.synthesis.attention import AttentionPattern, attend

KINDS = ("dense", "plane-column", "strided", "fixed")
HEADS, HEAD_WIDTH = 8, 32


def tensors(length: int, gradient: bool) -> list[torch.Tensor]:
    """Return queries, keys and values."""
    torch.manual_seed(0)
    shape = (1, HEADS, length, HEAD_WIDTH)
    return [torch.randn(shape, requires_grad=gradient) for _ in range(3)]


def seconds(pattern: AttentionPattern, gradient: bool) -> float:
    """Return the CPU seconds of one call."""
    q, k, v = tensors(pattern.length, gradient)
    started = time.process_time()
    found = attend(q, k, v, pattern, None)
    if gradient:
        found.sum().backward()
    return time.process_time() - started


def difference(pattern: AttentionPattern) -> float:
    """Return the largest difference from attention under the mask."""
    q, k, v = tensors(pattern.length, False)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=pattern.mask())
    return float((attend(q, k, v, pattern, None) - expected).abs().max())


def main() -> None:
    """Measure and write results/synthesis_attention.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--grid", type=int, nargs=3, default=[20, 28, 20])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    grid = tuple(args.grid)
    patterns = {kind: AttentionPattern(grid, kind=kind) for kind in KINDS}  # type: ignore[arg-type]
    times: dict[tuple[str, bool], list[float]] = {(k, g): [] for k in KINDS for g in (False, True)}
    for repeat in range(args.repeats + 1):  # in turn; the first is not counted
        for (kind, gradient), each in times.items():
            taken = seconds(patterns[kind], gradient)
            if repeat:
                each.append(taken)
    rows: list[dict[str, Any]] = []
    for kind, pattern in patterns.items():
        row: dict[str, Any] = {"kind": kind, "pairs": pattern.pairs}
        for gradient, name in ((False, "forward"), (True, "forward_and_gradient")):
            row[f"{name}_cpu_s"] = spread(times[kind, gradient])
            dense = spread(times["dense", gradient])["median"]
            row[f"{name}_faster"] = round(dense / row[f"{name}_cpu_s"]["median"], 2)
        if math.prod(grid) <= 1000:
            row["largest_difference_from_mask"] = difference(pattern)
        print(
            f"{kind:13} {row['pairs']:10} pairs  forward {row['forward_cpu_s']['median']:.3f} s "
            f"({row['forward_faster']}x)  with gradient "
            f"{row['forward_and_gradient_cpu_s']['median']:.3f} s "
            f"({row['forward_and_gradient_faster']}x)"
        )
        rows.append(row)
    results = {"versions": versions("medpipe", "torch"), "grid": list(grid), "rows": rows}
    print(write_results("synthesis_attention", results))


if __name__ == "__main__":
    main()
