"""A step that smooths with a Gaussian whose width is given in millimetres."""

from __future__ import annotations

from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import GaussianSmooth, MapTransform, Transform

from medpipe.errors import UsageError


class Smooth(Transform):
    """Smooth an image with a Gaussian.

    Parameters
    ----------
    sigma_mm : float
        Standard deviation of the Gaussian in mm, the same in every direction.
    """

    def __init__(self, sigma_mm: float) -> None:
        if not sigma_mm > 0:
            raise UsageError("sigma_mm is wrong", expected="above 0", got=str(sigma_mm))
        self.sigma_mm = sigma_mm

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Return the smoothed image (C, I, J, K), on the device of `img`."""
        sigma_voxels = [self.sigma_mm / float(mm) for mm in affine_to_spacing(img.affine)]
        return GaussianSmooth(sigma_voxels, approx="sampled")(img)


class Smoothd(MapTransform):
    """Smooth images with a Gaussian.

    Parameters
    ----------
    keys : keys of the images
    sigma_mm : float
        Standard deviation of the Gaussian in mm, the same in every direction.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    makes = "volume"

    def __init__(self, keys: str | list[str], sigma_mm: float, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.smooth = Smooth(sigma_mm)

    def __call__(self, data):
        """Return a copy of `data` with each key smoothed."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.smooth(out[key])
        return out
