"""What an estimator returns, and the policy for voxels it cannot answer.

A voxel never raises. One whose input is not finite or all zero is NaN in every map.
A value outside the support of the estimator stays, if it is physically possible, and
is flagged; one that is not possible (negative, absurd) becomes NaN and is flagged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol as Structure

import torch

from medpipe.errors import InputError
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES

__all__ = [
    "Estimate",
    "Estimator",
    "Flag",
    "Voxels",
    "check_input",
    "check_voxels",
    "collect",
    "count_flags",
    "in_chunks",
    "judge",
    "safe_voxels",
]

KAPPA_MEDIAN = (0.2, 3.0)
"""Where the median of a map of flip-angle scaling lies, if it is a fraction."""
SUPPORT_TOLERANCE = 1e-5
"""Part of its upper end by which a value may miss a support: rounding of float32."""


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
        What `check_input` refuses.
    """
    check_input(signal, known, protocol)
    return safe_voxels(signal, known or {}, protocol, dtype)


def check_input(
    signal: torch.Tensor, known: Mapping[str, torch.Tensor] | None, protocol: Protocol
) -> None:
    """Refuse what is wrong as a whole, not in a voxel.

    Raises
    ------
    InputError
        For another number of measured values or voxels than the protocol and the
        signal have, complex values, a known regressor that the protocol does not use,
        or a map of kappa whose median is no fraction (percent, per mille).
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
    for name, values in (known or {}).items():
        if name not in protocol.knowns:
            raise InputError(
                f"{name} was given, but no signal of the protocol depends on it",
                expected=", ".join(protocol.knowns) or "no known regressor",
            )
        if values.shape != signal.shape[:1]:
            raise InputError(
                f"the map of {name} has another number of voxels than the images",
                expected=f"({signal.shape[0]},)",
                got=f"{tuple(values.shape)}",
            )
        _check_fraction(name, values)


def _check_fraction(name: str, values: torch.Tensor) -> None:
    """Refuse a map whose typical value is no fraction; a hundred thousand voxels tell."""
    some = values[:: max(1, values.numel() // 100_000)]
    some = some[some.isfinite() & (some > 0)]
    median = float(some.median()) if some.numel() else 1.0
    low, high = KAPPA_MEDIAN
    if not low <= median <= high:
        raise InputError(
            f"the map of {name} is no fraction of the nominal flip angle",
            expected=f"a median of {low:g} to {high:g}",
            got=f"a median of {median:.4g}",
            hint="divide a map in percent by 100, one in per mille by 1000",
        )


def safe_voxels(
    signal: torch.Tensor,
    known: Mapping[str, torch.Tensor],
    protocol: Protocol,
    dtype: torch.dtype = torch.float32,
) -> Voxels:
    """Return voxels of a checked input made safe to compute with, and their flags."""
    signal = signal.to(dtype)
    finite = signal.isfinite().all(1)
    usable = finite & (signal != 0).any(1)
    quality = torch.zeros(signal.shape[0], dtype=torch.uint8, device=signal.device)
    quality = quality.masked_fill(~usable, int(Flag.NO_SIGNAL))
    quality = quality.masked_fill(~finite, int(Flag.NOT_FINITE))
    safe = torch.where(usable[:, None], signal, torch.ones_like(signal))
    maps = {}
    for name in protocol.knowns:
        if name not in known:
            maps[name] = torch.ones_like(safe[:, 0])
            continue
        values = known[name].to(safe)
        there = values.isfinite() & (values > 0)
        quality |= (~there).to(torch.uint8) * int(Flag.KAPPA_MISSING)
        maps[name] = torch.where(there, values, torch.ones_like(values))
    return Voxels(safe, maps, quality)


Work = Callable[[Voxels], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]]
"""What gives values, errors and flags of some voxels."""


def in_chunks(
    work: Work,
    signal: torch.Tensor,
    known: Mapping[str, torch.Tensor] | None,
    protocol: Protocol,
    support: Mapping[str, tuple[float, float]],
    chunk: int,
    dtype: torch.dtype = torch.float32,
) -> Estimate:
    """Return the estimate of all voxels from `work` on `chunk` of them at a time.

    Raises
    ------
    InputError
        What `check_input` refuses.
    """
    check_input(signal, known, protocol)
    signal = signal.detach()
    maps = {name: m.detach() for name, m in (known or {}).items()}
    count, device = signal.shape[0], signal.device
    quality = torch.zeros(count, dtype=torch.uint8, device=device)
    values: dict[str, torch.Tensor] = {}
    errors: dict[str, torch.Tensor] = {}

    # one pass also without voxels: it names the maps
    for start in range(0, max(count, 1), chunk):
        rows = slice(start, start + chunk)
        some = {name: m[rows] for name, m in maps.items()}
        part = judge(*work(safe_voxels(signal[rows], some, protocol, dtype)), support)
        for whole, piece in ((values, part[0]), (errors, part[1])):
            for name, found in piece.items():
                if name not in whole:
                    whole[name] = torch.empty(count, dtype=torch.float32, device=device)
                whole[name][rows] = found
        quality[rows] = part[2]
    return Estimate(values, errors, quality, count_flags(quality))


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
    kept, spread, judged = judge(values, errors, quality, support or {})
    return Estimate(kept, spread, judged, count_flags(judged))


def judge(
    values: Mapping[str, torch.Tensor],
    errors: Mapping[str, torch.Tensor],
    quality: torch.Tensor,
    support: Mapping[str, tuple[float, float]],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
    """Return values and errors in float32 and the flags after the policy of `collect`."""
    empty = (quality & int(Flag.NO_SIGNAL | Flag.NOT_FINITE)) != 0
    kept, spread = {}, {}
    outside = torch.zeros_like(empty)
    for name, found in values.items():
        low, high = QUANTITIES[name].plausible
        # the bound of a time is above 0; M0 of 0 is no signal
        possible = found.isfinite() & (found > 0) & (found >= low) & (found <= high)
        outside |= ~possible
        if name in support:
            edge = SUPPORT_TOLERANCE * max(abs(bound) for bound in support[name])
            outside |= (found < support[name][0] - edge) | (found > support[name][1] + edge)
        none = empty | ~possible
        kept[name] = found.to(torch.float32).masked_fill(none, torch.nan)
        if name in errors:
            spread[name] = errors[name].to(torch.float32).masked_fill(none, torch.nan)
    flagged = (outside & ~empty).to(torch.uint8) * int(Flag.OUTSIDE_SUPPORT)
    return kept, spread, quality | flagged


def count_flags(quality: torch.Tensor) -> dict[str, int]:
    """Return how many voxels carry each flag, by its name in lower case."""
    return {(flag.name or "").lower(): int(((quality & flag.value) != 0).sum()) for flag in Flag}
