"""Distributions of latents and knowns from which training and test voxels are drawn."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch

from medpipe.errors import UsageError
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES

__all__ = [
    "Empirical",
    "Fixed",
    "LogUniform",
    "Prior",
    "TruncatedLogNormal",
    "TruncatedNormal",
    "Uniform",
    "default_priors",
    "prior_from_dict",
    "search_range",
]


class Prior(ABC):
    """A distribution of one quantity, drawn through its quantile function."""

    kind: ClassVar[str]

    @abstractmethod
    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability` in [0, 1], float64 of the same shape."""

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Return `n` draws as float64 (n,) on the host.

        The draws depend on the generator alone, not on the device of the fit.

        Raises
        ------
        UsageError
            If the generator is not one of the host.
        """
        if generator.device.type != "cpu":
            raise UsageError("the generator is on another device", expected="one on the CPU")
        return self.quantile(torch.rand(n, generator=generator, dtype=torch.float64))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}  # type: ignore[call-overload]
        return {"kind": self.kind} | values

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], where: str = "prior") -> Prior:
        """Return the prior of a JSON record; the same as `prior_from_dict`."""
        return prior_from_dict(record, where)


def _check(ok: bool, kind: str, expected: str) -> None:
    if not ok:
        raise UsageError("the numbers of the prior are wrong", where=kind, expected=expected)


@dataclass(frozen=True)
class Uniform(Prior):
    """Uniform between `low` and `high`."""

    low: float
    high: float
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _check(-math.inf < self.low < self.high < math.inf, self.kind, "low below high")

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability`."""
        return torch.lerp(*_ends(self), probability.to(torch.float64))

    @property
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""
        return self.low, self.high


