"""Pictures of centerlines as transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from monai.config.type_definitions import KeysCollection

from medpipe.centerline.pictures import Colouring, profiles_svg, tree_svg
from medpipe.centerline.transforms._base import check_grid_of_tree, one_channel, read_tree
from medpipe.errors import StepError, UsageError
from medpipe.steps._base import ArrayStep, DictStep, check_choice

__all__ = [
    "CenterlinePicture",
    "CenterlinePictureD",
    "CenterlinePictureDict",
    "CenterlinePictured",
    "RadiusProfiles",
    "RadiusProfilesD",
    "RadiusProfilesDict",
    "RadiusProfilesd",
]

Background = Literal["auto", "mask", "image"]
FEW_VALUES = 64


class CenterlinePicture(ArrayStep):
    """Draw a centerline over its mask or image, seen from three sides.

    Parameters
    ----------
    colour : {"generation", "radius", "structure"}
        What the colour of the curves means.
    background : {"auto", "mask", "image"}
        Draw the surface of what is above 0, or the largest value along each line of
        sight; "auto" takes whole numbers from 0 of which there are few for a mask.
    window : (low, high), optional
        Values of an image that are black and white.
    title : str
        Written above; by default the counts of the tree.
    """

    def __init__(
        self,
        colour: Colouring = "generation",
        background: Background = "auto",
        window: Sequence[float] | None = None,
        title: str = "",
    ) -> None:
        self.colour: Colouring = check_choice("colour", colour, get_args(Colouring))
        self.background = check_choice("background", background, get_args(Background))
        if window is not None and (len(window) != 2 or not window[0] < window[1]):
            raise UsageError("window is wrong", expected="two rising numbers", got=str(window)[:40])
        self.window, self.title = window, title

    def __call__(self, tree: Any, img: Any) -> bytes:
        """Return an SVG document.

        Raises
        ------
        StepError
            If the image is not on the grid of the tree.
        """
        found = read_tree(tree)
        image, values = one_channel(img, "image")
        check_grid_of_tree(image, found, "image")
        mask = self.background == "mask" or (self.background == "auto" and _is_mask(values))
        return tree_svg(
            found, values, background="mask" if mask else "image", colour=self.colour,
            window=self.window, title=self.title,
        )  # fmt: skip


def _is_mask(values: torch.Tensor) -> bool:
    """Whether an image holds few values, whole and not below 0."""
    if values.dtype == torch.bool:
        return True
    some = values.reshape(-1)[:: max(1, values.numel() // 4_000_000)]
    if bool((some < 0).any()) or (some.is_floating_point() and bool((some != some.round()).any())):
        return False
    return len(torch.unique(some)) <= FEW_VALUES


class CenterlinePictured(DictStep):
    """Replace centerlines by pictures: three views with the coloured curves (.svg).

    Parameters
    ----------
    keys : keys of centerlines, replaced by documents
    image : str
        Key of the mask or image that is drawn behind.
    colour : {"generation", "radius", "structure"}
        What the colour of the curves means.
    background : {"auto", "mask", "image"}
        Draw the image as a surface or by its largest values; "auto" finds out.
    window : list of 2 floats, optional
        Values of an image that are black and white.
    title : str
        Written above; by default the counts of the tree.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("image",)
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        image: str = "mask",
        colour: Literal["generation", "radius", "structure"] = "generation",
        background: Literal["auto", "mask", "image"] = "auto",
        window: list[float] | None = None,
        title: str = "",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image = image
        self.step = CenterlinePicture(colour, background, window, title)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each centerline replaced by its picture."""
        out = dict(data)
        if self.image not in data:
            raise StepError("the image is absent", expected=f"a key named {self.image}")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], data[self.image])
        return out


class RadiusProfiles(ArrayStep):
    """Draw the radius along the longest paths of a centerline.

    Parameters
    ----------
    paths : int
        How many paths; their ends are numbered as in the picture of the tree.
    """

    def __init__(self, paths: int = 8) -> None:
        if paths < 1:
            raise UsageError("paths is wrong", expected="1 or more", got=str(paths)[:20])
        self.paths = paths

    def __call__(self, tree: Any) -> bytes:
        """Return an SVG document."""
        return profiles_svg(read_tree(tree), paths=self.paths)


class RadiusProfilesd(DictStep):
    """Replace centerlines by charts: radius in mm along the longest paths (.svg).

    Parameters
    ----------
    keys : keys of centerlines, replaced by documents
    paths : int
        How many paths; their ends are numbered as in the picture of the tree.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(
        self, keys: KeysCollection, paths: int = 8, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = RadiusProfiles(paths)


CenterlinePictureD = CenterlinePictureDict = CenterlinePictured
RadiusProfilesD = RadiusProfilesDict = RadiusProfilesd
