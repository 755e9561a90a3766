"""Regressors of kernel regression and their random Fourier features.

The Gaussian kernel k(q, q') = exp(-½ |Λ⁻¹(q - q')|²) is the mean over random frequencies
of products of cosines, so a finite draw of them turns the kernel into a linear model
(Rahimi and Recht 2007). With the frequencies ω ~ N(0, Λ⁻²) and phases φ ~ U(0, 2π):
z(q) = √(2/Z) cos(ωᵀq + φ) and E[z(q)ᵀz(q')] = k(q, q').
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medpipe.qmri.protocol import Protocol

__all__ = ["FourierFeatures", "regressor_scale", "regressors"]

CONSTANT = 1e-9
"""A regressor whose spread is below this part of its mean tells nothing."""


def regressors(
    signal: torch.Tensor, known: Mapping[str, torch.Tensor], protocol: Protocol, normalize: bool
) -> torch.Tensor:
    """Return q = [y or y/|y|, known], (N, Q), in the dtype of `signal`.

    Parameters
    ----------
    signal : Tensor
        (N, D) measured values, no row of them all zero.
    known : mapping of str to Tensor
        (N,) maps, one per known regressor of the protocol.
    normalize : bool
        Divide the values of a voxel by their norm, which removes M0 and the gain of the
        scanner from the problem.
    """
    if normalize:
        # the largest first: a norm of values near the end of float32 overflows
        signal = signal / signal.abs().amax(1, keepdim=True)
        signal = signal / torch.linalg.vector_norm(signal, dim=1, keepdim=True)
    columns = [known[name][:, None].to(signal) for name in protocol.knowns]
    return torch.cat([signal, *columns], 1)


@dataclass(frozen=True, eq=False)
class FourierFeatures:
    """Cosines of random frequencies.

    Parameters
    ----------
    frequencies : Tensor
        float64 (Q, Z), angular; a row of 0 for a regressor that is not used.
    phases : Tensor
        float64 (Z,).
    """

    frequencies: torch.Tensor
    phases: torch.Tensor

    @classmethod
    def draw(
        cls, scale: torch.Tensor, length_scale: float, count: int, generator: torch.Generator
    ) -> FourierFeatures:
        """Return `count` features of the kernel with Λ = length_scale · diag(scale).

        Drawn on the host in float64, so they are the same on every device. A regressor
        whose scale is not above 0 gets the frequency 0.

        Parameters
        ----------
        scale : Tensor
            (Q,), one scale per regressor.
        """
        size = (scale.numel(), count)
        normal = torch.randn(size, generator=generator, dtype=torch.float64).to(scale.device)
        turns = torch.rand(count, generator=generator, dtype=torch.float64).to(scale.device)
        lengths = length_scale * scale.to(normal)[:, None]
        frequencies = torch.where(lengths > 0, normal / lengths, torch.zeros_like(normal))
        return cls(frequencies, 2 * math.pi * turns)

    @property
    def count(self) -> int:
        """Number of features Z."""
        return self.phases.numel()

    def __call__(self, q: torch.Tensor) -> torch.Tensor:
        """Return z(q), (N, Z), for regressors (N, Q)."""
        angles = torch.addmm(self.phases.to(q), q, self.frequencies.to(q))
        return angles.cos_().mul_(math.sqrt(2 / self.count))

    def to(self, device: torch.device | str) -> FourierFeatures:
        """Return the same features on another device."""
        return FourierFeatures(self.frequencies.to(device), self.phases.to(device))


def regressor_scale(q: torch.Tensor) -> torch.Tensor:
    """Return the mean size of each regressor, (Q,); 0 for one that is constant.

    A constant regressor would only shift phases, and with a kernel scale next to 0 its
    frequencies would overflow float32.
    """
    mean = q.abs().mean(0)
    return torch.where(q.std(0) > CONSTANT * mean, mean, torch.zeros_like(mean))
