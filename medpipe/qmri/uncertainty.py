"""Noise, standard errors and goodness of fits; the Cramér–Rao bound.

The squared residuals of one voxel with few measured values say little about its noise: with
four values and three unknowns one degree of freedom is left. The noise of a scan is much
the same everywhere, so the variance of a voxel is drawn towards the one of all voxels,

    sigma² = (d0 s0² + residual²) / (d0 + degrees of freedom),

with s0² from the median over the voxels and d0 = 8. A voxel with many values keeps its
own variance, and one that the model does not fit gets larger errors.

References
----------
Moderated variance: Smyth 2004, doi 10.2202/1544-6115.1027. Quantiles of chi-square:
Wilson and Hilferty 1931, doi 10.1073/pnas.17.12.684.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from medpipe.errors import UsageError
from medpipe.qmri.jacobian import signal_and_slopes
from medpipe.qmri.protocol import Protocol

__all__ = ["PRIOR_FREEDOM", "chi_square", "crlb", "noise_variance", "poor_fit"]

PRIOR_FREEDOM = 8.0
"""d0: how many degrees of freedom the variance of all voxels counts for."""

POOR_FIT_Z = 4.0
"""A fit is poor beyond this quantile, in standard deviations (3 in 100 000 voxels)."""

POOR_FIT_FLOOR = 0.01
"""A residual below this part of the signal is never poor: rounding, noise-free images."""


def chi_square(freedom: int, z: float) -> float:
    """Return the quantile of chi-square at `z` standard deviations (0: the median), within 10 %."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + z * math.sqrt(part)) ** 3


def noise_variance(
    squares: torch.Tensor, freedom: int, usable: torch.Tensor, sigma: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the variance of each voxel for its errors, and the one it is judged by.

    Parameters
    ----------
    squares : Tensor
        (N,) sums of squared residuals.
    freedom : int
        Measured values less unknowns.
    usable : Tensor
        (N,) bool, voxels that were fitted.
    sigma : Tensor, optional
        Known standard deviation, () or (N,). Without it and without degrees of freedom
        both results are NaN.
    """
    if sigma is not None:
        known = (sigma.to(squares) ** 2).expand_as(squares)
        return known, known
    if freedom < 1 or not bool(usable.any()):
        none = torch.full_like(squares, torch.nan)
        return none, none
    pooled = squares[usable].median() / chi_square(freedom, 0.0)
    own = (PRIOR_FREEDOM * pooled + squares) / (PRIOR_FREEDOM + freedom)
    return own, pooled.expand_as(squares)


def poor_fit(
    squares: torch.Tensor, power: torch.Tensor, freedom: int, variance: torch.Tensor
) -> torch.Tensor:
    """Return (N,) bool: residuals larger than noise explains (`POOR_FIT_Z`).

    Parameters
    ----------
    squares, power : Tensor
        (N,) sums of squared residuals and of squared measured values.
    variance : Tensor
        (N,) of the noise; NaN where it is unknown, which is never poor.
    """
    if freedom < 1:
        return torch.zeros_like(squares, dtype=torch.bool)
    limit = chi_square(freedom, POOR_FIT_Z) * variance
    return (squares > limit) & (squares > POOR_FIT_FLOOR**2 * power)


def crlb(
    protocol: Protocol,
    values: Mapping[str, torch.Tensor],
    noise_sigma: float,
    known: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the least standard deviation that an unbiased estimator can have.

    Gaussian noise of equal standard deviation in every image is assumed; above a
    signal-to-noise ratio of 5 Rician magnitudes differ from it by less than 2 %.

    Parameters
    ----------
    protocol : Protocol
    values : mapping of str to Tensor
        (N,) true values of every latent, ``"m0"`` too.
    noise_sigma : float
        In units of the signal.
    known : mapping of str to Tensor, optional
        (N,) each.

    Returns
    -------
    dict of str to Tensor
        (N,) float64 per latent.

    Raises
    ------
    UsageError
        If a latent of the protocol has no value.
    """
    missing = [n for n in protocol.latents if n not in values]
    if missing:
        raise UsageError(f"no value for {missing[0]}", expected=", ".join(protocol.latents))
    names = [n for n in protocol.latents if n != "m0"]
    x = torch.stack([values[n].to(torch.float64) for n in names])
    held = {n: v.to(x) for n, v in (known or {}).items()}
    unit, slopes = signal_and_slopes(protocol, names, x, torch.ones_like(x), held)
    m0 = values["m0"].to(x)
    columns = torch.cat([unit[None], m0 * slopes]).permute(2, 1, 0)
    # columns of unit norm: T2 in seconds and M0 in thousands differ by 10^12 in J'J
    norm = columns.norm(dim=1, keepdim=True)
    inverse = torch.linalg.pinv(columns / norm)
    deviation = noise_sigma * inverse.norm(dim=2) / norm[:, 0]
    return dict(zip(["m0", *names], deviation.unbind(1), strict=True))
