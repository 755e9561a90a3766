"""Steps that change values voxel by voxel: windows, normalisation, limits."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    as_image,
    check_choice,
    mask_of,
    quantiles,
    read_key,
    rewrap,
)

__all__ = [
    "ClipIntensity",
    "ClipIntensityD",
    "ClipIntensityDict",
    "ClipIntensityd",
    "NormalizeIntensity",
    "NormalizeIntensityD",
    "NormalizeIntensityDict",
    "NormalizeIntensityd",
    "RoundIntensity",
    "RoundIntensityD",
    "RoundIntensityDict",
    "RoundIntensityd",
    "WindowIntensity",
    "WindowIntensityD",
    "WindowIntensityDict",
    "WindowIntensityd",
]

Method = Literal["zscore", "robust", "minmax"]

IQR_PER_SD = 1.3489795003921634  # interquartile range of a normal distribution, in SDs


def _real(image: MetaTensor) -> torch.Tensor:
    """Return the values of `image` as a floating tensor; refuse complex values."""
    data = image.as_tensor()
    if data.is_complex():
        raise StepError("the image is complex", expected="real values")
    return data if data.is_floating_point() else data.float()


class WindowIntensity(ArrayStep):
    """Map a window of values linearly to a range and clip what lies outside.

    Own code instead of MONAI's `ScaleIntensityRange`, which would return
    float32 for every input and only warns about a window without width.

    Parameters
    ----------
    level_hu, width_hu : float
        Centre and full width of the window, in the units of the image (HU for
        CT). Brain: 40, 80. Subdural: 80, 200. Bone: 600, 2800.
    out_range : list of 2 float, optional
        What the ends of the window become; by default 0 and 1.
    """

    def __init__(
        self, level_hu: float, width_hu: float, out_range: Sequence[float] = (0.0, 1.0)
    ) -> None:
        if not width_hu > 0:
            raise UsageError("width_hu is wrong", expected="above 0", got=str(width_hu)[:20])
        if len(out_range) != 2 or not out_range[0] < out_range[1]:
            raise UsageError("out_range is wrong", expected="two rising numbers")
        self.level_hu, self.width_hu = float(level_hu), float(width_hu)
        self.low, self.high = float(out_range[0]), float(out_range[1])

    def __call__(self, img: Any) -> MetaTensor:
        """Return the windowed image (C, I, J, K); NaN stays NaN."""
        image = as_image(img)
        lower = self.level_hu - self.width_hu / 2
        part = ((_real(image) - lower) / self.width_hu).clamp_(0, 1)
        return rewrap(image, part.mul_(self.high - self.low).add_(self.low))


class WindowIntensityd(DictStep):
    """Map a window of values linearly to a range and clip what lies outside.

    Parameters
    ----------
    keys : keys of the images
    level_hu, width_hu : float
        Centre and full width of the window, in the units of the image.
    out_range : list of 2 float
        What the ends of the window become.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        level_hu: float,
        width_hu: float,
        out_range: Sequence[float] = (0.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = WindowIntensity(level_hu, width_hu, out_range)


class NormalizeIntensity(ArrayStep):
    """Shift and scale values by statistics of each channel, over a mask if given.

    Statistics use finite values only and are summed in float64. MONAI's
    `NormalizeIntensity` sums in float32 and knows no mask but "not zero".

    Parameters
    ----------
    method : {"zscore", "robust", "minmax"}
        ``"zscore"``: mean 0, standard deviation 1. ``"robust"``: median 0,
        interquartile range that of a standard normal distribution.
        ``"minmax"``: the two `percentiles` become 0 and 1, clipped.
    percentiles : list of 2 float
        For ``"minmax"``, in 0..100.
    """

    def __init__(
        self, method: Method = "zscore", percentiles: Sequence[float] = (0.0, 100.0)
    ) -> None:
        self.method = check_choice("method", method, get_args(Method))
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise UsageError("percentiles is wrong", expected="two rising numbers in 0..100")
        self.percentiles = (float(percentiles[0]), float(percentiles[1]))

    def __call__(self, img: Any, mask: Any = None) -> MetaTensor:
        """Return the normalised image (C, I, J, K), outside the mask too.

        Raises
        ------
        StepError
            If the mask is empty or on another grid, or the values are constant.
        """
        image = as_image(img)
        data = _real(image)
        inside = None if mask is None else mask_of(image, mask).expand(data.shape)
        out = torch.empty_like(data)
        for c, channel in enumerate(data):
            values = channel.flatten() if inside is None else channel[inside[c]]
            values = values[torch.isfinite(values)]
            shift, scale = self._statistics(values)
            out[c] = (channel - shift) / scale
        return rewrap(image, out.clamp_(0, 1) if self.method == "minmax" else out)

    def _statistics(self, values: torch.Tensor) -> tuple[float, float]:
        """Return what is subtracted from the values and what they are divided by."""
        if values.numel() == 0:
            raise StepError("there is no finite value to normalise by")
        if self.method == "zscore":
            mean = float(values.mean(dtype=torch.float64))
            shift, scale = mean, float((values.double() - mean).square_().mean().sqrt())
        elif self.method == "robust":
            q25, shift, q75 = quantiles(values, (25, 50, 75))
            scale = (q75 - q25) / IQR_PER_SD
        else:
            shift, high = quantiles(values, self.percentiles)
            scale = high - shift
        if not scale > 1e-7 * max(abs(shift), 1e-30):
            raise StepError(
                "the values have no spread",
                expected=f"a spread above 0 for method {self.method}",
                hint="check the mask, or use another method",
            )
        return shift, scale


class NormalizeIntensityd(DictStep):
    """Shift and scale values by statistics of each channel, over a mask if given.

    Parameters
    ----------
    keys : keys of the images
    method : {"zscore", "robust", "minmax"}
        Mean and standard deviation, median and interquartile range, or two
        percentiles mapped to 0 and 1 and clipped.
    mask : str, optional
        Key of the mask over which statistics are taken; by default everywhere.
    percentiles : list of 2 float
        For ``"minmax"``, in 0..100.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        method: Method = "zscore",
        mask: str | None = None,
        percentiles: Sequence[float] = (0.0, 100.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = NormalizeIntensity(method, percentiles)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key normalised."""
        out = dict(data)
        mask = None if self.mask is None else read_key(data, self.mask, "mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


class ClipIntensity(ArrayStep):
    """Limit values to a range; the dtype is kept.

    Parameters
    ----------
    lower, upper : float, optional
        Smallest and largest value that is kept; None is no limit.
    """

    def __init__(self, lower: float | None = None, upper: float | None = None) -> None:
        if lower is None and upper is None:
            raise UsageError("clip needs a limit", expected="lower, upper or both")
        if lower is not None and upper is not None and not lower < upper:
            raise UsageError("the limits are wrong", expected="lower below upper")
        self.lower, self.upper = lower, upper

    def __call__(self, img: Any) -> MetaTensor:
        """Return the limited image (C, I, J, K); NaN stays NaN."""
        image = as_image(img)
        data = image.as_tensor()
        if data.is_complex():
            raise StepError("the image is complex", expected="real values")
        return rewrap(image, data.clamp(self.lower, self.upper).to(data.dtype))


class ClipIntensityd(DictStep):
    """Limit values to a range; the dtype is kept.

    Parameters
    ----------
    keys : keys of the images
    lower, upper : float, optional
        Smallest and largest value that is kept; None is no limit.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        lower: float | None = None,
        upper: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = ClipIntensity(lower, upper)


class RoundIntensity(ArrayStep):
    """Round values to the nearest whole number, halves to even; the dtype is kept.

    HU are whole numbers in every scanner's file; interpolation makes fractions
    far below the noise, and a saved volume of whole numbers takes half the room.
    """

    def __call__(self, img: Any) -> MetaTensor:
        """Return the rounded image (C, I, J, K); NaN stays NaN."""
        image = as_image(img)
        data = image.as_tensor()
        if data.is_complex():
            raise StepError("the image is complex", expected="real values")
        return rewrap(image, data.round() if data.is_floating_point() else data.clone())


class RoundIntensityd(DictStep):
    """Round values to the nearest whole number, halves to even; the dtype is kept.

    Parameters
    ----------
    keys : keys of the images
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = RoundIntensity()


WindowIntensityD = WindowIntensityDict = WindowIntensityd
NormalizeIntensityD = NormalizeIntensityDict = NormalizeIntensityd
ClipIntensityD = ClipIntensityDict = ClipIntensityd
RoundIntensityD = RoundIntensityDict = RoundIntensityd
