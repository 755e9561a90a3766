"""Exhaustive search of a dictionary: slow, without a start, without local minima."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medpipe.errors import UsageError
from medpipe.qmri.atoms import Atoms, best_atoms, kappa_bins, make_atoms, mesh
from medpipe.qmri.estimate import Estimate, Flag, Voxels, check_voxels, collect
from medpipe.qmri.least_squares import NonlinearLeastSquares, check_ranges, usable, within_reach
from medpipe.qmri.priors import search_range
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.uncertainty import noise_variance, poor_fit

__all__ = ["DictionarySearch"]

SIZES = {1: (4000,), 2: (400, 400), 3: (100, 100, 40)}
"""Points per latent by their number; with more latents, 24 on each."""

MOST_ATOMS = 4_000_000

REFINE_STEPS = 8
"""Most steps after the search; two are usual from a point of the grid."""


@dataclass(frozen=True, eq=False)
class DictionarySearch:
    """The atom whose signal points in the direction of the measured one, for each voxel.

    The inner product with atoms of unit norm is largest where the least squares residual
    with M0 free is smallest. Beside the result it holds one tile of scores (1 MB on a CPU,
    256 MB on a GPU; the atoms of the best tile take D times that) and one dictionary
    (atoms × D × 4 bytes, four times that while it is made), however many voxels there are.

    Parameters
    ----------
    protocol : Protocol
    support : mapping of str to (low, high), optional
        Range of the grid per latent; default `search_range`.
    sizes : mapping of str to int, optional
        Points per latent, spaced evenly in the logarithm of a time.
    kappa_width : float
        Voxels whose kappa differs by less than this part share a dictionary. Half of it is
        the greatest error of kappa; T1 from flip angles is wrong by twice as much.
    refine : bool
        Go on from the best atom with least squares at the exact kappa: gives values
        between the points of the grid, and standard errors.

    Raises
    ------
    UsageError
        For a name that is no latent of the protocol, a range that holds nothing, or more
        than 4 million atoms.
    """

    protocol: Protocol
    support: Mapping[str, tuple[float, float]] | None = None
    sizes: Mapping[str, int] | None = None
    kappa_width: float = 0.01
    refine: bool = False

    def __post_init__(self) -> None:
        for given in (self.support or {}, self.sizes or {}):
            for name in given:
                if name not in self.latents[1:]:
                    raise UsageError(
                        f"{name} is no latent of the protocol", expected=", ".join(self.latents[1:])
                    )
        check_ranges(self.ranges)
        if not 0 < self.kappa_width <= 0.5:
            raise UsageError("kappa_width is wrong", expected="a fraction up to 0.5")
        atoms = 1
        for size in self.grid_sizes:
            atoms *= size
        if min(self.grid_sizes) < 2 or atoms > MOST_ATOMS:
            raise UsageError(
                "the dictionary has a wrong size",
                expected=f"2 points per latent to {MOST_ATOMS} atoms",
                got=" × ".join(map(str, self.grid_sizes)),
            )

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the maps, ``"m0"`` first."""
        return self.protocol.latents

    @property
    def grid_sizes(self) -> tuple[int, ...]:
        """Points of the grid per latent but M0."""
        names = self.latents[1:]
        usual = SIZES.get(len(names), (24,) * len(names))
        return tuple((self.sizes or {}).get(n, s) for n, s in zip(names, usual, strict=True))

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Range of the grid of each latent but M0."""
        own = dict(self.support or {})
        return {n: own[n] if n in own else search_range(n, self.protocol) for n in self.latents[1:]}

    def estimate(
        self, signal: torch.Tensor, known: Mapping[str, torch.Tensor] | None = None
    ) -> Estimate:
        """Return the values of the best atom of N voxels.

        Parameters
        ----------
        signal : Tensor
            (N, D) measured values.
        known : mapping of str to Tensor, optional
            (N,) ``"kappa"``.

        Returns
        -------
        Estimate
            AT_BOUND where the best atom lies on the edge of the grid. Standard errors
            with `refine` alone.
        """
        voxels = check_voxels(signal, known, self.protocol)
        voxels = Voxels(voxels.signal, *within_reach(voxels.known, voxels.quality))
        values, squares = self._search(voxels)
        if self.refine:
            return self._refined(signal, known, values)
        freedom = self.protocol.count - len(self.latents)
        there = usable(voxels.quality)
        _, judged = noise_variance(squares, freedom, there, None)
        power = (voxels.signal**2).sum(1)
        edge = torch.zeros_like(there)
        for row, (low, high) in zip(values[1:], self.ranges.values(), strict=True):
            edge |= (row <= low * (1 + 1e-6)) | (row >= high * (1 - 1e-6))
        quality = voxels.quality | (edge & there).to(torch.uint8) * int(Flag.AT_BOUND)
        poor = poor_fit(squares, power, freedom, judged) & there
        quality = quality | poor.to(torch.uint8) * int(Flag.POOR_FIT)
        return collect(dict(zip(self.latents, values, strict=True)), {}, quality)

    def _search(self, voxels: Voxels) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values (p + 1, N) and sums of squared residuals (N,), NaN without signal."""
        signal = voxels.signal
        values = signal.new_full((len(self.latents), len(voxels)), torch.nan)
        squares = signal.new_full((len(voxels),), torch.nan)
        rows = usable(voxels.quality).nonzero()[:, 0]
        kappa = voxels.known.get("kappa")
        if kappa is None:
            centres, which = signal.new_ones(1), torch.zeros_like(rows)
        else:
            centres, which = kappa_bins(kappa[rows], self.kappa_width)
        points = mesh(self.latents[1:], self.ranges, self.grid_sizes, signal)
        for number, centre in enumerate(centres):
            known = {} if kappa is None else {"kappa": centre}
            atoms = make_atoms(self.protocol, self.latents[1:], points, known)
            part = rows[which == number]
            values[:, part], squares[part] = _nearest(atoms, signal[part])
        return values, squares

    def _refined(
        self,
        signal: torch.Tensor,
        known: Mapping[str, torch.Tensor] | None,
        values: torch.Tensor,
    ) -> Estimate:
        """Return least squares from the values of the search, a few steps of it."""
        fit = NonlinearLeastSquares(self.protocol, bounds=self.ranges, iterations=REFINE_STEPS)
        return fit.estimate(signal, known, dict(zip(self.latents, values, strict=True)))


def _nearest(atoms: Atoms, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return M0 and latents (p + 1, n) of the best atoms, and the squared residuals (n,)."""
    scores, chosen = best_atoms(atoms, signal)
    score, pattern = scores.max(1)
    best = chosen.gather(1, pattern[:, None])[:, 0]
    residual = signal - score[:, None] * atoms.unit[best]
    m0 = score / atoms.norm[best]
    return torch.cat([m0[None], atoms.values[:, best]]), (residual**2).sum(1)