@dataclass(frozen=True)
class LogUniform(Prior):
    """Uniform in the logarithm between `low` > 0 and `high`."""

    low: float
    high: float
    kind: ClassVar[str] = "log_uniform"

    def __post_init__(self) -> None:
        _check(0 < self.low < self.high < math.inf, self.kind, "0 < low < high")

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability`."""
        low, high = _ends(self)
        drawn = torch.exp(torch.lerp(low.log(), high.log(), probability.to(torch.float64)))
        return drawn.clamp(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""
        return self.low, self.high


def _ends(prior: Uniform | LogUniform) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = torch.tensor([prior.low, prior.high], dtype=torch.float64)
    return low, high


@dataclass(frozen=True)
class TruncatedNormal(Prior):
    """Normal with `mean` and `std`, cut to `low` and `high`."""

    mean: float
    std: float
    low: float
    high: float
    kind: ClassVar[str] = "truncated_normal"

    def __post_init__(self) -> None:
        fine = self.std > 0 and -math.inf < self.low < self.high < math.inf
        near = abs(self.mean - min(max(self.mean, self.low), self.high)) <= 8 * self.std
        _check(fine and near, self.kind, "std above 0, low below high, mean near them")

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability`."""
        # in the lower tail, where probabilities keep their precision
        side = 1 if self.mean > (self.low + self.high) / 2 else -1
        ends = torch.tensor([self.low, self.high], dtype=torch.float64)
        low, high = torch.special.ndtr(side * (ends - self.mean) / self.std)
        z = side * torch.special.ndtri(torch.lerp(low, high, probability.to(torch.float64)))
        return (self.mean + self.std * z).clamp(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""
        return self.low, self.high


@dataclass(frozen=True)
class TruncatedLogNormal(Prior):
    """Log-normal around the median `median`, with `log_std`, cut to `low` and `high`."""

    median: float
    log_std: float
    low: float
    high: float
    kind: ClassVar[str] = "truncated_log_normal"

    def __post_init__(self) -> None:
        _check(min(self.median, self.low) > 0, self.kind, "median and low above 0")
        self._normal()

    def _normal(self) -> TruncatedNormal:
        low, high = math.log(self.low), math.log(max(self.high, 1e-300))
        return TruncatedNormal(math.log(self.median), self.log_std, low, high)

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability`."""
        return self._normal().quantile(probability).exp().clamp(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""
        return self.low, self.high


@dataclass(frozen=True)
class Fixed(Prior):
    """One value."""

    value: float
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        _check(math.isfinite(self.value), self.kind, "a finite value")

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the value for each of `probability`."""
        return torch.full(probability.shape, self.value, dtype=torch.float64)

    @property
    def support(self) -> tuple[float, float]:
        """The value, twice."""
        return self.value, self.value


@dataclass(frozen=True)
class Empirical(Prior):
    """The distribution of measured values: linear between their sorted `values`.

    Use `Empirical.of` for a map with many voxels.
    """

    values: tuple[float, ...]
    kind: ClassVar[str] = "empirical"

    def __post_init__(self) -> None:
        values = tuple(sorted(float(v) for v in self.values))
        _check(bool(values) and all(map(math.isfinite, values)), self.kind, "finite values")
        object.__setattr__(self, "values", values)

    @classmethod
    def of(cls, measured: torch.Tensor, knots: int = 129) -> Empirical:
        """Return the distribution of the finite values above 0 of a map, as `knots` quantiles.

        Parameters
        ----------
        measured : Tensor
            Any shape; 0 and NaN are voxels without a value.
        knots : int
            Equally spaced quantiles that are kept; what a model file holds.

        Raises
        ------
        UsageError
            If the map has no value.
        """
        kept = measured.detach().flatten().to(torch.float64)
        kept = kept[torch.isfinite(kept) & (kept > 0)].sort().values
        if not kept.numel():
            raise UsageError("the map has no value above 0", where="empirical prior")
        place = torch.linspace(0, kept.numel() - 1, knots, dtype=torch.float64)
        place = place.to(kept.device)
        low = place.floor().long()
        high = (low + 1).clamp(max=kept.numel() - 1)
        return cls(tuple(torch.lerp(kept[low], kept[high], place - low).tolist()))

    def quantile(self, probability: torch.Tensor) -> torch.Tensor:
        """Return the quantiles of `probability`."""
        knots = torch.tensor(self.values, dtype=torch.float64)
        place = probability.to(torch.float64) * (len(self.values) - 1)
        low = place.floor().long().clamp(0, len(self.values) - 1)
        high = (low + 1).clamp(max=len(self.values) - 1)
        return torch.lerp(knots[low], knots[high], place - low)

    @property
    def support(self) -> tuple[float, float]:
        """Least and greatest value."""
        return self.values[0], self.values[-1]


_KINDS: dict[str, type[Prior]] = {
    c.kind: c for c in (Uniform, LogUniform, TruncatedNormal, TruncatedLogNormal, Fixed, Empirical)
}


def prior_from_dict(record: Mapping[str, Any], where: str = "prior") -> Prior:
    """Return the prior that `Prior.to_dict` described.

    Raises
    ------
    UsageError
        If the kind or a field is unknown, missing or no number.
    """
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError("unknown kind of prior", where=where, expected=" | ".join(_KINDS))
    cls = _KINDS[kind]
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    rest = {k: v for k, v in record.items() if k != "kind"}
    if set(rest) != names:
        raise UsageError(
            "the fields of the prior are wrong",
            where=f"{where} ({kind})",
            expected=", ".join(sorted(names)),
        )
    many = cls is Empirical
    if not all(_is_numbers(v) if many else _is_number(v) for v in rest.values()):
        expected = "a list of numbers" if many else "a number"
        raise UsageError("a field is not a number", where=f"{where} ({kind})", expected=expected)
    return cls(**{k: tuple(v) if many else v for k, v in rest.items()})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_number, value))


DEFAULTS: Mapping[str, Prior] = {
    # M0 = 1 is water in the unit in which the noise is given; tissue has less,
    # and a surface coil may show it more.
    "m0": Uniform(0.2, 1.2),
    # White matter at 1.5 T (0.6 s) and fat (0.35 s) to cerebrospinal fluid (4.3 s).
    "t1_s": LogUniform(0.3, 4.5),
    # Muscle (30 ms) to fluid: above 0.6 s the echo times in use tell nothing apart.
    "t2_s": LogUniform(0.015, 0.6),
    # Iron-rich nuclei (10 ms) to fluid.
    "t2star_s": LogUniform(0.004, 0.3),
    # Adiabatic pulses reach 0.94 to 0.97, hard pulses less, with B1+ much less.
    "inversion_efficiency": Uniform(0.7, 1.0),
    # The brain at 3 T has 0.7 to 1.2, at 7 T 0.4 to 1.5.
    "kappa": TruncatedNormal(1.0, 0.2, 0.4, 1.6),
}
"""Brain at 3 T with room to both sides: a prior that is too wide costs precision where
it matters, one that is too narrow pulls what lies outside to its edge."""


LEAST_KAPPA = 0.5
"""Where kappa is estimated: below it a train of echoes has hardly a signal."""


def search_range(name: str, protocol: Protocol) -> tuple[float, float]:
    """Return where a latent of `protocol` is looked for when nothing else is said.

    The plausible range of the quantity. A kappa that is estimated from trains of echoes
    ends where the refocusing pulse is 180°, because beyond it every train looks like one
    before it.
    """
    if name != "kappa":
        return QUANTITIES[name].plausible
    default = (180.0,)
    angles = (a.settings.get("refocusing_angle_deg", default) for a in protocol.acquisitions)
    return LEAST_KAPPA, min(180 / max(max(a) for a in angles), QUANTITIES[name].plausible[1])


def default_priors(protocol: Protocol) -> dict[str, Prior]:
    """Return a prior for each latent and known of `protocol`.

    They hold for the brain at 3 T; for a phantom or another organ give your own.

    Raises
    ------
    UsageError
        If a latent has no default.
    """
    names = (*protocol.latents, *protocol.knowns)
    absent = [n for n in names if n not in DEFAULTS]
    if absent:
        raise UsageError(f"{absent[0]} has no default prior", hint="give one")
    found = {n: DEFAULTS[n] for n in names}
    if "kappa" in protocol.latents:
        found["kappa"] = Uniform(*search_range("kappa", protocol))
    return found
