"""The slowly varying brightness of MR images, estimated and divided out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813, the name its own documentation uses
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.steps._base import ArrayStep, DictStep, as_image, mask_of, read_key, rewrap
from medpipe.steps.registration import to_sitk
from medpipe.steps.spatial import Resample

__all__ = ["CorrectBias", "CorrectBiasD", "CorrectBiasDict", "CorrectBiasd"]

FOREGROUND = 0.1
"""Without a mask, voxels above this part of the 99th percentile are fitted."""


class CorrectBias(ArrayStep):
    """Divide an MR image by its bias field, estimated with N4.

    N4 (Tustison et al. 2010, doi 10.1109/TMI.2010.2046908) in SimpleITK, on a copy
    of coarser voxels: the field varies over centimetres. The field is scaled to a
    mean of 1 over the voxels that are fitted, so that intensities keep their range.

    Parameters
    ----------
    iterations : list of int
        Iterations at each level; every level halves the distance of the control points.
    control_points : int
        Control points along each axis at the first level, at least 4.
    working_mm : float
        Voxel size of the copy that is fitted.
    """

    def __init__(
        self,
        iterations: Sequence[int] = (50, 50, 50),
        control_points: int = 4,
        working_mm: float = 4.0,
    ) -> None:
        if not iterations or any(int(n) < 1 for n in iterations):
            raise UsageError("iterations is wrong", expected="one or more numbers above 0")
        if control_points < 4:
            raise UsageError(
                "control_points is wrong", expected="4 or more", got=str(control_points)
            )
        if not working_mm > 0:
            raise UsageError("working_mm is wrong", expected="above 0", got=f"{working_mm:g}")
        self.iterations = tuple(int(n) for n in iterations)
        self.control_points = control_points
        self.working_mm = working_mm

    def __call__(self, img: Any, mask: Any = None) -> MetaTensor:
        """Return the corrected image (C, I, J, K), float32.

        The field is estimated on the first channel and divides all of them.

        Raises
        ------
        StepError
            If the image is complex or has no positive values, or the mask does
            not fit.
        """
        image = as_image(img)
        if image.is_complex():
            raise StepError("the image is complex", expected="magnitudes")
        fitted = self._foreground(image) if mask is None else mask_of(image, mask)[:1]
        coarse = Resample(self.working_mm)(image)
        cover = Resample(fill=0.0, anti_alias=False)(rewrap(image, fitted.float()), coarse)
        if not bool((cover.as_tensor() >= 0.5).any()):
            raise StepError("the region that is fitted is too small", expected="a few centimetres")
        field = self._field(coarse, cover, image)
        field = field / field[fitted[0]].mean()
        return rewrap(image, image.as_tensor().float() / field[None])

    @staticmethod
    def _foreground(image: MetaTensor) -> torch.Tensor:
        values = image.as_tensor()[:1].float()
        positive = values[values > 0]
        if positive.numel() == 0:
            raise StepError("the image has no positive values", expected="an MR magnitude image")
        sample = positive[:: max(1, positive.numel() // 2**20)]
        return values > FOREGROUND * torch.quantile(sample, 0.99)

    def _field(self, coarse: MetaTensor, cover: MetaTensor, image: MetaTensor) -> torch.Tensor:
        """Return the bias field (I, J, K) at the voxels of `image`."""
        filter_ = sitk.N4BiasFieldCorrectionImageFilter()
        filter_.SetMaximumNumberOfIterations(list(self.iterations))
        filter_.SetNumberOfControlPoints([self.control_points] * 3)
        # sums over threads differ in their last bits from run to run
        filter_.SetNumberOfThreads(1)
        filter_.Execute(to_sitk(coarse), sitk.Cast(to_sitk(cover) >= 0.5, sitk.sitkUInt8))
        log_field = filter_.GetLogBiasFieldAsImage(to_sitk(image))
        values = np.ascontiguousarray(sitk.GetArrayFromImage(log_field).transpose(2, 1, 0))
        return torch.exp(torch.from_numpy(values)).to(image.device)


class CorrectBiasd(DictStep):
    """Divide MR images by their bias fields, estimated with N4.

    Parameters
    ----------
    keys : keys of the images
    mask : str, optional
        Key of a mask of the tissue that is fitted, best the brain; without it, all
        voxels above a tenth of the brightest.
    iterations : list of int
        Iterations at each level; every level halves the distance of the control points.
    control_points : int
        Control points along each axis at the first level, at least 4.
    working_mm : float
        Voxel size of the copy that is fitted.
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
        mask: str | None = None,
        iterations: Sequence[int] = (50, 50, 50),
        control_points: int = 4,
        working_mm: float = 4.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = CorrectBias(iterations, control_points, working_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key corrected."""
        out = dict(data)
        mask = None if self.mask is None else read_key(data, self.mask, "mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


CorrectBiasD = CorrectBiasDict = CorrectBiasd
