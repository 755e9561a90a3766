"""Rigid and affine registration of one image to another, with SimpleITK.

The optimiser works on copies of both images, resampled to isotropic grids of
decreasing spacing and brought to the host: SimpleITK's own pyramid shrinks
every axis alike, which leaves nothing of a CT with 5 mm slices, and its images
cannot hold a shear on every path. The moving image itself is then resampled
once, on its own device, at the positions the transform says.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import SimpleITK as sitk  # noqa: N813 - its own name for itself
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import LPS_TO_RAS, center_mm, spacing_mm
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    fill_value,
    mask_of,
    read_key,
    rewrap,
)
from medpipe.steps._sampling import sample_grid
from medpipe.steps.spatial import Mode, Resample
from medpipe.types import Affine, Json

__all__ = ["Register", "RegisterD", "RegisterDict", "Registerd", "register_images", "to_sitk"]

Kind = Literal["rigid", "affine"]
Metric = Literal["mattes", "correlation", "mean_squares"]
Start = Literal["geometry", "moments", "identity"]
LEVELS_MM = (8.0, 4.0, 2.0)
STAGES: dict[str, tuple[tuple[str, float], ...]] = {
    "rigid": tuple(("rigid", level) for level in LEVELS_MM),
    # an affine search that starts far away shears where it should turn
    "affine": (("rigid", 8.0), ("rigid", 4.0), *(("affine", level) for level in LEVELS_MM)),
}
ITERATIONS = {"rigid": {8.0: 40, 4.0: 25, 2.0: 10}, "affine": {8.0: 60, 4.0: 50, 2.0: 25}}
SAMPLES = 50_000
MIN_VOXELS = 8


def to_sitk(image: MetaTensor) -> sitk.Image:
    """Return channel 0 of a rectilinear image as a float32 SimpleITK image in LPS mm."""
    affine = LPS_TO_RAS @ affine_of(image)
    spacing = spacing_mm(affine)
    values = torch.nan_to_num(image.as_tensor()[0].detach().to("cpu", torch.float32))
    out = sitk.GetImageFromArray(values.permute(2, 1, 0).contiguous().numpy())
    out.SetSpacing(spacing.tolist())
    out.SetOrigin(affine[:3, 3].tolist())
    out.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return out


def _matrix_ras(transform: sitk.Transform) -> Affine:
    """Return a linear SimpleITK transform (LPS points to LPS points) as a RAS (4, 4) matrix."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    out = np.eye(4)
    for a, unit in enumerate(np.eye(3)):
        out[:3, a] = np.array(transform.TransformPoint(unit.tolist())) - origin
    out[:3, 3] = origin
    return LPS_TO_RAS @ out @ LPS_TO_RAS


def _method(metric: str, fraction: float, seed: int) -> sitk.ImageRegistrationMethod:
    """Return a single-level registration method whose result does not vary between runs."""
    method = sitk.ImageRegistrationMethod()
    # sums over threads differ in their last bits from run to run
    method.SetNumberOfThreads(1)
    if metric == "mattes":
        method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    elif metric == "correlation":
        method.SetMetricAsCorrelation()
    else:
        method.SetMetricAsMeanSquares()
    if fraction < 1:
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(fraction, seed)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerScalesFromPhysicalShift()
    return method


def _initial(fixed: MetaTensor, moving: MetaTensor, initial: Start) -> sitk.Transform:
    """Return the starting transform: fixed points (LPS mm) to moving points."""
    kind = sitk.Euler3DTransform()
    if initial == "moments":
        levels = [Resample(LEVELS_MM[0])(i) for i in (fixed, moving)]
        a, b = (to_sitk(i) for i in levels)
        # masses must not be negative: lift both so that their background weighs nothing
        lifted = [i - float(sitk.GetArrayViewFromImage(i).min()) for i in (a, b)]
        moments = sitk.CenteredTransformInitializerFilter.MOMENTS
        return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*lifted, kind, moments))
    flip = np.array([-1.0, -1.0, 1.0])
    here = flip * center_mm(affine_of(fixed), fixed.shape[1:])
    there = flip * center_mm(affine_of(moving), moving.shape[1:])
    kind.SetCenter(here.tolist())
    if initial == "geometry":
        kind.SetTranslation((there - here).tolist())
    return kind


