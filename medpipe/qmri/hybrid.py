"""PERK to begin with, least squares to end with: the default estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol as Structure

import torch

from medpipe.qmri.estimate import Estimate, Flag, check_input
from medpipe.qmri.least_squares import NonlinearLeastSquares
from medpipe.qmri.protocol import Protocol

__all__ = ["Hybrid", "Trained"]


class Trained(Structure):
    """An estimator that knows its protocol: a trained `Perk`."""

    @property
    def protocol(self) -> Protocol:
        """What it was trained for."""
        ...

    def estimate(
        self,
        signal: torch.Tensor,
        known: Mapping[str, torch.Tensor] | None = None,
        *,
        errors: bool = True,
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
        check_input(signal, known, full.protocol)
        guess = self.perk.estimate(signal, known, errors=False)
        inside = (guess.quality & int(Flag.OUTSIDE_SUPPORT)) == 0
        start = {n: guess.values[n].where(inside, torch.nan) for n in full.nonlinear}
        few = full.with_steps(self.iterations, self.tolerance)
        fit = few.search(signal, known or {}, start)
        open_ = ~inside | ((fit.quality & int(Flag.NOT_CONVERGED)) != 0)
        _, poor = full.judge(fit)
        again = ((open_ | poor) & fit.usable).nonzero()[:, 0]
        if again.numel():
            maps = {n: v[again] for n, v in (known or {}).items()}
            found = full.search(signal[again], maps)
            # a search that was cut short is kept only if it found something better
            keep = found.squares > fit.squares[again] * (1 + 1e-6)
            fit.put(again[~keep], found.part(~keep))
        return full.finish(fit)
