"""The fine detail that a decoder leaves out of images, drawn again as coloured noise.

A decoder makes the mean of all images that one latent, or one grid of codes, can stand for:
grain and fine texture differ among these and average out, so what is drawn looks smooth,
which no real image does. What is missing is the difference of real images and their
reconstructions. It is taken as Gaussian noise that has, at each place, the strength of these
differences, and everywhere their spectrum; so the images that are drawn have the spectrum of
real ones. (A decoder with a noise of its own: Dorta et al., doi 10.1109/CVPR.2018.00574.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medpipe.errors import UsageError
from medpipe.seeds import derive_seed

__all__ = ["DETAIL", "FineDetail"]

DETAIL = 0.5
"""Share of it by default: with more hippocampi were hardly nearer to real ones (KID), followed
less what was asked, and segmenters saw less of them."""

WINDOW = 5
"""Voxels along an axis of the cubes that the strength is measured in."""
FAINTEST = 1e-4
"""Strength, of a range of intensities of 1, below which a place has no detail."""
_AXES = (-3, -2, -1)
_PACKED = ("strength", "spectrum", "share")


@dataclass(frozen=True, eq=False)
class FineDetail:
    """Coloured Gaussian noise, of a strength that depends on the place.

    Parameters
    ----------
    strength : Tensor (C, I, J, K)
        Standard deviation at each voxel.
    spectrum : Tensor (C, I, J, K // 2 + 1)
        Amplitude of each frequency of `torch.fft.rfftn`; the mean of its square over all
        frequencies is 1.
    share : float
        How much of it is put back where nobody says how much.
    """

    strength: Tensor
    spectrum: Tensor
    share: float = DETAIL

    @classmethod
    def fit(cls, differences: Tensor, share: float = DETAIL) -> FineDetail:
        """Measure strength and spectrum.

        Parameters
        ----------
        differences : Tensor (N, C, I, J, K)
            Real images minus their reconstructions, best of images that trained neither.
        share : float

        Raises
        ------
        UsageError
            If there are none.
        """
        if differences.ndim != 5 or not len(differences):
            raise UsageError(
                "fine detail is measured on images", expected="(N, C, I, J, K), N of 1 or more",
                got=str(tuple(differences.shape)),
            )  # fmt: skip
        x = differences.float()
        reach = WINDOW // 2
        square = functional.pad(x.square().mean(0, keepdim=True), [reach] * 6, mode="replicate")
        strength = functional.avg_pool3d(square, WINDOW, 1)[0].sqrt()
        plain = torch.where(strength > FAINTEST, x / strength.clamp_min(FAINTEST), 0.0)
        power = torch.fft.rfftn(plain, dim=_AXES).abs().square().mean(0)
        # frequencies between the ends of the last axis stand for two
        twice = torch.full(power.shape[-1:], 2.0, device=power.device)
        twice[0] = 1.0
        if x.shape[-1] % 2 == 0:
            twice[-1] = 1.0
        voxels = x[0, 0].numel()
        mean = (power * twice).sum(_AXES, keepdim=True) / voxels
        spectrum = (power / mean.clamp_min(1e-20)).sqrt()
        return cls(torch.where(strength > FAINTEST, strength, 0.0), spectrum, share)

    def draw(self, seed: int) -> Tensor:
        """Return the detail (C, I, J, K) of one image.

        The noise is drawn on the host: it does not depend on the device, to rounding.
        """
        made = torch.Generator().manual_seed(derive_seed(seed, "detail"))
        white = torch.randn(self.strength.shape, generator=made).to(self.strength)
        shaped = torch.fft.rfftn(white, dim=_AXES) * self.spectrum
        return torch.fft.irfftn(shaped, s=white.shape[-3:], dim=_AXES) * self.strength

    def packed(self) -> dict[str, Tensor]:
        """Return its tensors in half precision, which `unpacked` reads."""
        return {
            "detail.strength": self.strength.half(),
            "detail.spectrum": self.spectrum.half(),
            "detail.share": torch.tensor(self.share, dtype=torch.float64),
        }

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> FineDetail | None:
        """Return what `packed` packed, or None if there is none among the tensors."""
        if "detail.strength" not in tensors:
            return None
        strength, spectrum, share = (tensors[f"detail.{name}"] for name in _PACKED)
        return cls(strength.float(), spectrum.float(), float(share))