def _as_affine(rigid: sitk.Euler3DTransform) -> sitk.AffineTransform:
    """Return a rigid transform as an affine one about the same centre."""
    out = sitk.AffineTransform(3)
    out.SetCenter(rigid.GetCenter())
    out.SetMatrix(rigid.GetMatrix())
    out.SetTranslation(rigid.GetTranslation())
    return out


def register_images(
    fixed: MetaTensor,
    moving: MetaTensor,
    transform: Kind = "rigid",
    metric: Metric = "mattes",
    initial: Start = "geometry",
    fixed_mask: MetaTensor | None = None,
    seed: int = 0,
) -> tuple[Affine, float]:
    """Find the rigid or affine transform that aligns two images.

    Parameters
    ----------
    fixed, moving : MetaTensor, shape (C, I, J, K)
        Channel 0 is used. Any affine: oblique, left-handed or sheared.
    transform : {"rigid", "affine"}
    metric : {"mattes", "correlation", "mean_squares"}
        Mutual information (Mattes 2003, doi 10.1109/TMI.2003.809072),
        normalised correlation or mean squares.
    initial : {"geometry", "moments", "identity"}
        Start by aligning the middles of the grids, the centres of mass, or
        trust the world coordinates.
    fixed_mask : MetaTensor, optional
        Where the metric is evaluated, on any grid.
    seed : int
        Of the random choice of samples.

    Returns
    -------
    fixed_to_moving : ndarray, shape (4, 4)
        RAS+ mm of a point in the fixed image to that of its match in the moving one.
    metric : float
        Final value of the metric; smaller is better.

    Raises
    ------
    StepError
        If an image is too small, or the images do not overlap.
    """
    current = _initial(fixed, moving, initial)
    value = float("nan")
    for kind, level in STAGES[transform]:
        pair = [to_sitk(Resample(level)(i)) for i in (fixed, moving)]
        if min(min(i.GetSize()) for i in pair) < MIN_VOXELS and level != LEVELS_MM[-1]:
            continue
        if min(min(i.GetSize()) for i in pair) < 4:
            raise StepError(
                "an image is too small to register",
                expected=f"at least {4 * LEVELS_MM[-1]:g} mm along each axis",
            )
        if kind == "affine" and isinstance(current, sitk.Euler3DTransform):
            current = _as_affine(current)
        fraction = min(1.0, SAMPLES / pair[0].GetNumberOfPixels())
        method = _method(metric, fraction, seed)
        if fixed_mask is not None:
            like = Resample(level)(fixed)
            grid = Resample(mode="nearest", fill=0.0)(fixed_mask, like)
            method.SetMetricFixedMask(sitk.Cast(to_sitk(grid) > 0, sitk.sitkUInt8))
        method.SetOptimizerAsConjugateGradientLineSearch(
            learningRate=1.0,
            numberOfIterations=ITERATIONS[kind][level],
            convergenceMinimumValue=1e-7,
            convergenceWindowSize=6,
            lineSearchUpperLimit=3.0,
            lineSearchMaximumIterations=6,
            estimateLearningRate=method.EachIteration,
            maximumStepSizeInPhysicalUnits=level / 2,
        )
        method.SetInitialTransform(current, inPlace=True)
        try:
            method.Execute(*pair)
        except RuntimeError:
            raise StepError(
                "the registration failed",
                expected="images that overlap after the initial alignment",
                hint="try another value of initial, or check the inputs",
            ) from None
        value = float(method.GetMetricValue())
    matrix = _matrix_ras(current)
    if not np.isfinite(matrix).all() or not 0.1 < abs(np.linalg.det(matrix[:3, :3])) < 10:
        raise StepError("the registration diverged", hint="try another value of initial or metric")
    return matrix, value


