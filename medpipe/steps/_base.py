"""What the general steps share: images in and out, grids that agree, values outside."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform
from monai.utils.enums import TransformBackends

from medpipe.errors import StepError, UsageError
from medpipe.geometry import affine_problem, same_grid
from medpipe.types import Affine, Finding

__all__ = [
    "ArrayStep",
    "DictStep",
    "affine_of",
    "as_image",
    "check_choice",
    "check_same_grid",
    "check_triple",
    "facts_of",
    "fill_value",
    "mask_of",
    "quantiles",
    "read_key",
    "rewrap",
    "with_facts",
]


Choice = TypeVar("Choice", bound=str)


class ArrayStep(Transform):
    """Base of the array classes: they work on torch, on the device of their input."""

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]


class DictStep(MapTransform):
    """Base of the dictionary classes that apply one array step to each key.

    Subclasses set `step` to the array transform; those that read a second key
    override `__call__`.
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.TORCH]
    step: Any

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the step applied to each key."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self.step(out[key])
        return out


def as_image(img: Any) -> MetaTensor:
    """Return `img` as a MetaTensor of shape (C, I, J, K) with a usable affine.

    A plain array or tensor gets the identity affine.

    Raises
    ------
    StepError
        If there are not four axes, an axis is empty, the affine is unusable, or
        the value is a table or a document.
    """
    if isinstance(img, bytes | dict):
        got = "a document" if isinstance(img, bytes) else "a table"
        raise StepError("the step needs an image", expected="an image", got=got)
    image = img if isinstance(img, MetaTensor) else MetaTensor(torch.as_tensor(img))
    if image.ndim != 4 or 0 in image.shape:
        raise StepError(
            "the image does not have the right axes",
            expected="a non-empty array (C, I, J, K)",
            got=f"shape {tuple(image.shape)}",
        )
    problem = affine_problem(affine_of(image))
    if problem:
        raise StepError(problem, expected="a finite, invertible affine in mm")
    return image


def affine_of(img: MetaTensor) -> Affine:
    """Return the affine of `img` as float64 numpy (4, 4), voxel index to RAS+ mm."""
    return np.array(img.affine.tolist(), dtype=np.float64)


def rewrap(img: MetaTensor, data: torch.Tensor, affine: Affine | None = None) -> MetaTensor:
    """Return `data` (C, I, J, K) with the metadata of `img`, on `affine` if given.

    MONAI's list of applied operations is not carried on: most steps here are
    no MONAI transforms, so an inverse built from that list would be wrong.
    """
    meta = copy.deepcopy({k: v for k, v in img.meta.items() if k != "affine"})
    if "spatial_shape" in meta:
        meta["spatial_shape"] = np.array(data.shape[1:])
    matrix = torch.from_numpy(affine_of(img) if affine is None else np.array(affine, float))
    plain = data.as_tensor() if isinstance(data, MetaTensor) else data
    return MetaTensor(plain.contiguous(), affine=matrix, meta=meta)


def facts_of(image: MetaTensor) -> dict[str, Any]:
    """Return a copy of the facts in the metadata of `image`, {} where there are none."""
    return dict((image.meta.get("medpipe") or {}).get("source") or {})


def with_facts(
    image: MetaTensor, facts: Mapping[str, Any], findings: Iterable[Finding] = ()
) -> MetaTensor:
    """Return `image` with more facts and findings in its metadata."""
    kept = dict(image.meta.get("medpipe") or {})
    image.meta["medpipe"] = {
        **kept,
        "source": facts_of(image) | dict(facts),
        "findings": [*(kept.get("findings") or []), *(f.to_dict() for f in findings)],
    }
    return image


def read_key(data: Mapping[Hashable, Any], key: str, role: str) -> MetaTensor:
    """Return the image under `key`, which plays `role` ("mask", "fixed") for the step."""
    if key not in data:
        raise StepError(f"the {role} is absent", expected=f"a key named {key}")
    return as_image(data[key])


