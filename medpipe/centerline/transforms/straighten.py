"""Straightened images along centerlines, and their pictures, as transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from medpipe.centerline.pictures import longest_paths
from medpipe.centerline.straighten import straighten
from medpipe.centerline.strip import straightened_svg
from medpipe.centerline.transforms._base import one_channel, read_tree
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import ResourceError, StepError, UsageError
from medpipe.figures.histogram import describe_values
from medpipe.figures.window import choose_window, looks_like_ct
from medpipe.geometry import spacing_mm
from medpipe.steps._base import (
    ArrayStep,
    DictStep,
    affine_of,
    as_image,
    check_choice,
    facts_of,
    fill_value,
    rewrap,
    with_facts,
)

__all__ = [
    "Straighten",
    "StraightenD",
    "StraightenDict",
    "Straightend",
    "StraightenedPicture",
    "StraightenedPictureD",
    "StraightenedPictureDict",
    "StraightenedPictured",
]

Mode = Literal["linear", "nearest"]
MAX_VOXELS = 200_000_000
_RADII, _LEAST_MM = 6.0, 12.0
"""The default width: so many radii of the widest place, at least so many mm."""


class Straighten(ArrayStep):
    """Straighten an image along a path of a centerline (curved planar reformation).

    Parameters
    ----------
    end : int
        Number of the end that the path from the root leads to, 1 for the longest path,
        as in the pictures and profiles.
    branch : int, optional
        Number of a branch as in the table of branches; instead of a path.
    width_mm : float, optional
        Side of the planes across; by default six times the largest radius of the path.
    step_mm : float, optional
        Side of a voxel of the result; by default the smallest of the image.
    mode : {"linear", "nearest"}
        "nearest" for label maps.
    """

    def __init__(
        self,
        end: int = 1,
        branch: int | None = None,
        width_mm: float | None = None,
        step_mm: float | None = None,
        mode: Mode = "linear",
    ) -> None:
        if end < 1:
            raise UsageError("end is wrong", expected="a number from 1", got=str(end)[:20])
        if branch is not None and branch < 0:
            raise UsageError("branch is wrong", expected="a number from 0", got=str(branch)[:20])
        for name, length in (("width_mm", width_mm), ("step_mm", step_mm)):
            if length is not None and not 0 < length < float("inf"):
                raise UsageError(f"{name} is wrong", expected="above 0", got=str(length)[:20])
        self.end, self.branch = end, branch
        self.width_mm, self.step_mm = width_mm, step_mm
        self.mode: Mode = check_choice("mode", mode, get_args(Mode))

    def __call__(self, img: Any, tree: Any) -> MetaTensor:
        """Return the straightened image (C, W, W, L).

        Its axes are mm across, across and along the path from its start, which are no
        directions of the patient; ``source["straightened"]`` says which path it is.

        Raises
        ------
        StepError
            If the centerline has no such end or branch, or the path is a single point.
        ResourceError
            If the result would be too large.
        """
        image, found = as_image(img), read_tree(tree)
        nodes = self._nodes(found)
        points = found.positions_mm[nodes]
        affine = affine_of(image)
        step = self.step_mm or float(spacing_mm(affine).min())
        widest = float(np.nanmax(found.radius_mm[nodes]))
        width = self.width_mm or max(_RADII * widest, _LEAST_MM)
        length = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        if (width / step) ** 2 * (length / step) > MAX_VOXELS:
            raise ResourceError(
                "the straightened image would be too large",
                expected=f"at most {MAX_VOXELS:,} voxels",
                got=f"{width:.0f} x {width:.0f} x {length:.0f} mm in steps of {step:g} mm",
                hint="set a larger step_mm or a smaller width_mm",
            )
        fill = fill_value(image.as_tensor(), None, "linear")
        made = straighten(
            image.as_tensor(),
            affine,
            points,
            width_mm=width,
            step_mm=step,
            mode=self.mode,
            fill=fill,
        )
        facts = {
            "end": self.end if self.branch is None else None, "branch": self.branch,
            "length_mm": round(length, 3), "width_mm": round(width, 3), "step_mm": step,
        }  # fmt: skip
        return with_facts(rewrap(image, made.data, made.affine), {"straightened": facts})

    def _nodes(self, tree: CenterlineTree) -> NDArray[np.int64]:
        """Return the nodes of the path, from its start to its end."""
        if self.branch is not None:
            if self.branch >= len(tree.branches):
                raise StepError(
                    "the centerline has no such branch",
                    expected=f"0 to {len(tree.branches) - 1}", got=str(self.branch),
                )  # fmt: skip
            nodes = tree.branches[self.branch].nodes
        else:
            if self.end > len(tree.leaves):
                raise StepError(
                    "the centerline has no such end",
                    expected=f"1 to {len(tree.leaves)}", got=str(self.end),
                )  # fmt: skip
            chain = [int(longest_paths(tree, self.end)[-1][-1])]
            while tree.parents[chain[-1]] >= 0:
                chain.append(int(tree.parents[chain[-1]]))
            nodes = np.array(chain[::-1], np.int64)
        if len(nodes) < 3:
            raise StepError("the path is too short to be straightened", expected="three nodes")
        return nodes


class Straightend(DictStep):
    """Straighten images along a path of a centerline (curved planar reformation).

    Parameters
    ----------
    keys : keys of images, replaced by straightened ones (C, W, W, L)
    tree : str
        Key of the centerline.
    end : int
        Number of the end that the path from the root leads to, 1 for the longest path,
        as in the pictures and profiles.
    branch : int, optional
        Number of a branch as in the table of branches; instead of a path.
    width_mm : float, optional
        Side of the planes across; by default six times the largest radius of the path.
    step_mm : float, optional
        Side of a voxel of the result; by default the smallest of the image.
    mode : {"linear", "nearest"}
        "nearest" for label maps.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ("tree",)
    writes = ()
    files = ()
    makes = "volume"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        tree: str = "tree",
        end: int = 1,
        branch: int | None = None,
        width_mm: float | None = None,
        step_mm: float | None = None,
        mode: Literal["linear", "nearest"] = "linear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.tree = tree
        self.step = Straighten(end, branch, width_mm, step_mm, mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each image straightened."""
        out = dict(data)
        if self.tree not in data:
            raise StepError("the centerline is absent", expected=f"a key named {self.tree}")
        for key in self.key_iterator(out):
            out[key] = self.step(out[key], data[self.tree])
        return out


class StraightenedPicture(ArrayStep):
    """Draw two planes along a straightened image, with axes in mm.

    Parameters
    ----------
    window_hu : (low, high), optional
        Values that are black and white; by default those of the mosaic.
    slab_mm : float
        Thickness of which the largest value is shown; 0 for the plane alone.
    """

    def __init__(self, window_hu: Sequence[float] | None = None, slab_mm: float = 0.0) -> None:
        if not 0 <= slab_mm < float("inf"):
            raise UsageError("slab_mm is wrong", expected="0 or more", got=str(slab_mm)[:20])
        self.options = {} if window_hu is None else {"window_hu": list(window_hu)}
        self.slab_mm = slab_mm

    def __call__(self, img: Any) -> bytes:
        """Return an SVG document.

        Raises
        ------
        StepError
            If the image is not a straightened one.
        """
        image, values = one_channel(img, "image")
        facts = facts_of(image)
        stats = describe_values(values)
        modality = facts.get("modality")
        is_ct = looks_like_ct(stats, modality if isinstance(modality, str) else None)
        # vessels lie in soft tissue: the window of the body, not that of the brain
        window = choose_window(stats, self.options, is_ct=is_ct, width_mm=_BODY_MM)
        about = facts.get("straightened")
        return straightened_svg(
            values, affine_of(image), window, slab_mm=self.slab_mm, title=_title(about)
        )


_BODY_MM = 400.0


def _title(about: Any) -> str:
    if not isinstance(about, dict):
        return ""
    which = (
        f"branch {about['branch']}"
        if about.get("branch") is not None
        else f"end {about.get('end')}"
    )
    return f"Straightened along the path to {which}, {about['length_mm']:.0f} mm"


class StraightenedPictured(DictStep):
    """Replace straightened images by pictures: two planes along the vessel (.svg).

    Parameters
    ----------
    keys : keys of straightened images, replaced by documents
    window_hu : list of 2 floats, optional
        Values that are black and white; by default those of the mosaic.
    slab_mm : float
        Thickness of which the largest value is shown; 0 for the plane alone.
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
        self,
        keys: KeysCollection,
        window_hu: list[float] | None = None,
        slab_mm: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = StraightenedPicture(window_hu, slab_mm)


StraightenD = StraightenDict = Straightend
StraightenedPictureD = StraightenedPictureDict = StraightenedPictured
