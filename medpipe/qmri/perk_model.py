"""A trained PERK model and what it says about voxels.

Values come from one product with the regressors, Z cosines and one product with the
read-outs. Standard errors come from the slopes of the same features (delta method), M0 of
a normalised model from the linear fit of the signal of the estimate. That signal is also
the guard: kernel regression gives plausible numbers for any input, but outside of what it
was trained on their signal is not the measured one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from medpipe.errors import UsageError
from medpipe.qmri.estimate import SUPPORT_TOLERANCE, Estimate, Flag, Voxels, in_chunks
from medpipe.qmri.features import FourierFeatures, regressors
from medpipe.qmri.jacobian import signal_and_slopes
from medpipe.qmri.perk_kernel import cosine_sums
from medpipe.qmri.priors import Prior
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.samples import noise_levels
from medpipe.qmri.threads import undivided
from medpipe.qmri.training import Recipe

__all__ = ["Guard", "Perk"]

HOST_VALUES = 1 << 20
"""Measured values at a time on the host: the compiled sums keep their threads busy for a while."""
DEVICE_VALUES = 1 << 22
"""Measured values at a time on a GPU."""
GUARD_SAMPLES = 20_000
ORDINARY = 0.99
"""Part of the noise-free training voxels whose misfit counts as PERK's own."""
ACCEPTED = 0.999
"""Part of the noisy training voxels that the guard lets pass."""
LEAST_LIMIT = 4.0
"""Squared misfit in units of noise that is never poor: two standard deviations. Where as
many latents as values are free, the misfit of training voxels is rounding alone."""


@dataclass(frozen=True)
class Guard:
    """When the signal of an estimate is too far from the measured one.

    The misfit of a voxel is |y - m0 s|² / (σ² + (misfit |y|)²), s the signal of the
    estimate and m0 its best factor.

    Parameters
    ----------
    misfit : float
        |y - m0 s| / |y| that PERK has without noise at all but 1 in 100 of the training
        voxels with an M0 above the median.
    limit : float
        The misfit that all but 1 in 1000 training voxels with noise stay below, 4 or more.
    m0 : float
        Median M0 of the training voxels: what a normalised model's noise refers to.
    """

    misfit: float = 0.0
    limit: float = math.inf
    m0: float = 1.0


