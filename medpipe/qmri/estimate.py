"""What an estimator returns, and the policy for voxels it cannot answer.

A voxel never raises. One whose input is not finite or all zero is NaN in every map.
A value outside the support of the estimator stays, if it is physically possible, and
is flagged; one that is not possible (negative, absurd) becomes NaN and is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol as Structure

import torch

from medpipe.errors import InputError
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES

__all__ = ["Estimate", "Estimator", "Flag", "Voxels", "check_voxels", "collect", "count_flags"]

KAPPA_MEDIAN = (0.2, 3.0)
"""Where the median of a map of flip-angle scaling lies, if it is a fraction."""


class Flag(IntFlag):
    """Why the values of a voxel are to be doubted; 0 is a good voxel."""

    NO_SIGNAL = 1
    """All measured values are 0: every map is NaN."""
    NOT_FINITE = 2
    """A measured value is NaN or infinite: every map is NaN."""
    OUTSIDE_SUPPORT = 4
    """A value or a known regressor is outside the range the estimator is made for."""
    AT_BOUND = 8
    """An iteration ended at a bound of the search."""
    NOT_CONVERGED = 16
    """An iteration ended before its values had settled."""
    KAPPA_MISSING = 32
    """The map of kappa is 0 or NaN here: computed with kappa = 1."""
    POOR_FIT = 64
    """The signal of the estimate is further from the measured one than noise explains."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values of N voxels with what is known about their quality.

    Parameters
    ----------
    values : dict of str to Tensor
        float32 (N,) for each latent in SI units; NaN where there is no answer.
    errors : dict of str to Tensor
        float32 (N,), standard errors of those latents whose method gives them.
    quality : Tensor
        uint8 (N,), `Flag` bits; 0 is good.
    counts : dict of str to int
        Voxels that carry each flag, under its name in lower case.
    """

    values: dict[str, torch.Tensor]
    errors: dict[str, torch.Tensor]
    quality: torch.Tensor
    counts: dict[str, int]


class Estimator(Structure):
    """What PERK, least squares, dictionary and hybrid have in common."""

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the maps, ``"m0"`` first."""
        ...

    def estimate(
        self, signal: torch.Tensor, known: Mapping[str, torch.Tensor] | None = None
    ) -> Estimate:
        """Return the values of N voxels from their measured values (N, D)."""
        ...


@dataclass(frozen=True, eq=False)
class Voxels:
    """Measured values that can be computed with, whatever they were.

    Parameters
    ----------
    signal : Tensor
        (N, D), finite; 1 everywhere in voxels that have no usable signal.
    known : dict of str to Tensor
        (N,) for each known regressor of the protocol, finite and above 0.
    quality : Tensor
        uint8 (N,), `Flag` bits found so far.
    """

    signal: torch.Tensor
    known: dict[str, torch.Tensor]
    quality: torch.Tensor

    def __len__(self) -> int:
        return self.signal.shape[0]


def check_voxels(
    signal: torch.Tensor,
    known: Mapping[str, torch.Tensor] | None,
    protocol: Protocol,
    dtype: torch.dtype = torch.float32,
) -> Voxels:
    """Return signal and known regressors made safe to compute with, and their flags.

    Parameters
    ----------
    signal : Tensor
        (N, D) measured values, D as the protocol counts them.
    known : mapping of str to Tensor, optional
        (N,) maps; ``"kappa"`` as a fraction. Absent ones are 1 everywhere, unflagged.

    Raises
    ------
    InputError
        For another number of measured values or voxels than the protocol and the
        signal have, a known regressor that the protocol does not use, or a map of
        kappa whose median is no fraction (percent, a thousandth).
    """
    if signal.ndim != 2 or signal.shape[1] != protocol.count:
        raise InputError(
            "the measured values do not fit the protocol",
            expected=f"(voxels, {protocol.count}): {', '.join(protocol.labels)}",
            got=f"shape {tuple(signal.shape)}",
            hint="one weighted image per value of the protocol, in its order",
        )
    if signal.is_complex():
        raise InputError(
            "the measured values are complex",
            expected="magnitudes or signed real values",
            hint="take the magnitude of the images",
        )
    signal = signal.to(dtype)
    finite = signal.isfinite().all(1)
    present = (signal != 0).any(1)
    quality = torch.zeros(signal.shape[0], dtype=torch.uint8, device=signal.device)
    quality[~finite] |= int(Flag.NOT_FINITE)
    quality[finite & ~present] |= int(Flag.NO_SIGNAL)
    safe = torch.where((finite & present)[:, None], signal, torch.ones_like(signal))
    maps = _known(dict(known or {}), protocol, safe, quality)
    return Voxels(safe, maps, quality)