def check_same_grid(img: MetaTensor, other: MetaTensor, role: str = "mask") -> None:
    """Raise StepError unless `other` lies on the grid of `img` (corners within 0.01 mm)."""
    if not same_grid(affine_of(img), img.shape[1:], affine_of(other), other.shape[1:]):
        shapes = tuple(img.shape[1:]), tuple(other.shape[1:])
        same = shapes[0] == shapes[1]
        raise StepError(
            f"the {role} is not on the grid of the image",
            expected="the grid of the image" if same else f"shape {shapes[0]}",
            got="the same shape at another place" if same else f"shape {shapes[1]}",
            hint=f"resample the {role} with resample, like = the image's key, mode = nearest",
        )


def mask_of(img: MetaTensor, mask: Any, role: str = "mask") -> torch.Tensor:
    """Return `mask` > 0 as bool (1 or C, I, J, K) on the device of `img`.

    Raises
    ------
    StepError
        If the mask lies on another grid, is empty, or its channels do not fit.
    """
    m = as_image(mask)
    check_same_grid(img, m, role)
    if m.shape[0] not in (1, img.shape[0]):
        raise StepError(
            f"the {role} has a wrong number of channels",
            expected=f"1 or {img.shape[0]}",
            got=str(m.shape[0]),
        )
    inside = m.as_tensor().to(img.device) > 0
    if not bool(inside.any()):
        raise StepError(f"the {role} is empty", expected="at least one voxel above 0")
    return inside


def fill_value(data: torch.Tensor, fill: float | None, mode: str = "nearest") -> float:
    """Return `fill`, or for None the smallest finite value of `data` (0 for complex data).

    Raises
    ------
    StepError
        If `data` are integers that stay integers in `mode` and cannot hold `fill`.
    """
    if fill is not None:
        if mode == "nearest" and not (data.is_floating_point() or data.is_complex()):
            least, most = 0, 1
            if data.dtype != torch.bool:
                least, most = torch.iinfo(data.dtype).min, torch.iinfo(data.dtype).max
            if not least <= fill <= most or fill % 1:
                raise StepError(
                    "the image cannot hold the value outside it",
                    expected=f"a whole number in {least}..{most}",
                    got=f"{fill:g}",
                    hint="give masks a step of their own, with 0 there",
                )
        return float(fill)
    if data.is_complex():
        return 0.0
    low = float(data.min())
    if np.isfinite(low):
        return low
    finite = data[torch.isfinite(data)]
    return float(finite.min()) if finite.numel() else 0.0


def quantiles(values: torch.Tensor, percents: Sequence[float]) -> list[float]:
    """Return percentiles of a 1-D tensor, linear between ranks as in numpy.

    `torch.quantile` stops at 16 million values, fewer than one CT holds.
    """
    out = []
    for percent in percents:
        rank = percent / 100 * (values.numel() - 1)
        low = int(np.floor(rank))
        a = float(torch.kthvalue(values, low + 1).values)
        if rank > low:
            a += (rank - low) * (float(torch.kthvalue(values, low + 2).values) - a)
        out.append(a)
    return out


def check_choice(name: str, value: Choice, choices: Sequence[str]) -> Choice:
    """Return `value` if it is one of `choices`, else raise UsageError."""
    if value not in choices:
        raise UsageError(f"unknown {name}", expected=" | ".join(choices), got=repr(value)[:40])
    return value


def check_triple(name: str, value: float | Sequence[float]) -> tuple[float, float, float]:
    """Return one positive number per axis from one number or three; else raise UsageError."""
    try:
        three = np.broadcast_to(np.asarray(value, float), (3,))
    except (TypeError, ValueError):
        raise UsageError(f"{name} is wrong", expected="one number or three") from None
    if not np.isfinite(three).all() or (three <= 0).any():
        raise UsageError(f"{name} is wrong", expected="positive numbers", got=str(value)[:40])
    return float(three[0]), float(three[1]), float(three[2])