@dataclass(frozen=True, eq=False)
class Perk:
    """Parameter estimation by regression with kernels, trained.

    Parameters
    ----------
    recipe : Recipe
        Protocol, priors, noise and kind of training.
    features : FourierFeatures
        float64.
    readout : Tensor
        float64 (L, Z), of the bare cosines.
    offset : Tensor
        float64 (L,).
    length_scale, ridge : float
        Kernel scale and ridge.
    samples : int
        Voxels it was trained on.
    score : float or None
        Hold-out score of this length scale and ridge, where they were searched.
    guard : Guard
        When a signal is flagged as `Flag.POOR_FIT`.
    measured_sigma : tuple of float or None
        Noise of the images it is used for (`with_noise`).

    References
    ----------
    Nataraj, Nielsen, Scott, Fessler 2018, doi:10.1109/TMI.2018.2817547.
    """

    recipe: Recipe
    features: FourierFeatures
    readout: torch.Tensor
    offset: torch.Tensor
    length_scale: float
    ridge: float
    samples: int
    score: float | None = None
    guard: Guard = Guard()
    measured_sigma: tuple[float, ...] | None = None

    @property
    def protocol(self) -> Protocol:
        """What it was trained for."""
        return self.recipe.protocol

    @property
    def priors(self) -> Mapping[str, Prior]:
        """What its training voxels were drawn from."""
        return self.recipe.priors

    @property
    def noise_sigma(self) -> tuple[float, ...]:
        """Noise of each measured value in training, in the unit of M0 in the priors."""
        return self.recipe.noise_sigma

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the maps, ``"m0"`` first."""
        return self.protocol.latents

    @property
    def support(self) -> dict[str, tuple[float, float]]:
        """Range of each regressed latent and known regressor in training."""
        names = (*self.recipe.regressed, *self.protocol.knowns)
        return {name: self.priors[name].support for name in names}

    def estimate(
        self,
        signal: torch.Tensor,
        known: Mapping[str, torch.Tensor] | None = None,
        *,
        errors: bool = True,
        chunk: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Estimate:
        """Return the values of N voxels, their standard errors and flags.

        Parameters
        ----------
        signal : Tensor
            (N, D) measured values, on any device.
        known : mapping of str to Tensor, optional
            (N,) ``"kappa"``; 1 where it is not given.
        errors : bool
            Whether to compute standard errors: noise alone, without the pull of the
            training voxels towards their middle. They double the time.
        chunk : int, optional
            Voxels at a time; the result does not depend on it.
        dtype : torch.dtype
            Precision of the inference.

        Raises
        ------
        InputError
            If the signal or a known regressor does not fit the protocol.
        """
        if chunk is None:
            values = HOST_VALUES if signal.device.type == "cpu" else DEVICE_VALUES
            chunk = max(1, values // self.protocol.count)
        if chunk < 1:
            raise UsageError("the chunk is empty", expected="1 voxel or more", got=str(chunk))

        def work(
            voxels: Voxels,
        ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
            return _Inference(self, voxels, self.measured_sigma, errors, threads).result()

        support = {name: self.support[name] for name in self.recipe.regressed}
        with undivided(signal.device) as threads:
            return in_chunks(work, signal, known, self.protocol, support, chunk, dtype)

    def with_noise(self, noise_sigma: float | Sequence[float]) -> Perk:
        """Return the same model for images whose noise is known, in their unit.

        Standard errors and the guard then go by that noise. Without it a normalised model
        takes the voxel's M0 times the noise of its training.
        """
        return replace(self, measured_sigma=noise_levels(noise_sigma, self.protocol.count))

    def calibrated(self) -> Perk:
        """Return the same model with a guard set on new voxels of its training."""
        bare = replace(self, guard=Guard())
        drawn = self.recipe.draw(GUARD_SAMPLES, "guard").samples
        m0 = float(drawn.values["m0"].median())
        good = torch.zeros(GUARD_SAMPLES, dtype=torch.uint8)
        known = {name: values.float() for name, values in drawn.known.items()}

        def inference(signal: torch.Tensor) -> _Inference:
            return _Inference(bare, Voxels(signal.float(), known, good), self.noise_sigma, False)

        clean = inference(drawn.ideal)
        relative = clean.misfit.sqrt() / torch.linalg.vector_norm(clean.voxels.signal, dim=1)
        # where M0 is next to 0 the noise of the training hides the signal model
        bright = relative.nan_to_num(nan=0.0)[drawn.values["m0"] >= m0]
        guard = Guard(float(bright.quantile(ORDINARY)), math.inf, m0)
        noisy = inference(drawn.signal).excess(guard)
        limit = max(LEAST_LIMIT, float(noisy.nan_to_num(nan=0.0).quantile(ACCEPTED)))
        return replace(self, guard=replace(guard, limit=limit))


class _Inference:
    """What a model says about some voxels."""

    def __init__(
        self,
        perk: Perk,
        voxels: Voxels,
        levels: tuple[float, ...] | None,
        errors: bool,
        threads: int = 1,
    ) -> None:
        self.perk = perk
        self.voxels = voxels
        self.levels = levels
        recipe = perk.recipe
        self.q = regressors(voxels.signal, voxels.known, perk.protocol, recipe.normalize)
        outputs = len(recipe.regressed)
        sums = cosine_sums(
            self.q,
            perk.features.frequencies,
            perk.features.phases,
            perk.readout,
            self._slope_readout() if errors else None,
            threads=threads,
        )
        self.values = recipe.from_targets(sums[:, :outputs] + perk.offset.to(sums))
        self.slopes = None
        self._fit_m0()
        if errors:
            raw = sums[:, outputs:].reshape(len(sums), outputs, perk.protocol.count)
            self.slopes = self._measured_slopes(raw)

    def _slope_readout(self) -> torch.Tensor:
        """Return the read-outs of the sines that give dx/dq, (L·D, Z)."""
        measured = self.perk.features.frequencies[: self.perk.protocol.count]
        return -(self.perk.readout[:, None] * measured).flatten(0, 1)

    def _fit_m0(self) -> None:
        """Set the signal of the estimate, its best factor and what it leaves over."""
        perk, y = self.perk, self.voxels.signal
        self.named = {}
        for name, value in zip(perk.recipe.regressed, self.values.unbind(1), strict=True):
            # where no tissue can be, signal models overflow; such voxels are flagged anyway
            low, high = QUANTITIES[name].plausible
            self.named[name] = value.clamp(low, high)
        given = {**self.named, **self.voxels.known}
        given.pop("m0", None)
        unit = perk.protocol.signal(given)
        self.power = unit.square().sum(1)
        self.m0 = (unit * y).sum(1) / self.power
        self.misfit = (y - self.m0[:, None] * unit).square().sum(1)
        self.unit = unit

    def _measured_slopes(self, raw: torch.Tensor) -> torch.Tensor:
        """Return dx/dy, (N, L, D), from dx/dq of the targets."""
        perk, y = self.perk, self.voxels.signal
        if perk.recipe.logarithm:
            raw = raw * self.values[:, :, None]
        if not perk.recipe.normalize:
            return raw
        direction = self.q[:, : y.shape[1]]
        along = (raw * direction[:, None]).sum(2, keepdim=True)
        norm = torch.linalg.vector_norm(y, dim=1)
        return (raw - along * direction[:, None]) / norm[:, None, None]

    @property
    def sigma(self) -> torch.Tensor:
        """Noise of each measured value, (N, D) or (1, D)."""
        levels = self.perk.noise_sigma if self.levels is None else self.levels
        sigma = torch.tensor(levels).to(self.voxels.signal)[None]
        if self.levels is None and self.perk.recipe.normalize:
            return sigma * (self.m0 / self.perk.guard.m0).abs()[:, None]
        return sigma

    def excess(self, guard: Guard) -> torch.Tensor:
        """Return the squared misfit in units of noise and of PERK's own misfit, (N,)."""
        own = guard.misfit**2 * self.voxels.signal.square().sum(1)
        return self.misfit / (self.sigma.square().mean(1) + own)

    def result(
        self,
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], torch.Tensor]:
        """Return values, standard errors and flags."""
        perk = self.perk
        names = perk.recipe.regressed
        values = dict(zip(names, self.values.unbind(1), strict=True))
        if "m0" not in values:
            values = {"m0": self.m0, **values}
        errors = {}
        if self.slopes is not None:
            slopes = dict(zip(names, self.slopes.unbind(1), strict=True))
            if "m0" not in slopes:
                slopes = {"m0": self._m0_slopes(slopes), **slopes}
            errors = {n: (s * self.sigma).square().sum(1).sqrt() for n, s in slopes.items()}
        return values, errors, self._flags()

    def _flags(self) -> torch.Tensor:
        """Return the flags of known regressors and of the guard added to those found."""
        # a misfit that is no number is one too large
        poor = ~(self.excess(self.perk.guard) <= self.perk.guard.limit)
        outside = torch.zeros_like(poor)
        for name, values in self.voxels.known.items():
            low, high = self.perk.support[name]
            edge = SUPPORT_TOLERANCE * high
            outside |= (values < low - edge) | (values > high + edge)
        usable = (self.voxels.quality & int(Flag.NO_SIGNAL | Flag.NOT_FINITE)) == 0
        found = poor * int(Flag.POOR_FIT) + outside * int(Flag.OUTSIDE_SUPPORT)
        return self.voxels.quality | (found * usable).to(torch.uint8)

    def _m0_slopes(self, slopes: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return dm0/dy of the linear fit, (N, D), through the values it depends on too."""
        names = tuple(slopes)
        rows = torch.stack([self.named[name] for name in names])
        signed, along = signal_and_slopes(
            self.perk.protocol, names, rows, torch.ones_like(rows), self.voxels.known
        )
        # the unit signal is the modulus where magnitudes are measured
        sign = torch.where(signed.T * self.unit < 0, -1.0, 1.0).to(rows)
        total = self.unit / self.power[:, None]
        for name, slope in zip(names, along, strict=True):
            unit_slope = slope.T * sign
            change = (unit_slope * self.voxels.signal).sum(1)
            change = (change - 2 * self.m0 * (unit_slope * self.unit).sum(1)) / self.power
            total = total + change[:, None] * slopes[name]
        return total
