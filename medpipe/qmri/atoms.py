"""Tables of signals over a grid of latents, and the search for the nearest one.

Signals of unit norm are compared by their inner product with the measured values, which
is the least squares fit with M0 free. Where magnitudes are measured, atoms of one pattern
of signs are one branch of the fit: within it the signed model is smooth. The smallest
residual over all patterns is that of the magnitude fit itself, because
|y - |m|| <= |±y - m| with equality for the right signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from medpipe.qmri.protocol import Protocol

__all__ = ["Atoms", "best_atoms", "kappa_bins", "make_atoms", "mesh"]

LINEAR = ("inversion_efficiency",)
"""Latents on a linear axis; all others are on a logarithmic one."""

WIDTH = 512
ROWS = {"cpu": 512}
MOST_ROWS = 1 << 17
"""Atoms and voxels of a tile of scores: 1 MB on a CPU, the cache of one core; else 256 MB."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Signals of unit norm.

    Parameters
    ----------
    values : Tensor
        (p, A), one row per latent.
    unit : Tensor
        (A, D), as measured (magnitudes where those are), norm 1.
    norm : Tensor
        (A,), norm of the signals of unit M0.
    signs : Tensor
        (P, D), patterns of signs of the model, 1 where signed values are measured.
    ends : tuple of int
        Where each pattern ends: the atoms are sorted by pattern.
    """

    values: torch.Tensor
    unit: torch.Tensor
    norm: torch.Tensor
    signs: torch.Tensor
    ends: tuple[int, ...]


def mesh(
    latents: Sequence[str],
    support: Mapping[str, tuple[float, float]],
    sizes: Sequence[int],
    like: torch.Tensor,
) -> torch.Tensor:
    """Return the (p, A) points of a grid, logarithmic for times, the last axis fastest."""
    axes = []
    for name, size in zip(latents, sizes, strict=True):
        low, high = support[name]
        axis = torch.linspace(0, 1, size, dtype=torch.float64)
        line = low + (high - low) * axis if name in LINEAR else low * (high / low) ** axis
        axes.append(line.to(like))
    return torch.stack([g.flatten() for g in torch.meshgrid(*axes, indexing="ij")])


def make_atoms(
    protocol: Protocol,
    latents: Sequence[str],
    values: torch.Tensor,
    known: Mapping[str, torch.Tensor],
) -> Atoms:
    """Return the atoms of `protocol` at `values` (p, A), sorted by pattern of signs.

    Parameters
    ----------
    known : mapping of str to Tensor
        Known regressors and held latents, () each.
    """
    rows = {n: v.expand(values.shape[1]) for n, v in known.items()}
    rows |= dict(zip(latents, values, strict=True))
    signed = protocol.signal(rows, magnitude=False)
    measured = protocol.signal(rows)
    norm = measured.norm(dim=1)
    usable = norm.isfinite() & (norm > 0)
    signed, measured, norm = signed[usable], measured[usable], norm[usable]
    signs = torch.where(signed == measured, 1.0, -1.0).to(values.dtype)
    if bool((signs > 0).all()):  # the usual case, and a sort of rows is slow
        kept = values[:, usable].contiguous()
        return Atoms(kept, measured / norm[:, None], norm, signs[:1], (len(signs),))
    patterns, which = torch.unique(signs, dim=0, return_inverse=True)
    order = torch.argsort(which, stable=True)
    ends = torch.bincount(which, minlength=len(patterns)).cumsum(0).tolist()
    unit = (measured / norm[:, None])[order].contiguous()
    kept = values[:, usable][:, order].contiguous()
    return Atoms(kept, unit, norm[order], patterns, tuple(ends))


def best_atoms(atoms: Atoms, signal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each pattern the best score and its atom, both (N, P).

    Parameters
    ----------
    signal : Tensor
        (N, D).
    """
    n = signal.shape[0]
    scores = signal.new_empty(n, len(atoms.ends))
    chosen = torch.empty(n, len(atoms.ends), dtype=torch.long, device=signal.device)
    rows = ROWS.get(signal.device.type, MOST_ROWS)
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        begin = 0
        for pattern, end in enumerate(atoms.ends):
            chosen[part, pattern] = at = _search(atoms.unit[begin:end], signal[part]) + begin
            scores[part, pattern] = (atoms.unit[at] * signal[part]).sum(1)
            begin = end
    return scores, chosen


def _search(unit: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
    """Return the best of the atoms `unit` (A, D) for the voxels `signal` (n, D): (n,).

    The greatest score of each tile is found without its place, which is much faster;
    the place is looked up in the best tile.
    """
    n, atoms = signal.shape[0], unit.shape[0]
    if atoms <= 8 * WIDTH:  # looking up the place would take longer
        return (signal @ unit.T).argmax(1)
    best = signal.new_full((n,), -torch.inf)
    tile = torch.zeros(n, dtype=torch.long, device=signal.device)
    for number, first in enumerate(range(0, atoms, WIDTH)):
        top = (signal @ unit[first : first + WIDTH].T).amax(1)
        tile = torch.where(top > best, number, tile)
        best = torch.maximum(best, top)
    inside = torch.arange(min(WIDTH, atoms), device=signal.device)
    members = (tile[:, None] * WIDTH + inside).clamp_max(atoms - 1)
    scores = torch.bmm(unit[members], signal[:, :, None])[:, :, 0]
    return members.gather(1, scores.argmax(1, keepdim=True))[:, 0]


def kappa_bins(kappa: torch.Tensor, width: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the occupied bins: their centres (B,) and which one each voxel is in (N,).

    Bins are equal in ln(kappa), `width` wide, one of them centred on 1.
    """
    number = torch.round(torch.log(kappa) / width)
    found, which = torch.unique(number, return_inverse=True)
    return torch.exp(found * width), which
