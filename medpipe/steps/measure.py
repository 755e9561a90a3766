"""A table of what is in an image and under each of its labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection

from medpipe.errors import StepError, UsageError
from medpipe.geometry import spacing_mm
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_same_grid,
    quantiles,
    read_key,
)
from medpipe.types import Affine, Json

__all__ = ["Statistics", "StatisticsD", "StatisticsDict", "Statisticsd"]

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)


def _values_row(values: torch.Tensor, percents: Sequence[float]) -> dict[str, Json]:
    """Return the statistics of a 1-D tensor over its finite values."""
    finite = values[torch.isfinite(values)] if values.is_floating_point() else values
    n = finite.numel()
    row: dict[str, Json] = {"voxels": values.numel(), "nonfinite_voxels": values.numel() - n}
    names = [f"p{p:g}" for p in percents]
    if n == 0:
        return row | dict.fromkeys(["mean", "sd", "min", "max", *names])
    if finite.dtype in (torch.float16, torch.bfloat16, torch.bool):
        finite = finite.float()
    mean = float(finite.mean(dtype=torch.float64))
    squares = float((finite.double() - mean).square_().sum())
    row["mean"] = mean
    row["sd"] = float(np.sqrt(squares / (n - 1))) if n > 1 else None
    row["min"], row["max"] = float(finite.min()), float(finite.max())
    return row | dict(zip(names, quantiles(finite, percents), strict=True))


def _place_row(flat: torch.Tensor, shape: tuple[int, ...], affine: Affine) -> dict[str, Json]:
    """Return centroid and extent in RAS mm of the voxels with flat indices `flat`."""
    plane = shape[1] * shape[2]
    index = (flat // plane, flat % plane // shape[2], flat % shape[2])
    centroid: list[Json] = []
    low: list[Json] = []
    high: list[Json] = []
    for row in affine[:3]:
        mm = sum(float(a) * i for a, i in zip(row[:3], index, strict=True)) + float(row[3])
        mm = mm.double()  # type: ignore[union-attr]
        centroid.append(float(mm.mean()))
        low.append(float(mm.min()))
        high.append(float(mm.max()))
    return {"centroid_mm": centroid, "bounding_box_mm": [low, high]}


class Statistics(ArrayStep):
    """Measure an image, and each label of a mask on its grid.

    Parameters
    ----------
    percentiles : list of float, optional
        In 0..100, linear between ranks; by default 5, 25, 50, 75 and 95.
    channel : int
        The channel that is measured.
    """

    def __init__(self, percentiles: Sequence[float] | None = None, channel: int = 0) -> None:
        percents = PERCENTILES if percentiles is None else percentiles
        if not all(0 <= p <= 100 for p in percents):
            raise UsageError("percentiles is wrong", expected="numbers in 0..100")
        self.percentiles = tuple(float(p) for p in percents)
        self.channel = channel

    def __call__(self, img: Any, mask: Any = None) -> dict[str, Json]:
        """Return a table of JSON values.

        ``image`` holds the row of the whole image, ``labels`` one row per label
        above 0 of `mask` (label map of shape (1, I, J, K)), named by its number.
        Each row holds ``voxels``, ``volume_ml``, ``nonfinite_voxels``, ``mean``,
        ``sd`` (with n - 1), ``min``, ``max``, percentiles ``p5``…, and for labels
        ``centroid_mm`` and ``bounding_box_mm`` of the voxel centres in RAS+ mm.

        NaN and infinity count as voxels and towards the volume but enter no
        statistic of values; without a finite value those are null. Sums are
        taken in float64.

        Raises
        ------
        StepError
            If the image is complex, or the mask is on another grid, empty or
            holds values that are not whole numbers.
        """
        image = as_image(img)
        if image.is_complex():
            raise StepError("the image is complex", expected="real values")
        if not 0 <= self.channel < image.shape[0]:
            raise StepError("there is no such channel", expected=f"below {image.shape[0]}")
        affine = affine_of(image)
        values = image.as_tensor()[self.channel].flatten()
        voxel_mm3 = float(abs(np.linalg.det(affine[:3, :3])))
        rows: dict[str, Json] = {}
        if mask is not None:
            for label, flat in self._labels(image, mask):
                row = _values_row(values[flat], self.percentiles)
                row["volume_ml"] = flat.numel() * voxel_mm3 / 1000
                rows[str(label)] = row | _place_row(flat, tuple(image.shape[1:]), affine)
        whole = _values_row(values, self.percentiles)
        whole["volume_ml"] = values.numel() * voxel_mm3 / 1000
        return {
            "spacing_mm": [float(s) for s in spacing_mm(affine)],
            "voxel_mm3": voxel_mm3,
            "image": whole,
            "labels": rows,
        }

    @staticmethod
    def _labels(image: Any, mask: Any) -> list[tuple[int, torch.Tensor]]:
        """Return each label above 0 and the flat indices of its voxels, by one sort."""
        m = as_image(mask)
        check_same_grid(image, m)
        if m.shape[0] != 1:
            raise StepError("the mask has several channels", expected="one label map")
        labels = m.as_tensor()[0].flatten().to(image.device)
        if labels.is_floating_point():
            if not bool((labels == labels.round()).all()):
                raise StepError("the mask holds values that are not labels", expected="integers")
            labels = labels.to(torch.int32)
        flat = torch.nonzero(labels > 0).flatten()
        if flat.numel() == 0:
            raise StepError("the mask is empty", expected="at least one voxel above 0")
        found, order = torch.sort(labels[flat].to(torch.int32), stable=True)
        names, counts = torch.unique_consecutive(found, return_counts=True)
        groups = torch.split(flat[order], [int(c) for c in counts])
        return [(int(n), g) for n, g in zip(names, groups, strict=True)]


class Statisticsd(DictStep):
    """Replace images by tables of what is in them and under each label of a mask.

    Parameters
    ----------
    keys : keys of the images
    mask : str, optional
        Key of a label map on the grid of the images.
    percentiles : list of float, optional
        In 0..100; by default 5, 25, 50, 75 and 95.
    channel : int
        The channel that is measured.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask",)
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        mask: str | None = None,
        percentiles: list[float] | None = None,
        channel: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = Statistics(percentiles, channel)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key replaced by its table."""
        out = dict(data)
        mask = None if self.mask is None else read_key(data, self.mask, "mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


StatisticsD = StatisticsDict = Statisticsd
