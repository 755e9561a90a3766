"""Ridge regression on features: one eigendecomposition, then any ridge for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from medpipe.qmri.features import FourierFeatures

__all__ = ["CHUNK", "Moments", "Spectrum", "moments"]

CHUNK = 4096
"""Samples whose features are held at a time: 32 MB of 1000 in float64."""
BLOCKS = 8
"""Strips of the covariance; half of it is the mirror of the other."""


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of features z and targets x over samples.

    Parameters
    ----------
    mean_z, mean_x : Tensor
        float64 (Z,), (L,).
    cov_zz, cov_xz : Tensor
        float64 (Z, Z), (L, Z), centred, divided by the number of samples.
    """

    mean_z: torch.Tensor
    mean_x: torch.Tensor
    cov_zz: torch.Tensor
    cov_xz: torch.Tensor


def moments(features: FourierFeatures, q: torch.Tensor, targets: torch.Tensor) -> Moments:
    """Return the moments of z(q) and `targets`, accumulated in chunks in float64.

    Parameters
    ----------
    q : Tensor
        float64 (N, Q).
    targets : Tensor
        float64 (N, L).
    """
    count = q.shape[0]
    mean_x = targets.mean(0)
    total = q.new_zeros(features.count)
    zz = q.new_zeros(features.count, features.count)
    xz = q.new_zeros(targets.shape[1], features.count)
    shift = None
    for rows, z in _chunks(features, q):
        # centred by the first chunk's mean: the second moments then lose no digits
        shift = z.mean(0) if shift is None else shift
        z -= shift
        total += z.sum(0)
        _add_upper(zz, z)
        xz.addmm_((targets[rows] - mean_x).T, z)
    if shift is None:
        raise ValueError("no samples")
    zz = zz.triu() + zz.triu(1).T
    off = total / count
    return Moments(off + shift, mean_x, zz / count - torch.outer(off, off), xz / count)


def _add_upper(zz: torch.Tensor, z: torch.Tensor) -> None:
    """Add zᵀz to the upper triangle of `zz`, and what blocks have below it."""
    size = -(-z.shape[1] // BLOCKS)
    for start in range(0, z.shape[1], size):
        rows = slice(start, start + size)
        zz[rows, start:].addmm_(z[:, rows].T, z[:, start:])


def _chunks(features: FourierFeatures, q: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    for start in range(0, q.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, features(q[rows])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of the covariance of the features, and the targets along them.

    Parameters
    ----------
    eigenvalues : Tensor
        float64 (Z,), not below the rounding of the largest.
    vectors : Tensor
        float64 (Z, Z), one eigenvector per column.
    projected : Tensor
        float64 (L, Z), covariance of targets and features along the vectors.
    """

    eigenvalues: torch.Tensor
    vectors: torch.Tensor
    projected: torch.Tensor

    @classmethod
    def of(cls, moment: Moments) -> Spectrum:
        """Return the spectrum of some moments."""
        values, vectors = torch.linalg.eigh(moment.cov_zz)
        # below this the sign of an eigenvalue is a matter of rounding
        floor = torch.finfo(values.dtype).eps * values[-1]
        return cls(values.clamp(min=floor), vectors, moment.cov_xz @ vectors)

    def readout(self, ridges: Sequence[float]) -> torch.Tensor:
        """Return C_xz (C_zz + ridge I)^-1 for each ridge, (R, L, Z)."""
        ridge = torch.tensor(tuple(ridges)).to(self.eigenvalues)
        shrunk = self.projected / (self.eigenvalues + ridge[:, None, None])
        return shrunk @ self.vectors.T
