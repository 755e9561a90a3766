"""The problem of the PERK paper: two SPGR and one DESS, three unknowns, kappa known."""

from __future__ import annotations

import torch

from medpipe.qmri.priors import LogUniform, TruncatedLogNormal, Uniform
from medpipe.qmri.protocol import Acquisition, Protocol

SIGMA = 3.8607e-4
PROTOCOL = Protocol(
    (
        Acquisition(
            "spgr",
            {
                "flip_angle_deg": (15.0, 5.0),
                "repetition_time_s": (0.0122,),
                "echo_time_s": (0.00467,),
            },
        ),
        Acquisition(
            "dess",
            {"flip_angle_deg": (30.0,), "repetition_time_s": (0.0175,), "echo_time_s": (0.00467,)},
        ),
    )
)
PRIORS = {
    "m0": Uniform(0.6, 1.0),
    "t1_s": LogUniform(0.4, 2.0),
    "t2_s": LogUniform(0.04, 0.2),
    "kappa": TruncatedLogNormal(1.0, 0.2, 0.5, 2.0),
}
WHITE = {"m0": 0.77, "t1_s": 0.832, "t2_s": 0.0796}
GREY = {"m0": 0.86, "t1_s": 1.331, "t2_s": 0.110}
FAT = {"m0": 1.0, "t1_s": 0.495, "t2_s": 0.099}

# NIST values of the phantom of the paper, vials 1 to 14, 293 K, 3 T
VIAL_T1_S = (
    2.480, 2.173, 1.907, 1.604, 1.332, 1.044, 0.8017,
    0.6086, 0.4584, 0.3365, 0.2442, 0.1766, 0.1269, 0.0909,
)  # fmt: skip
VIAL_T2_S = (
    0.5813, 0.4035, 0.2781, 0.19094, 0.13327, 0.09689, 0.06407,
    0.04642, 0.03197, 0.02256, 0.015813, 0.011237, 0.007911, 0.005592,
)  # fmt: skip


def noisy(ideal: torch.Tensor, seed: int, sigma: float = SIGMA) -> torch.Tensor:
    """Return magnitudes of signals with complex noise."""
    g = torch.Generator().manual_seed(seed)
    parts = torch.randn((2, *ideal.shape), generator=g, dtype=ideal.dtype) * sigma
    return torch.hypot(ideal + parts[0], parts[1])


def voxels(
    tissue: dict[str, float], kappa: torch.Tensor, seed: int, sigma: float = SIGMA
) -> torch.Tensor:
    """Return noisy signals (N, D) of one tissue at the given kappa (N,)."""
    values = {name: torch.full_like(kappa, value) for name, value in tissue.items()}
    return noisy(PROTOCOL.signal({**values, "kappa": kappa}), seed, sigma)


def flip_scaling(count: int) -> torch.Tensor:
    """Return kappa = 1.1 - 0.2 r² over the head, float64."""
    return 1.1 - 0.2 * torch.linspace(0, 0.8, count, dtype=torch.float64)