class Register(ArrayStep):
    """Move an image onto the grid of a fixed image by a rigid or affine transform.

    Parameters
    ----------
    transform, metric, initial, seed
        See `register_images`. The same inputs and seed give the same transform.
    mode : {"linear", "nearest", "cubic"}
        Interpolation of the result.
    fill : float, optional
        Value outside the moving image; by default its smallest.
    """

    def __init__(
        self,
        transform: Kind = "rigid",
        metric: Metric = "mattes",
        initial: Start = "geometry",
        mode: Mode = "linear",
        fill: float | None = None,
        seed: int = 0,
    ) -> None:
        self.transform: Kind = check_choice("transform", transform, get_args(Kind))
        self.metric: Metric = check_choice("metric", metric, get_args(Metric))
        self.initial: Start = check_choice("initial", initial, get_args(Start))
        self.mode: Mode = check_choice("mode", mode, get_args(Mode))
        self.fill = fill
        if seed < 0:
            raise UsageError("seed is wrong", expected="0 or more")
        # 0 would tell SimpleITK to take the seed from the clock
        self.seed = seed + 1

    def __call__(self, img: Any, fixed: Any, fixed_mask: Any = None) -> MetaTensor:
        """Return the moving image `img` on the grid of `fixed`.

        ``meta["medpipe"]["registration"]`` holds `table` of the result.
        """
        moving, target = as_image(img), as_image(fixed)
        mask = None
        if fixed_mask is not None:
            mask_of(target, fixed_mask, "fixed_mask")
            mask = as_image(fixed_mask)
        matrix, value = register_images(
            target, moving, self.transform, self.metric, self.initial, mask, self.seed
        )
        data = moving.as_tensor()
        placed: Affine = np.asarray(np.linalg.solve(matrix, affine_of(moving)), np.float64)
        grid = affine_of(target)
        shape = tuple(target.shape[1:])
        fill = fill_value(data, self.fill, self.mode)
        out = rewrap(moving, sample_grid(data, placed, grid, shape, self.mode, fill, True), grid)
        facts: dict[str, Json] = {
            "transform": self.transform,
            "metric": self.metric,
            "metric_value": value,
            "fixed_to_moving_ras_mm": matrix.tolist(),
            "moving_to_fixed_ras_mm": np.linalg.inv(matrix).tolist(),
        }
        out.meta["medpipe"] = {**out.meta.get("medpipe", {}), "registration": facts}
        return out


class Registerd(DictStep):
    """Move images onto the grid of a fixed image by a rigid or affine transform.

    Parameters
    ----------
    keys : keys of the moving images, each registered on its own
    fixed : str
        Key of the fixed image.
    transform : {"rigid", "affine"}
    metric : {"mattes", "correlation", "mean_squares"}
        Mutual information, normalised correlation or mean squares.
    initial : {"geometry", "moments", "identity"}
        Start by aligning the middles of the grids, the centres of mass, or
        trust the world coordinates.
    fixed_mask : str, optional
        Key of a mask on the fixed image where the metric is evaluated.
    table : str, optional
        Key that receives the transform as a table; for one moving image only.
    mode : {"linear", "nearest", "cubic"}
        Interpolation of the result.
    fill : float, optional
        Value outside the moving image; by default its smallest.
    seed : int
        Of the random choice of samples; part of the parameters, so the result
        does not depend on the seed of the run.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("fixed", "fixed_mask")
    writes = ("table",)
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        fixed: str,
        transform: Kind = "rigid",
        metric: Metric = "mattes",
        initial: Start = "geometry",
        fixed_mask: str | None = None,
        table: str | None = None,
        mode: Mode = "linear",
        fill: float | None = None,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if table is not None and len(self.keys) != 1:
            raise UsageError("table holds one transform", expected="one moving image")
        self.fixed, self.fixed_mask, self.table = fixed, fixed_mask, table
        self.step = Register(transform, metric, initial, mode, fill, seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key on the fixed grid."""
        out = dict(data)
        fixed = read_key(data, self.fixed, "fixed image")
        mask = None if self.fixed_mask is None else read_key(data, self.fixed_mask, "fixed_mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], fixed, mask)
            if self.table is not None:
                out[self.table] = dict(out[key].meta["medpipe"]["registration"])
        return out


RegisterD = RegisterDict = Registerd