def _known(
    given: dict[str, torch.Tensor],
    protocol: Protocol,
    signal: torch.Tensor,
    quality: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return one map (N,) per known regressor and set KAPPA_MISSING in `quality`."""
    extra = sorted(set(given) - set(protocol.knowns))
    if extra:
        raise InputError(
            f"{extra[0]} was given, but no signal of the protocol depends on it",
            expected=", ".join(protocol.knowns) or "no known regressor",
        )
    maps = {}
    for name in protocol.knowns:
        if name not in given:
            maps[name] = torch.ones_like(signal[:, 0])
            continue
        values = given[name].to(signal)
        if values.shape != signal.shape[:1]:
            raise InputError(
                f"the map of {name} has another number of voxels than the images",
                expected=f"({signal.shape[0]},)",
                got=f"{tuple(values.shape)}",
            )
        there = values.isfinite() & (values > 0)
        if bool(there.any()):
            _check_fraction(name, float(values[there].median()))
        quality[~there] |= int(Flag.KAPPA_MISSING)
        maps[name] = torch.where(there, values, torch.ones_like(values))
    return maps


def _check_fraction(name: str, median: float) -> None:
    low, high = KAPPA_MEDIAN
    if not low <= median <= high:
        raise InputError(
            f"the map of {name} is no fraction of the nominal flip angle",
            expected=f"a median of {low:g} to {high:g}",
            got=f"a median of {median:.4g}",
            hint="divide a map in percent by 100, one in per mille by 1000",
        )


def collect(
    values: Mapping[str, torch.Tensor],
    errors: Mapping[str, torch.Tensor],
    quality: torch.Tensor,
    support: Mapping[str, tuple[float, float]] | None = None,
) -> Estimate:
    """Return the estimate after the policy for impossible and unsupported values.

    Parameters
    ----------
    values, errors : mapping of str to Tensor
        (N,) per latent.
    quality : Tensor
        uint8 (N,), flags found so far; not changed.
    support : mapping of str to (low, high), optional
        Range of each latent that the estimator was made for.
    """
    quality = quality.clone()
    empty = (quality & int(Flag.NO_SIGNAL | Flag.NOT_FINITE)) != 0
    kept, spread = {}, {}
    for name, found in values.items():
        low, high = QUANTITIES[name].plausible
        # m0 has the arbitrary unit of the scanner
        possible = found.isfinite() & (found > 0 if name == "m0" else found >= low)
        possible &= found <= (torch.finfo(torch.float32).max if name == "m0" else high)
        doubtful = ~possible
        if support and name in support:
            doubtful |= (found < support[name][0]) | (found > support[name][1])
        quality[doubtful & ~empty] |= int(Flag.OUTSIDE_SUPPORT)
        none = empty | ~possible
        kept[name] = found.to(torch.float32).masked_fill(none, torch.nan)
        if name in errors:
            spread[name] = errors[name].to(torch.float32).masked_fill(none, torch.nan)
    return Estimate(kept, spread, quality, count_flags(quality))


def count_flags(quality: torch.Tensor) -> dict[str, int]:
    """Return how many voxels carry each flag, by its name in lower case."""
    return {(flag.name or "").lower(): int(((quality & flag.value) != 0).sum()) for flag in Flag}
