"""Steps from a head CT to the input of a network: checks, frame, grid, channels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, get_args

from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.frame import Method, find_pose
from medpipe.outcome.prepare import (
    checked,
    frame_matrix,
    grid_settings,
    head_on_grid,
    sample_prepared,
    small_copy,
)
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    check_same_grid,
    read_key,
    rewrap,
    with_facts,
)
from medpipe.steps.head_ct import HeadMask
from medpipe.types import Json

__all__ = [
    "CtChannels",
    "CtChannelsD",
    "CtChannelsDict",
    "CtChannelsd",
    "CtCheck",
    "CtCheckD",
    "CtCheckDict",
    "CtCheckd",
    "HeadFrame",
    "HeadFrameD",
    "HeadFrameDict",
    "HeadFramed",
    "HeadGrid",
    "HeadGridD",
    "HeadGridDict",
    "HeadGridd",
]

Preset = Literal["windows", "paper"]


def _ct(img: Any) -> MetaTensor:
    """Return an image of one channel of real values."""
    image = as_image(img)
    if image.shape[0] != 1 or image.is_complex():
        raise StepError("the image is no CT", expected="one channel of real values in HU")
    return image


class CtCheck(ArrayStep):
    """Refuse what is no non-contrast CT of a head in HU; tell what is doubtful."""

    def __call__(self, img: Any) -> MetaTensor:
        """Return the image with facts (``ct_check``) and findings; no voxel changes.

        Raises
        ------
        InputError
            If it cannot be a head CT in HU (limits: `medpipe.outcome.checks`).
        StepError
            If no head is found.
        """
        return self.look(img)[0]

    def look(self, img: Any) -> tuple[MetaTensor, MetaTensor, MetaTensor]:
        """Return the image, the copy of 2 mm that was looked at, and the head on it."""
        image = _ct(img)
        small = small_copy(image)
        mask, facts, findings = checked(image, small)
        out = with_facts(rewrap(image, image.as_tensor()), {"ct_check": facts}, findings)
        return out, small, mask


class CtCheckd(DictStep):
    """Refuse what is no non-contrast CT of a head in HU; tell what is doubtful.

    Refused: MR and other modalities, shifted HU, trunk and limbs, too few slices, a scan
    that cuts off much of the head. Told: contrast medium, coarse slices, air off -1000 HU,
    a head cut off a little.

    Parameters
    ----------
    keys : keys of the CTs; no voxel of them changes
    small_out : str, optional
        Key that receives the copy of 2 mm that was looked at, for the steps below.
    mask_out : str, optional
        Key that receives the mask of the head on that copy.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ("small_out", "mask_out")
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        small_out: str | None = None,
        mask_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if (small_out or mask_out) and len(self.keys) != 1:
            raise UsageError("small_out and mask_out hold one image", expected="one key")
        self.small_out, self.mask_out = small_out, mask_out
        self.step = CtCheck()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key checked."""
        out = dict(data)
        for key in self.key_iterator(out):
            out[key], small, mask = self.step.look(out[key])
            if self.small_out is not None:
                out[self.small_out] = small
            if self.mask_out is not None:
                out[self.mask_out] = mask
        return out


class HeadFrame(ArrayStep):
    """Find the frame of the head: midsagittal plane, pitch, vertex; no voxel changes.

    Parameters
    ----------
    method : {"symmetry", "none"}
        "none" turns nothing and finds the place of the head alone.
    """

    def __init__(self, method: Method = "symmetry") -> None:
        self.method: Method = check_choice("method", method, get_args(Method))

    def __call__(self, img: Any, small: Any = None, mask: Any = None) -> MetaTensor:
        """Return the image with the matrix in its facts (``head_frame``).

        What could not be found out is a finding, and the head is then not turned.

        Parameters
        ----------
        img : MetaTensor, shape (1, I, J, K)
        small : MetaTensor, optional
            Copy of about 2 mm that is looked at; made when it is absent.
        mask : MetaTensor, optional
            Mask of the head on the grid of `small`; made when it is absent.
        """
        image = _ct(img)
        copy = small_copy(image) if small is None else as_image(small)
        head = HeadMask()(copy) if mask is None else as_image(mask)
        check_same_grid(copy, head, "mask of the head")
        fov = (affine_of(image), tuple(image.shape[1:]))
        pose = find_pose(copy, head.as_tensor()[0] > 0, self.method, fov)
        out = rewrap(image, image.as_tensor())
        return with_facts(out, {"head_frame": pose.facts()}, pose.findings)


class HeadFramed(DictStep):
    """Find the frame of the head: midsagittal plane, pitch, vertex; no voxel changes.

    The matrix stands in the facts of the image, where `head_grid` reads it.

    Parameters
    ----------
    keys : keys of the CTs
    small : str, optional
        Key of a copy of about 2 mm that is looked at; made when left out.
    mask : str, optional
        Key of the mask of the head on the grid of `small`; made when left out.
    method : {"symmetry", "none"}
        "none" turns nothing and finds the place of the head alone.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("small", "mask")
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        small: str | None = None,
        mask: str | None = None,
        method: Literal["symmetry", "none"] = "symmetry",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.small, self.mask = small, mask
        self.step = HeadFrame(method)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with the frame in the facts of each key."""
        out = dict(data)
        small = None if self.small is None else read_key(data, self.small, "copy to look at")
        mask = None if self.mask is None else read_key(data, self.mask, "mask of the head")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], small, mask)
        return out


class HeadGrid(ArrayStep):
    """Resample a CT once, through the frame of its head, onto a fixed grid.

    Parameters
    ----------
    grid : {"paper", "compact"}
        Of the published model (1.18 × 1.58 × 1.10 mm, 128 × 128 × 160), or 2.5 mm with the
        whole head (80 × 96 × 80).
    spacing_mm : float or list of 3 float, optional
        In place of the spacing of `grid`, along x, y, z.
    size_voxels : int or list of 3 int, optional
        In place of its size.
    top_margin_mm : float, optional
        Air above the vertex.
    """

    def __init__(
        self,
        grid: str = "paper",
        spacing_mm: float | list[float] | None = None,
        size_voxels: int | list[int] | None = None,
        top_margin_mm: float | None = None,
    ) -> None:
        self.settings = grid_settings(grid, spacing_mm, size_voxels, top_margin_mm)
        self.grid = grid

    def __call__(self, img: Any) -> MetaTensor:
        """Return whole HU (1, *size) in the frame of the head, -1000 outside the scan.

        Raises
        ------
        StepError
            If the image knows no frame (see `HeadFrame`).
        """
        image = _ct(img)
        matrix = frame_matrix(image)
        out = sample_prepared(image.as_tensor(), affine_of(image), matrix, self.settings)
        facts: dict[str, Json] = {
            "spacing_mm": list(self.settings.spacing_mm),
            "size_voxels": list(self.settings.size_voxels),
            "top_margin_mm": self.settings.top_margin_mm,
        }
        return with_facts(rewrap(image, out, self.settings.affine()), {"head_grid": facts})

    def mask(self, mask: Any, matrix: Any) -> MetaTensor:
        """Return a mask of the head, on any grid, as uint8 on the fixed grid."""
        head = as_image(mask)
        return rewrap(head, head_on_grid(head, matrix, self.settings), self.settings.affine())


class HeadGridd(DictStep):
    """Resample CTs once, through the frame of the head, onto a fixed grid.

    Parameters
    ----------
    keys : keys of the CTs, each with its frame (`head_frame`)
    grid : {"paper", "compact"}
        Of the published model (1.18 × 1.58 × 1.10 mm, 128 × 128 × 160), or 2.5 mm with the
        whole head (80 × 96 × 80).
    spacing_mm : float or list of 3 float, optional
        In place of the spacing of `grid`, along x, y, z.
    size_voxels : int or list of 3 int, optional
        In place of its size.
    top_margin_mm : float, optional
        Air above the vertex.
    mask : str, optional
        Key of a mask of the head, on any grid.
    mask_out : str, optional
        Key that receives it on the fixed grid.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("mask",)
    writes = ("mask_out",)
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        grid: Literal["paper", "compact"] = "paper",
        spacing_mm: float | list[float] | None = None,
        size_voxels: int | list[int] | None = None,
        top_margin_mm: float | None = None,
        mask: str | None = None,
        mask_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.mask_out = mask, mask_out
        self.step = HeadGrid(grid, spacing_mm, size_voxels, top_margin_mm)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key, and the mask, on the fixed grid."""
        out = dict(data)
        for key in self.key_iterator(out):
            matrix = frame_matrix(as_image(out[key]))
            out[key] = self.step(out[key])
            if self.mask is not None and self.mask_out is not None:
                head = read_key(data, self.mask, "mask of the head")
                out[self.mask_out] = self.step.mask(head, matrix)
        return out


class CtChannels(ArrayStep):
    """Turn HU into the three channels of a network.

    Parameters
    ----------
    preset : {"windows", "paper"}
        Brain, blood and bone window, or 0..100 HU three times.
    """

    def __init__(self, preset: Preset = "windows") -> None:
        self.preset: Preset = check_choice("preset", preset, get_args(Preset))

    def __call__(self, img: Any) -> MetaTensor:
        """Return the channels (3, I, J, K) in 0..1."""
        image = _ct(img)
        return rewrap(image, ct_channels(image.as_tensor(), self.preset))


class CtChannelsd(DictStep):
    """Turn HU into the three channels of a network.

    Parameters
    ----------
    keys : keys of the CTs
    preset : {"windows", "paper"}
        Brain (0..80), blood (-20..180) and bone (-800..2000 HU) as 0..1, or 0..100 HU
        three times.
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
        preset: Literal["windows", "paper"] = "windows",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = CtChannels(preset)


CtCheckD = CtCheckDict = CtCheckd
HeadFrameD = HeadFrameDict = HeadFramed
HeadGridD = HeadGridDict = HeadGridd
CtChannelsD = CtChannelsDict = CtChannelsd
