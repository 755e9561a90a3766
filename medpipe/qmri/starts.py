"""Where a search begins: the best of a coarse dictionary, one start per pattern of signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from medpipe.qmri.atoms import Atoms, best_atoms, kappa_bins, make_atoms, mesh
from medpipe.qmri.protocol import Protocol

__all__ = ["Starts"]

SIZES = {1: (256,), 2: (96, 20), 3: (48, 16, 8)}
"""Points of the grid per latent, by their number; with more latents, six on each."""

TRIES = 3
"""Patterns of signs that are tried, the most likely ones."""

HOPELESS = 0.03
"""A pattern whose best atom leaves by this much more of the squared signal than the best of
all is not tried: the steps of the grid cost an atom less than that."""

KAPPA_WIDTH = 0.1


@dataclass(eq=False)
class Starts:
    """Finds where the search of each voxel begins, and with which signs.

    Parameters
    ----------
    protocol : Protocol
    latents : tuple of str
        Those that are searched.
    support : mapping of str to (low, high)
    fixed : mapping of str to float
    """

    protocol: Protocol
    latents: tuple[str, ...]
    support: Mapping[str, tuple[float, float]]
    fixed: Mapping[str, float]
    _table: dict[float, Atoms] = field(default_factory=dict)

    def of(
        self,
        unit: torch.Tensor,
        known: Mapping[str, torch.Tensor],
        begin: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return starts, signs and which of them to try, for N voxels.

        Parameters
        ----------
        unit : Tensor
            (N, D) measured values of norm 1.
        known : mapping of str to Tensor
            (N,) each.
        begin : Tensor, optional
            (p, N) starts that are given; NaN where the dictionary is to be asked.

        Returns
        -------
        values : Tensor
            (p, N, K), K starts per voxel.
        signs : Tensor
            (N, K, D), what to multiply the measured values by.
        tried : Tensor
            (N, K) bool, at least one in each voxel.
        """
        if begin is None:
            return self._search(unit, known)
        values, signs = self._around(unit, known, begin)
        tried = torch.ones_like(signs[:, :, 0], dtype=torch.bool)
        absent = begin.isnan().any(0).nonzero()[:, 0]
        if absent.numel():
            maps = {k: v[absent] for k, v in known.items()}
            found, turned, _ = self._search(unit[absent], maps)
            # a voxel of the dictionary may have fewer patterns than starts, or more
            take = [min(k, found.shape[2] - 1) for k in range(values.shape[2])]
            values[:, absent] = found[:, :, take]
            signs[absent] = turned[:, take]
        return values, signs, tried

    def _search(
        self, unit: torch.Tensor, known: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        kappa = known.get("kappa")
        if kappa is None:
            return self._nearest(unit, self._atoms(unit, 1.0))
        centres, which = kappa_bins(kappa, KAPPA_WIDTH)
        tables = [self._atoms(unit, float(c)) for c in centres]
        tries = min(TRIES, max(len(t.ends) for t in tables))
        values = unit.new_empty(len(self.latents), unit.shape[0], tries)
        signs = unit.new_empty(unit.shape[0], tries, unit.shape[1])
        tried = torch.zeros(unit.shape[0], tries, dtype=torch.bool, device=unit.device)
        for number, table in enumerate(tables):
            rows = (which == number).nonzero()[:, 0]
            found, turned, some = self._nearest(unit[rows], table)
            count = found.shape[2]
            take = [min(k, count - 1) for k in range(tries)]
            values[:, rows], signs[rows] = found[:, :, take], turned[:, take]
            tried[rows, :count] = some
        return values, signs, tried

    @staticmethod
    def _nearest(
        unit: torch.Tensor, atoms: Atoms
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return starts (p, N, K), signs (N, K, D) and hopes (N, K) of the best patterns."""
        scores, chosen = best_atoms(atoms, unit)
        top, best = scores.topk(min(TRIES, scores.shape[1]), 1)
        fits = top.clamp_min(0) ** 2
        tried = fits >= fits[:, :1] - HOPELESS
        return atoms.values[:, chosen.gather(1, best)], atoms.signs[best], tried

    def _around(
        self, unit: torch.Tensor, known: Mapping[str, torch.Tensor], begin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the given starts with their own signs and, if signs change, with others.

        The others are those of the value nearest to 0 turned over: where the start is
        near the truth, only its sign is in doubt.
        """
        middle = torch.tensor([(a * b) ** 0.5 or (a + b) / 2 for a, b in self.support.values()])
        safe = torch.where(begin.isnan(), middle.to(begin)[:, None], begin)
        rows = {**known, **{n: unit.new_tensor(v) for n, v in self.fixed.items()}}
        rows |= dict(zip(self.latents, safe, strict=True))
        signed = self.protocol.signal(rows, magnitude=False)
        signs = torch.where(signed == self.protocol.signal(rows), 1.0, -1.0).to(unit)
        patterns = self._atoms(unit, 1.0).signs
        if len(patterns) == 1:
            return safe[:, :, None].clone(), signs[:, None]
        constant = (patterns == patterns[:1]).all(0)
        nearest = signed.abs().masked_fill(constant, torch.inf).argmin(1, keepdim=True)
        flip = torch.ones_like(signs).scatter(1, nearest, -1.0)
        return safe[:, :, None].repeat(1, 1, 2), torch.stack([signs, signs * flip], 1)

    def _atoms(self, like: torch.Tensor, kappa: float) -> Atoms:
        """Return the coarse dictionary at one kappa."""
        if kappa not in self._table:
            p = len(self.latents)
            values = mesh(self.latents, self.support, SIZES.get(p, (6,) * p), like)
            known = {n: like.new_tensor(v) for n, v in self.fixed.items()}
            if "kappa" in self.protocol.knowns:
                known["kappa"] = like.new_tensor(kappa)
            self._table[kappa] = make_atoms(self.protocol, self.latents, values, known)
        return self._table[kappa]
