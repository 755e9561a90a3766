"""Steps that make and change masks, and apply them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import axis_codes, is_sheared, spacing_mm
from medpipe.steps._balls import close_ball, dilate_ball, erode_ball, open_ball
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
from medpipe.steps._components import fill_holes, keep_largest

__all__ = [
    "ApplyMask",
    "ApplyMaskD",
    "ApplyMaskDict",
    "ApplyMaskd",
    "FillHoles",
    "FillHolesD",
    "FillHolesDict",
    "FillHolesd",
    "LargestComponent",
    "LargestComponentD",
    "LargestComponentDict",
    "LargestComponentd",
    "Morphology",
    "MorphologyD",
    "MorphologyDict",
    "Morphologyd",
    "Threshold",
    "ThresholdD",
    "ThresholdDict",
    "Thresholdd",
]

Plane = Literal["axial", "coronal", "sagittal"]
Operation = Literal["dilate", "erode", "open", "close"]

PLANES = {"axial": "IS", "coronal": "PA", "sagittal": "LR"}
OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "dilate": dilate_ball,
    "erode": erode_ball,
    "open": open_ball,
    "close": close_ball,
}


class Threshold(ArrayStep):
    """Make a mask of the voxels with ``lower <= value <= upper``.

    Parameters
    ----------
    lower, upper : float, optional
        Limits in the units of the image, both inclusive; None is no limit.
    """

    def __init__(self, lower: float | None = None, upper: float | None = None) -> None:
        if lower is None and upper is None:
            raise UsageError("threshold needs a limit", expected="lower, upper or both")
        if lower is not None and upper is not None and not lower <= upper:
            raise UsageError("the limits are wrong", expected="lower not above upper")
        self.lower, self.upper = lower, upper

    def __call__(self, img: Any) -> MetaTensor:
        """Return a uint8 mask (C, I, J, K) of 0 and 1; NaN gives 0."""
        image = as_image(img)
        data = image.as_tensor()
        if data.is_complex():
            raise StepError("the image is complex", expected="real values")
        if not data.is_floating_point():
            # torch would bring a limit to the type of the data: -5 wraps to 251 in uint8
            data = data.to(torch.float32 if data.element_size() < 4 else torch.float64)
        inside = ~torch.isnan(data)
        if self.lower is not None:
            inside &= data >= self.lower
        if self.upper is not None:
            inside &= data <= self.upper
        return rewrap(image, inside.to(torch.uint8))


class Thresholdd(DictStep):
    """Make masks of the voxels with ``lower <= value <= upper``.

    Parameters
    ----------
    keys : keys of the images
    lower, upper : float, optional
        Limits in the units of the image, both inclusive; None is no limit.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        lower: float | None = None,
        upper: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = Threshold(lower, upper)


class LargestComponent(ArrayStep):
    """Keep the largest connected components of the voxels above 0.

    Labels are kept as they are; a component may hold several. Own code instead
    of MONAI's `KeepLargestConnectedComponent`, which takes an image with
    several channels for a one-hot code.

    Parameters
    ----------
    connectivity : {1, 2, 3}
        Voxels touch by faces, also by edges, or also by corners.
    n : int
        How many components are kept in each channel.
    """

    def __init__(self, connectivity: Literal[1, 2, 3] = 1, n: int = 1) -> None:
        if connectivity not in (1, 2, 3):
            raise UsageError("connectivity is wrong", expected="1, 2 or 3")
        if n < 1:
            raise UsageError("n is wrong", expected="1 or more")
        self.connectivity, self.n = connectivity, n

    def __call__(self, img: Any) -> MetaTensor:
        """Return the mask or label map (C, I, J, K) with the rest set to 0."""
        image = as_image(img)
        data = image.as_tensor()
        keep = [keep_largest(c > 0, self.connectivity, self.n) for c in data]
        return rewrap(image, data.masked_fill(~torch.stack(keep), 0))


