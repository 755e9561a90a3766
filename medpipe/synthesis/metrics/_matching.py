"""Where a volume correlates best with another, by moving it."""

from __future__ import annotations

import numpy as np
import torch

from medpipe.synthesis.metrics._figures import Floats, to_host

__all__ = ["Matcher"]

REACH = 4
"""Volumes are moved by up to 1/REACH of each axis."""
TINY = 1e-9


class Matcher:
    """Finds how far a volume must be moved to lie on a fixed one.

    For every whole shift the correlation is that of the voxels in which both overlap, so that
    neither edges nor the values beyond them count; all shifts at once, by Fourier transforms.

    Parameters
    ----------
    fixed : Tensor, shape (I, J, K)

    References
    ----------
    Padfield 2012, doi:10.1109/TIP.2011.2181402.
    """

    def __init__(self, fixed: torch.Tensor) -> None:
        self.shape = tuple(fixed.shape)
        self.reach = tuple(n // REACH for n in self.shape)
        self.size = tuple(n + m for n, m in zip(self.shape, self.reach, strict=True))
        x = fixed.to(torch.float64) - fixed.mean(dtype=torch.float64)
        self.fixed, squares, self.ones = (
            torch.fft.rfftn(v, s=self.size) for v in (x, x * x, torch.ones_like(x))
        )
        self.count = self._sums(self.ones, self.ones).round().clamp(min=1)
        self.sum = self._sums(self.fixed, self.ones)
        self.spread = self._sums(squares, self.ones) - self.sum**2 / self.count

    def correlations(self, volume: torch.Tensor) -> torch.Tensor:
        """Return the correlation after shifts of -reach to reach along each axis; -1 if none."""
        x = volume.to(torch.float64) - volume.mean(dtype=torch.float64)
        own, squares = (torch.fft.rfftn(v, s=self.size) for v in (x, x * x))
        total = self._sums(self.ones, own)
        spread = self._sums(self.ones, squares) - total**2 / self.count
        both = self._sums(self.fixed, own) - self.sum * total / self.count
        scale = (self.spread.clamp(min=0) * spread.clamp(min=0)).sqrt()
        return torch.where(scale > TINY, both / scale.clamp(min=TINY), -1.0)

    def away(self, volume: torch.Tensor) -> Floats:
        """Return by how many voxels (3,) to move a volume; between voxels by parabolas."""
        found = to_host(self.correlations(volume))
        best = np.unravel_index(int(found.argmax()), found.shape)
        if found[best] <= 0:
            return np.zeros(3)
        out = np.array(best, np.float64) - self.reach
        for axis, at in enumerate(best):
            if 0 < at < found.shape[axis] - 1:
                beside = [list(best), list(best)]
                beside[0][axis], beside[1][axis] = at - 1, at + 1
                a, c = (found[tuple(b)] for b in beside)
                bend = a - 2 * found[best] + c
                out[axis] += 0.5 * (a - c) / bend if bend < 0 else 0.0
        return out

    def _sums(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return the sums of first(x) second(x - shift) for all shifts within reach."""
        values = torch.fft.irfftn(first * second.conj(), s=self.size)
        for axis, m in enumerate(self.reach):
            values = values.roll(m, axis).narrow(axis, 0, 2 * m + 1)
        return values
