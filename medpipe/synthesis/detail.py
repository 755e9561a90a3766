"""The fine detail that a decoder leaves out of images, drawn again as coloured noise.

A decoder makes the mean of all images that one latent, or one grid of codes, can stand for:
grain and fine texture differ among these and average out, so what is drawn looks smooth,
which no real image does. What is missing is the difference of real images and their
reconstructions. It is taken as Gaussian noise that has, at each place, the strength of these
differences, and everywhere their spectrum; so the images that are drawn have the spectrum of
real ones. Where the differences have a mean, because a decoder draws a place too dark or too
bright in all images, that mean is put back as it is. (A decoder with a noise of its own:
Dorta et al., doi 10.1109/CVPR.2018.00574.)
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


@dataclass(frozen=True, eq=False)
class FineDetail:
    """What is put back at each place: a mean, and coloured Gaussian noise of a strength.

    Parameters
    ----------
    offset : Tensor (C, I, J, K)
        Mean at each voxel.
    strength : Tensor (C, I, J, K)
        Standard deviation at each voxel.
    spectrum : Tensor (C, I, J, K // 2 + 1)
        Of the noise: amplitude of each frequency of `torch.fft.rfftn`; the mean of its square
        over all frequencies is 1.
    share : float
        How much of the noise is put back where nobody says how much.
    """

    offset: Tensor
    strength: Tensor
    spectrum: Tensor
    share: float = DETAIL

    @classmethod
    def fit(cls, differences: Tensor, share: float = DETAIL) -> FineDetail:
        """Measure mean, strength and spectrum.

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
        whole = differences.float()
        offset = _offset(whole)
        x = whole - offset
        strength = _around(x.square().mean(0)).sqrt()
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
        strength = torch.where(strength > FAINTEST, strength, 0.0)
        return cls(offset, strength, spectrum, share)

    def added_to(self, image: Tensor, seed: int, share: float | None = None) -> Tensor:
        """Return an image (C, I, J, K) with the mean, and with a share of the noise.

        Parameters
        ----------
        image : Tensor (C, I, J, K)
        seed : int
            Of the noise.
        share : float, optional
            By default that of this object; 0: nothing is put back, not the mean either.
        """
        share = self.share if share is None else share
        if share == 0:
            return image
        return image + (self.offset + share * self.draw(seed)).to(image)

    def draw(self, seed: int) -> Tensor:
        """Return the noise (C, I, J, K) of one image, all of it.

        The noise is drawn on the host: it does not depend on the device, to rounding.
        """
        made = torch.Generator().manual_seed(derive_seed(seed, "detail"))
        white = torch.randn(self.strength.shape, generator=made).to(self.strength)
        shaped = torch.fft.rfftn(white, dim=_AXES) * self.spectrum
        return torch.fft.irfftn(shaped, s=white.shape[-3:], dim=_AXES) * self.strength

    def packed(self) -> dict[str, Tensor]:
        """Return its tensors in half precision, which `unpacked` reads."""
        return {
            "detail.offset": self.offset.half(),
            "detail.strength": self.strength.half(),
            "detail.spectrum": self.spectrum.half(),
            "detail.share": torch.tensor(self.share, dtype=torch.float64),
        }

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> FineDetail | None:
        """Return what `packed` packed, or None if there is none among the tensors."""
        if "detail.strength" not in tensors:
            return None
        strength, spectrum = (tensors[f"detail.{k}"].float() for k in ("strength", "spectrum"))
        offset = tensors.get("detail.offset", torch.zeros_like(strength)).float()
        return cls(offset, strength, spectrum, float(tensors["detail.share"]))


def _offset(differences: Tensor) -> Tensor:
    """Return the mean of differences (N, C, I, J, K), less where it may be chance.

    It is shrunk by the share of its square that the scatter of so few images makes
    (James and Stein 1961, the positive part): of one image nothing is known.
    """
    n = len(differences)
    if n == 1:
        return torch.zeros_like(differences[0])
    each = torch.stack([_around(one) for one in differences])
    mean, chance = each.mean(0), each.var(0) / n
    return mean * (1 - _around(chance) / _around(mean.square()).clamp_min(1e-20)).clamp_min(0)


def _around(field: Tensor) -> Tensor:
    """Return the mean of the cube around each voxel of (C, I, J, K)."""
    wide = functional.pad(field[None], [WINDOW // 2] * 6, mode="replicate")
    return functional.avg_pool3d(wide, WINDOW, 1)[0]