class LargestComponentd(DictStep):
    """Keep the largest connected components of the voxels above 0.

    Parameters
    ----------
    keys : keys of the masks or label maps
    connectivity : {1, 2, 3}
        Voxels touch by faces, also by edges, or also by corners.
    n : int
        How many components are kept.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        connectivity: Literal[1, 2, 3] = 1,
        n: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = LargestComponent(connectivity, n)


class FillHoles(ArrayStep):
    """Set to 1 the background that cannot be reached from the border of the image.

    Background is connected by faces.

    Parameters
    ----------
    plane : {"axial", "coronal", "sagittal"}, optional
        Fill slice by slice in this plane, so that a tube open towards the ends
        is filled as well; by default holes are closed in three dimensions.
    """

    def __init__(self, plane: Plane | None = None) -> None:
        self.plane = None if plane is None else check_choice("plane", plane, get_args(Plane))

    def __call__(self, img: Any) -> MetaTensor:
        """Return the mask (C, I, J, K) of 0 and 1 in the dtype of the input."""
        image = as_image(img)
        data = image.as_tensor()
        axis = None
        if self.plane is not None:
            codes = axis_codes(affine_of(image))
            axis = next(a for a, c in enumerate(codes) if c in PLANES[self.plane])
        return rewrap(image, torch.stack([fill_holes(c > 0, axis) for c in data]).to(data.dtype))


class FillHolesd(DictStep):
    """Set to 1 the background that cannot be reached from the border of the image.

    Parameters
    ----------
    keys : keys of the masks
    plane : {"axial", "coronal", "sagittal"}, optional
        Fill slice by slice in this plane instead of in three dimensions.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self, keys: KeysCollection, plane: Plane | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = FillHoles(plane)


class Morphology(ArrayStep):
    """Dilate, erode, open or close a mask with a ball given in mm.

    The ball is exact on anisotropic grids: voxel centres at most `radius_mm`
    apart. What lies outside the image erodes nothing.

    Parameters
    ----------
    operation : {"dilate", "erode", "open", "close"}
    radius_mm : float
    """

    def __init__(self, operation: Operation, radius_mm: float) -> None:
        self.operation = check_choice("operation", operation, get_args(Operation))
        if not 0 <= radius_mm < float("inf"):
            raise UsageError("radius_mm is wrong", expected="0 or more", got=str(radius_mm)[:20])
        self.radius_mm = float(radius_mm)

    def __call__(self, img: Any) -> MetaTensor:
        """Return the mask (C, I, J, K) of 0 and 1 in the dtype of the input.

        Raises
        ------
        StepError
            If the affine is sheared: a ball is no set of offsets along its axes.
        """
        image = as_image(img)
        affine = affine_of(image)
        if is_sheared(affine):
            raise StepError(
                "the grid is sheared",
                expected="perpendicular axes",
                hint="use resample first; it puts the image on a rectilinear grid",
            )
        step = spacing_mm(affine)
        spacing = (float(step[0]), float(step[1]), float(step[2]))
        data = image.as_tensor()
        work = OPERATIONS[self.operation]
        out = torch.stack([work(c > 0, self.radius_mm, spacing) for c in data])
        return rewrap(image, out.to(data.dtype))


class Morphologyd(DictStep):
    """Dilate, erode, open or close masks with a ball given in mm.

    Parameters
    ----------
    keys : keys of the masks
    operation : {"dilate", "erode", "open", "close"}
    radius_mm : float
        Radius of the ball in mm, exact on anisotropic grids.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "labels"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        operation: Operation,
        radius_mm: float,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = Morphology(operation, radius_mm)


class ApplyMask(ArrayStep):
    """Replace the values outside a mask.

    Parameters
    ----------
    outside : float, optional
        The value there (-1024 is air in a CT); by default the smallest of the image.
    """

    def __init__(self, outside: float | None = None) -> None:
        self.outside = outside

    def __call__(self, img: Any, mask: Any) -> MetaTensor:
        """Return the image (C, I, J, K) with `outside` where the mask is not above 0.

        Raises
        ------
        StepError
            If the mask is empty or on another grid.
        """
        image = as_image(img)
        inside = mask_of(image, mask)
        data = image.as_tensor()
        return rewrap(image, data.masked_fill(~inside, fill_value(data, self.outside)))


class ApplyMaskd(DictStep):
    """Replace the values of images outside a mask.

    Parameters
    ----------
    keys : keys of the images
    mask : str
        Key of the mask, on the grid of the images.
    outside : float, optional
        The value there; by default the smallest of each image.
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
        mask: str,
        outside: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask = mask
        self.step = ApplyMask(outside)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the mask applied to each key."""
        out = dict(data)
        mask = read_key(data, self.mask, "mask")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], mask)
        return out


ThresholdD = ThresholdDict = Thresholdd
LargestComponentD = LargestComponentDict = LargestComponentd
FillHolesD = FillHolesDict = FillHolesd
MorphologyD = MorphologyDict = Morphologyd
ApplyMaskD = ApplyMaskDict = ApplyMaskd
