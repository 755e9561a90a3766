"""PERK to begin with, least squares to end with: the default estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol as Structure

import torch

from medpipe.qmri.estimate import Estimate, Flag, Voxels, check_voxels
from medpipe.qmri.least_squares import Fit, NonlinearLeastSquares, usable
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.uncertainty import noise_variance, poor_fit

__all__ = ["Hybrid", "Trained"]


class Trained(Structure):
    """An estimator that knows its protocol: a trained `Perk`."""

    @property
    def protocol(self) -> Protocol:
        """What it was trained for."""
        ...

    def estimate(
        self, signal: torch.Tensor, known: Mapping[str, torch.Tensor] | None = None
    ) -> Estimate:
        """Return the values of N voxels from their measured values (N, D)."""
        ...


@dataclass(frozen=True, eq=False)
class Hybrid:
    """Least squares that start from PERK.

    A few steps of Levenberg–Marquardt from PERK's values remove its bias and give
    standard errors. Voxels where PERK says that they are outside its training, those
    that have not settled and those that fit poorly are searched again from the coarse
    dictionary, without a limit to a few steps, and the better fit is kept. So the result
    is the least squares fit in every voxel, and the training decides on the speed alone:
    OUTSIDE_SUPPORT of PERK is not a flag of the result.

    Parameters
    ----------
    perk : Perk
        Or any estimator with a protocol.
    iterations : int
        Steps from PERK's values.
    tolerance : float
        A voxel has settled when the last of these steps moved no latent by a larger part;
        what is left is then smaller by another order of magnitude or more.
    bounds, sigma, dtype
        As in `NonlinearLeastSquares`.

    Raises
    ------
    UsageError
        As `NonlinearLeastSquares` does.
    """

    perk: Trained
    iterations: int = 3
    tolerance: float = 1e-3
    bounds: Mapping[str, tuple[float, float]] | None = None
    sigma: float | torch.Tensor | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        # so that what is wrong is refused now and not after an hour of reading images
        _ = self.least_squares

    @property
    def least_squares(self) -> NonlinearLeastSquares:
        """The full search that voxels are handed on to."""
        return NonlinearLeastSquares(
            self.perk.protocol, self.bounds, sigma=self.sigma, dtype=self.dtype
        )

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the maps, ``"m0"`` first."""
        return self.least_squares.latents

    def estimate(
        self, signal: torch.Tensor, known: Mapping[str, torch.Tensor] | None = None
    ) -> Estimate:
        """Return the least squares values of N voxels, their standard errors and flags.

        Parameters
        ----------
        signal : Tensor
            (N, D) measured values.
        known : mapping of str to Tensor, optional
            (N,) ``"kappa"``.

        Raises
        ------
        InputError
            If the signal or a known regressor does not fit the protocol.
        """
        full = self.least_squares
        voxels = check_voxels(signal, known, full.protocol, self.dtype)
        guess = self.perk.estimate(signal, known)
        inside = (guess.quality & int(Flag.OUTSIDE_SUPPORT)) == 0
        start = {n: guess.values[n].where(inside, torch.nan) for n in full.nonlinear}
        fit = full.with_steps(self.iterations, self.tolerance).search(voxels, start)
        self._search_again(full, voxels, fit, ~inside)
        return full.finish(voxels, fit)

    def _search_again(
        self, full: NonlinearLeastSquares, voxels: Voxels, fit: Fit, outside: torch.Tensor
    ) -> None:
        """Search doubtful voxels of `fit` from the dictionary; keep what fits better."""
        there = usable(voxels)
        open_ = outside | ((fit.flags & int(Flag.NOT_CONVERGED)) != 0)
        freedom = voxels.signal.shape[1] - len(full.latents)
        sigma = None if self.sigma is None else torch.as_tensor(self.sigma, device=there.device)
        _, judged = noise_variance(fit.squares, freedom, there, sigma)
        poor = poor_fit(fit.squares, (voxels.signal**2).sum(1), freedom, judged)
        again = ((open_ | poor) & there).nonzero()[:, 0]
        if not again.numel():
            return
        known = {n: v[again] for n, v in voxels.known.items()}
        sub = Voxels(voxels.signal[again], known, voxels.quality[again])
        found = full.search(sub)
        # an open search may have stopped anywhere: replace it unless it is clearly better
        keep = found.squares > fit.squares[again] * (1 + 1e-6)
        keep &= fit.squares[again].isfinite()
        fit.put(again[~keep], found.part(~keep))
