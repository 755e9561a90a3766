"""CPU time per voxel of least squares, hybrid and dictionary on simulated voxels.

    python benchmarks/least_squares_speed.py [--voxels N]

The protocol of the PERK paper (two SPGR, one DESS; T1, T2 and M0 unknown, kappa known),
inversion recovery of five magnitudes and echo trains of 16. CPU time of the process is
given, since other work on the machine changes the time on the clock; a first small call
that loads code is not counted. Voxels of 256 × 256 × 160 are what a volume has.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from common import versions, write_results

from medpipe.qmri.dictionary import DictionarySearch
from medpipe.qmri.hybrid import Hybrid
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.perk import train_perk
from medpipe.qmri.protocol import Acquisition, Protocol

VOLUME = 256 * 256 * 160
SIGMA = 3.8607e-4
SPGR = {"flip_angle_deg": (15, 5), "repetition_time_s": 0.0122, "echo_time_s": 0.00467}
DESS = {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}
PAPER = Protocol((Acquisition("spgr", SPGR), Acquisition("dess", DESS)))
RECOVERY = Protocol(
    (Acquisition("inversion_recovery", {"inversion_time_s": (0.05, 0.2, 0.5, 1.1, 2.4)}),)
)
ECHOES = tuple(0.01 * i for i in range(1, 17))
RANGES = {"t1_s": (0.4, 2.0), "t2_s": (0.04, 0.2), "kappa": (0.85, 1.0)}


def simulate(
    protocol: Protocol, count: int, sigma: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return float32 magnitudes (N, D) of random tissue, and kappa where it is known."""
    g = torch.Generator().manual_seed(0)
    values = {"m0": torch.full((count,), 0.8)}
    for name in (*protocol.latents[1:], *protocol.knowns):
        low, high = RANGES.get(name, (0.9, 1.0))
        values[name] = low * (high / low) ** torch.rand(count, generator=g)
    parts = protocol.signal(values).split(100_000)
    noise = (sigma * torch.randn((2, *p.shape), generator=g) for p in parts)
    signal = torch.cat([torch.hypot(p + n[0], n[1]) for p, n in zip(parts, noise, strict=True)])
    return signal, {n: values[n] for n in protocol.knowns}


def timed(estimator: Any, signal: torch.Tensor, known: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return CPU time per voxel and the flags that were set."""
    few = slice(0, 4000)
    estimator.estimate(signal[few], {n: v[few] for n, v in known.items()})
    began = time.process_time()
    found = estimator.estimate(signal, known)
    each = (time.process_time() - began) / len(signal)
    return {
        "voxels": len(signal),
        "cpu_us_per_voxel": round(each * 1e6, 2),
        "cpu_s_per_volume": round(each * VOLUME, 1),
        "flags": {k: v for k, v in found.counts.items() if v},
    }


def main() -> None:
    """Time every estimator and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voxels", type=int, default=500_000)
    count = parser.parse_args().voxels
    single = torch.float32
    signal, kappa = simulate(PAPER, count, SIGMA)
    perk = train_perk(PAPER, None, SIGMA / 0.8)
    bounds = {"t1_s": (10**-1.5, 10**0.5), "t2_s": (10**-2.5, 1.0)}
    grid = DictionarySearch(PAPER, bounds, {"t1_s": 500, "t2_s": 500}, kappa_width=0.02)
    rows = {
        "least squares": timed(NonlinearLeastSquares(PAPER), signal, kappa),
        "least squares, float32": timed(NonlinearLeastSquares(PAPER, dtype=single), signal, kappa),
        "perk": timed(perk, signal, kappa),
        "hybrid": timed(Hybrid(perk), signal, kappa),
        "hybrid, float32": timed(Hybrid(perk, dtype=single), signal, kappa),
        "dictionary of 250 000": timed(
            grid, signal[:20_000], {n: v[:20_000] for n, v in kappa.items()}
        ),
    }
    recovery = simulate(RECOVERY, count // 5, 0.005)
    rows["recovery, magnitudes"] = timed(NonlinearLeastSquares(RECOVERY), *recovery)
    one = Protocol((Acquisition("spin_echo", {"echo_time_s": ECHOES}),))
    rows["16 echoes"] = timed(NonlinearLeastSquares(one), *simulate(one, count // 5, 0.005))
    for model, limits in (("epg_spin_echo", None), ("epg_spin_echo_b1", {"kappa": (0.5, 1.0)})):
        train = Protocol((Acquisition(model, {"echo_time_s": ECHOES}),))
        fit = NonlinearLeastSquares(train, limits, dtype=single)
        rows[f"16 echoes, {model}, float32"] = timed(fit, *simulate(train, count // 10, 0.005))
    for name, row in rows.items():
        print(f"{name:40s}", row)
    record = {"threads": torch.get_num_threads(), "versions": versions("torch"), "estimators": rows}
    print(write_results("least_squares_speed", record))


if __name__ == "__main__":
    main()
