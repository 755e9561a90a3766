"""Nonlinear least squares in every voxel: the reference that the other estimators meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch

from medpipe.errors import UsageError
from medpipe.qmri.atoms import LINEAR
from medpipe.qmri.estimate import Estimate, Flag, check_input, collect, safe_voxels
from medpipe.qmri.jacobian import signal_and_slopes
from medpipe.qmri.levenberg_marquardt import Settled, minimise
from medpipe.qmri.priors import search_range
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.starts import Starts
from medpipe.qmri.uncertainty import noise_variance, poor_fit

__all__ = ["Fit", "NonlinearLeastSquares"]

BATCH_VALUES = 1 << 17
"""Measured values per batch: below it the cost of a call is felt, above it the cache."""

BLOCK_VALUES = 1 << 20
"""Measured values whose starts are held at a time."""

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}


@dataclass(eq=False)
class Fit:
    """Where the searches of N voxels ended, before noise is known.

    Parameters
    ----------
    values : Tensor
        float32 (p + 1, N): M0, then the latents in SI units; NaN without a signal.
    spread : Tensor
        float32 (p + 1, N) standard errors for noise of standard deviation 1.
    squares, power : Tensor
        float32 (N,) sums of squared residuals and of squared measured values.
    quality : Tensor
        uint8 (N,), flags found so far.
    steps : Tensor
        int16 (N,), steps tried.
    """

    values: torch.Tensor
    spread: torch.Tensor
    squares: torch.Tensor
    power: torch.Tensor
    quality: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def empty(cls, rows: int, count: int, device: torch.device) -> Fit:
        """Return the fit of `count` voxels before any is searched."""

        def none(*shape: int) -> torch.Tensor:
            return torch.full(shape, torch.nan, device=device)

        return cls(
            none(rows, count),
            none(rows, count),
            none(count),
            none(count),
            torch.zeros(count, dtype=torch.uint8, device=device),
            torch.zeros(count, dtype=torch.int16, device=device),
        )

    @property
    def usable(self) -> torch.Tensor:
        """(N,) bool: voxels with a finite signal that is not 0."""
        return usable(self.quality)

    def part(self, which: torch.Tensor) -> Fit:
        """Return the fit of some voxels."""
        return Fit(*(getattr(self, f.name)[..., which] for f in fields(self)))

    def put(self, where: torch.Tensor, other: Fit) -> None:
        """Write the voxels of `other` to the places `where` (n,)."""
        for f in fields(self):
            mine = getattr(self, f.name)
            mine[..., where] = getattr(other, f.name).to(mine.dtype)


@dataclass(frozen=True, eq=False)
class NonlinearLeastSquares:
    """Least squares fit of the signal models, by batched Levenberg–Marquardt.

    M0 is found by variable projection; times are searched as logarithms, inside bounds.
    Where magnitudes of signals that change sign are measured (inversion recovery), the
    patterns of signs that fit best are fitted with restored polarity and the best is
    kept, which is the least squares fit of the magnitude.

    Magnitudes of low signals are Rician: below a signal-to-noise ratio of about 3 they
    are larger than the model says and times come out too long. Leave such echoes out.

    Parameters
    ----------
    protocol : Protocol
    bounds : mapping of str to (low, high), optional
        Ranges of the search; default `search_range`.
    fixed : mapping of str to float
        Latents that are not searched but held at a value.
    start : "dictionary" or mapping of str to float
        A coarse dictionary, or one value per latent for all voxels.
    iterations : int
        Most steps per voxel and start.
    tolerance : float, optional
        A voxel has settled when no latent moves by a larger part; default 1e-7 in
        float64, 1e-4 in float32.
    damping : float
        First damping, relative to the diagonal of the normal matrix.
    sigma : float or Tensor, optional
        Standard deviation of the noise, () or (N,), in units of the signal. Without it
        it comes from the residuals (`medpipe.qmri.uncertainty`).
    dtype : torch.dtype
        float64 or float32.

    Raises
    ------
    UsageError
        If the protocol measures fewer values than are unknown, or a bound or a fixed
        value belongs to no latent of the protocol, bounds hold nothing, or a latent has
        no start.
    """

    protocol: Protocol
    bounds: Mapping[str, tuple[float, float]] | None = None
    fixed: Mapping[str, float] = field(default_factory=dict)
    start: str | Mapping[str, float] = "dictionary"
    iterations: int = 60
    tolerance: float | None = None
    damping: float = 1e-3
    sigma: float | torch.Tensor | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        searched = [n for n in self.protocol.latents if n != "m0"]
        for given in (self.bounds or {}, self.fixed):
            for name in given:
                if name not in searched:
                    raise UsageError(
                        f"{name} is no latent of the protocol", expected=", ".join(searched)
                    )
        if self.dtype not in TOLERANCE:
            raise UsageError("least squares computes in float64 or float32")
        if isinstance(self.start, str) and self.start != "dictionary":
            raise UsageError(
                "unknown start", expected="dictionary, or a value per latent", got=self.start[:40]
            )
        if len(self.latents) > self.protocol.count:
            raise UsageError(
                "the protocol measures fewer values than are unknown",
                expected=f"at least {len(self.latents)} ({', '.join(self.latents)})",
                got=str(self.protocol.count),
                hint="hold a latent with fixed, or measure more images",
            )
        if not self.nonlinear:
            raise UsageError("every latent is fixed", expected="at least one to search")
        self._check_ranges()

    def _check_ranges(self) -> None:
        """Refuse bounds that hold nothing, and a start without a value for each latent."""
        check_ranges(self.support)
        if not isinstance(self.start, str):
            missing = [n for n in self.nonlinear if n not in self.start]
            if missing:
                raise UsageError(f"no start for {missing[0]}", expected=", ".join(self.nonlinear))

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the maps, ``"m0"`` first; those that are fixed are none."""
        return tuple(n for n in self.protocol.latents if n not in self.fixed)

    @property
    def nonlinear(self) -> tuple[str, ...]:
        """The latents that are searched."""
        return self.latents[1:]

    @property
    def support(self) -> dict[str, tuple[float, float]]:
        """Range of the search of each latent."""
        own = dict(self.bounds or {})
        return {n: own[n] if n in own else search_range(n, self.protocol) for n in self.nonlinear}

    def estimate(
        self,
        signal: torch.Tensor,
        known: Mapping[str, torch.Tensor] | None = None,
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> Estimate:
        """Return the least squares values of N voxels, their standard errors and flags.

        Parameters
        ----------
        signal : Tensor
            (N, D) measured values.
        known : mapping of str to Tensor, optional
            (N,) ``"kappa"``.
        start : mapping of str to Tensor, optional
            (N,) per searched latent; where one is NaN or out of bounds the voxel starts
            from the dictionary.

        Raises
        ------
        InputError
            If the signal or a known regressor does not fit the protocol.
        """
        check_input(signal, known, self.protocol)
        return self.finish(self.search(signal, known or {}, start))

    def search(
        self,
        signal: torch.Tensor,
        known: Mapping[str, torch.Tensor],
        start: Mapping[str, torch.Tensor] | None = None,
    ) -> Fit:
        """Return where the search of each voxel of a checked input ends."""
        fit = Fit.empty(len(self.latents), signal.shape[0], signal.device)
        starts = Starts(self.protocol, self.nonlinear, self.support, dict(self.fixed))
        size = max(1, BLOCK_VALUES // self.protocol.count)
        for rows in torch.arange(signal.shape[0], device=signal.device).split(size):
            maps = {n: v[rows] for n, v in known.items()}
            voxels = safe_voxels(signal[rows], maps, self.protocol, self.dtype)
            reach, quality = within_reach(voxels.known, voxels.quality)
            fit.quality[rows] = quality
            there = usable(quality).nonzero()[:, 0]
            if there.numel():
                begin = None if start is None else self._given(start, rows[there])
                part = {n: v[there] for n, v in reach.items()}
                found = self._block(voxels.signal[there], part, begin, starts)
                found.quality |= quality[there]
                fit.put(rows[there], found)
        return fit

    def finish(self, fit: Fit) -> Estimate:
        """Return the estimate of a search: noise, standard errors, flags."""
        variance, poor = self.judge(fit)
        return collect(
            dict(zip(self.latents, fit.values, strict=True)),
            dict(zip(self.latents, fit.spread * variance.sqrt(), strict=True)),
            fit.quality | poor.to(torch.uint8) * int(Flag.POOR_FIT),
        )

    def judge(self, fit: Fit) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the variance of the noise in each voxel, and which fits are poor (N,)."""
        freedom = self.protocol.count - len(self.latents)
        there = fit.usable
        sigma = None if self.sigma is None else torch.as_tensor(self.sigma, device=there.device)
        variance, judged = noise_variance(fit.squares, freedom, there, sigma)
        return variance, poor_fit(fit.squares, fit.power, freedom, judged) & there

    def with_steps(self, iterations: int, tolerance: float) -> NonlinearLeastSquares:
        """Return the same fit with other limits of the search."""
        return replace(self, iterations=iterations, tolerance=tolerance)

    @property
    def _logarithmic(self) -> list[bool]:
        return [n not in LINEAR for n in self.nonlinear]

    def _given(self, start: Mapping[str, torch.Tensor], where: torch.Tensor) -> torch.Tensor:
        """Return the given starts (p, n), NaN where one is absent or out of bounds."""
        missing = [n for n in self.nonlinear if n not in start]
        if missing:
            raise UsageError(f"no start for {missing[0]}", expected=", ".join(self.nonlinear))
        rows = torch.stack([start[n][where].to(self.dtype) for n in self.nonlinear])
        low, high = self._limits(rows)
        inside = ((rows >= low) & (rows <= high)).all(0)
        return torch.where(inside, rows, torch.nan)

    def _block(
        self,
        signal: torch.Tensor,
        known: dict[str, torch.Tensor],
        begin: torch.Tensor | None,
        starts: Starts,
    ) -> Fit:
        """Return the fit of the voxels of one block, the best of all starts of each."""
        scale = signal.norm(dim=1)
        unit = signal / scale[:, None]
        if begin is None and not isinstance(self.start, str):
            begin = torch.tensor([[self.start[n]] for n in self.nonlinear]).to(signal)
            begin = begin.expand(-1, len(signal))
        values, signs, tried = starts.of(unit, known, begin)
        voxel, number = tried.nonzero().unbind(1)
        settled = self._minimise(
            unit[voxel] * signs[voxel, number],
            {k: v[voxel] for k, v in known.items()},
            values[:, voxel, number],
        )
        squares = torch.full_like(tried, torch.inf, dtype=signal.dtype)
        squares[voxel, number] = settled.squares
        place = torch.zeros_like(tried, dtype=torch.long)
        place[voxel, number] = torch.arange(len(voxel), device=voxel.device)
        pick = place.gather(1, squares.argmin(1, keepdim=True))[:, 0]
        low, high = self._limits(signal)
        latents = self._from(settled.x[:, pick]).clamp(low, high)
        variances = settled.variances[:, pick]
        slope = torch.stack([v if g else torch.ones_like(v) for v, g in self._scaled(latents)])
        flags = (~settled.converged[pick]).to(torch.uint8) * int(Flag.NOT_CONVERGED)
        flags |= settled.at_bound[pick].to(torch.uint8) * int(Flag.AT_BOUND)
        # the signal had norm 1: M0 and its error go up by the norm, noise comes down by it
        spread = torch.cat([variances[:1].sqrt(), slope * variances[1:].sqrt() / scale])
        values = torch.cat([(settled.m0[pick] * scale)[None], latents])
        return Fit(
            # without any M0 the latents are arbitrary
            values=values.masked_fill(values[0] <= 0, torch.nan),
            spread=spread,
            squares=settled.squares[pick] * scale**2,
            power=scale**2,
            quality=flags,
            steps=settled.steps[pick],
        )

    def _minimise(
        self, signal: torch.Tensor, known: dict[str, torch.Tensor], values: torch.Tensor
    ) -> Settled:
        """Return the searches of signals (n, D) from values (p, n)."""
        held = {n: torch.as_tensor(v).to(signal) for n, v in self.fixed.items()}

        def model(
            x: torch.Tensor, part: Mapping[str, torch.Tensor]
        ) -> tuple[torch.Tensor, torch.Tensor]:
            latents = self._from(x)
            scale = torch.stack([v if g else torch.ones_like(v) for v, g in self._scaled(latents)])
            return signal_and_slopes(
                self.protocol, self.nonlinear, latents, scale, {**held, **part}
            )

        low, high = (self._to(limit) for limit in self._limits(signal))
        return minimise(
            model,
            signal.T.contiguous(),
            known,
            torch.minimum(torch.maximum(self._to(values), low), high),
            (low, high),
            iterations=self.iterations,
            tolerance=self.tolerance or TOLERANCE[self.dtype],
            damping=self.damping,
            batch=max(256, BATCH_VALUES // self.protocol.count),
        )

    def _limits(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the least and the greatest latents, (p, 1) each."""
        limits = torch.tensor(list(self.support.values()), dtype=torch.float64).to(like)
        return limits[:, :1], limits[:, 1:]

    def _scaled(self, values: torch.Tensor) -> list[tuple[torch.Tensor, bool]]:
        return list(zip(values, self._logarithmic, strict=True))

    def _to(self, values: torch.Tensor) -> torch.Tensor:
        """Return the coordinates of the search of latents (p, n)."""
        return torch.stack([v.log() if g else v for v, g in self._scaled(values)])

    def _from(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents of coordinates (p, n)."""
        return torch.stack([v.exp() if g else v for v, g in self._scaled(x)])


def usable(quality: torch.Tensor) -> torch.Tensor:
    """Return (N,) bool: voxels with a finite signal that is not 0."""
    return (quality & int(Flag.NO_SIGNAL | Flag.NOT_FINITE)) == 0


def check_ranges(support: Mapping[str, tuple[float, float]]) -> None:
    """Refuse ranges that hold nothing, and a time of 0 or below.

    Raises
    ------
    UsageError
        Names the latent.
    """
    for name, (low, high) in support.items():
        least = 0.0 if name in LINEAR else torch.finfo(torch.float32).tiny
        if not least <= low < high < float("inf"):
            raise UsageError(
                f"the bounds of {name} are wrong",
                expected="low below high" if name in LINEAR else "0 < low < high",
                got=f"{low:g}, {high:g}",
            )


def within_reach(
    known: Mapping[str, torch.Tensor], quality: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return known regressors cut off at their plausible range, and flags of those cut."""
    cut = {n: v.clamp(*QUANTITIES[n].plausible) for n, v in known.items()}
    for name, values in known.items():
        outside = (cut[name] != values).to(torch.uint8)
        quality = quality | outside * int(Flag.OUTSIDE_SUPPORT)
    return cut, quality
