"""Simulated voxels to train on: values from priors, signals from the protocol, noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from medpipe.errors import UsageError
from medpipe.qmri.priors import Prior, default_priors
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.signals import MODELS

__all__ = ["Samples", "complete_priors", "draw_samples", "magnitude_columns", "noise_levels"]


@dataclass(frozen=True, eq=False)
class Samples:
    """N simulated voxels in float64.

    Parameters
    ----------
    values : dict of str to Tensor
        (N,) for every latent of the protocol, ``"m0"`` included.
    known : dict of str to Tensor
        (N,) for every known regressor.
    ideal : Tensor
        (N, D) signals without noise.
    signal : Tensor
        (N, D) signals as measured.
    """

    values: dict[str, torch.Tensor]
    known: dict[str, torch.Tensor]
    ideal: torch.Tensor
    signal: torch.Tensor


def complete_priors(protocol: Protocol, priors: Mapping[str, Prior] | None) -> dict[str, Prior]:
    """Return a prior for every latent and known regressor, defaults where none is given.

    Raises
    ------
    UsageError
        If a prior is for something the protocol does not depend on.
    """
    names = (*protocol.latents, *protocol.knowns)
    given = dict(priors or {})
    extra = sorted(set(given) - set(names))
    if extra:
        raise UsageError(
            f"no signal of the protocol depends on {extra[0]}",
            where="priors",
            expected=", ".join(names),
        )
    defaults = default_priors(protocol)
    return {name: given.get(name, defaults[name]) for name in names}


def noise_levels(noise_sigma: float | Sequence[float], count: int) -> tuple[float, ...]:
    """Return one standard deviation for each of `count` measured values.

    Raises
    ------
    UsageError
        For a number of levels other than 1 or `count`, or one that is not above 0.
    """
    levels = (noise_sigma,) if isinstance(noise_sigma, int | float) else tuple(noise_sigma)
    sigma = tuple(float(level) for level in levels)
    if len(sigma) == 1:
        sigma *= count
    if len(sigma) != count:
        raise UsageError(
            "wrong number of noise levels",
            where="noise_sigma",
            expected=f"1 or {count}, one per measured value",
            got=str(len(sigma)),
        )
    if not all(0 < level < float("inf") for level in sigma):
        raise UsageError(
            "the standard deviation of noise is not above 0",
            where="noise_sigma",
            hint="estimate it from the images with noise_sigma()",
        )
    return sigma


def magnitude_columns(protocol: Protocol) -> torch.Tensor:
    """Return which of the D measured values are magnitudes, bool (D,)."""
    columns: list[bool] = []
    for part in protocol.acquisitions:
        default = MODELS[part.model].magnitude
        columns += [default if part.magnitude is None else part.magnitude] * part.count
    return torch.tensor(columns)


def draw_samples(
    protocol: Protocol,
    priors: Mapping[str, Prior],
    noise_sigma: Sequence[float],
    count: int,
    generator: torch.Generator,
) -> Samples:
    """Return `count` voxels drawn from `priors`, on the host in float64.

    Each channel of a magnitude has complex noise of `noise_sigma` before the modulus
    (Rician); a signed value has real noise.
    """
    drawn = {
        name: priors[name].sample(count, generator).to(torch.float64)
        for name in (*protocol.latents, *protocol.knowns)
    }
    ideal = protocol.signal(drawn)
    sigma = torch.tensor(noise_sigma, dtype=torch.float64)
    in_phase = torch.randn(ideal.shape, generator=generator, dtype=torch.float64) * sigma
    across = torch.randn(ideal.shape, generator=generator, dtype=torch.float64) * sigma
    signed = ideal + in_phase
    signal = torch.where(magnitude_columns(protocol), torch.hypot(signed, across), signed)
    values = {name: drawn[name] for name in protocol.latents}
    known = {name: drawn[name] for name in protocol.knowns}
    return Samples(values, known, ideal, signal)
