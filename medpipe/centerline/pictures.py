"""Pictures of a centerline tree: projections with the coloured curves, radius profiles."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.palette import NodeColours, node_colours
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import UsageError
from medpipe.figures.chart import SERIES_COLOURS, Line, line_chart_svg, polyline_path
from medpipe.figures.drawing import encode_png, scale_bar_mm
from medpipe.figures.projection import (
    cut_to_box,
    maximum_projection,
    plane_of_box,
    points_to_px,
    shaded_mask,
)
from medpipe.figures.sampling import VIEW_AXES, Plane
from medpipe.types import Affine

if TYPE_CHECKING:
    import torch

__all__ = ["Background", "Colouring", "longest_paths", "profiles_svg", "tree_svg"]

Colouring: TypeAlias = Literal["generation", "radius", "structure"]
Background: TypeAlias = Literal["mask", "image"]

_WIDTH, _LEAST_WIDTH = 1240, 900
_MARGIN = 14
_GAP = 10
_HEADER = 38
_FOOTER = 62
_TALLEST = 640
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
_NAMES = {"axial": "from below", "coronal": "from the front", "sagittal": "from the left"}
_FINEST, _PER_VOXEL = 2.0, 0.6
"""Pixels of the background: at most so many for one of the picture, at least so many voxels."""
_BAR_ROOM = 400.0
_DIRECTION_NODES = 6
_MASK_GREY = 0.66
"""Brightness of a mask below the curves, so that they stand out."""

_STYLE = """
.ground { fill: #0c0f12 } .panel { fill: #000000 }
text { fill: #c9d0d6; font: 12px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif }
.title { fill: #f0f3f5; font-size: 15px; font-weight: 600 } .strong { fill: #f0f3f5 }
.on { paint-order: stroke; stroke: #000000; stroke-width: 3px; stroke-linejoin: round }
.letter { font-size: 15px; font-weight: 600; fill: #f0f3f5 }
path { fill: none; stroke-linejoin: round; stroke-linecap: round }
.halo { stroke: #000000; stroke-opacity: 0.55; stroke-width: 3.6 }
.loop { stroke: #ffffff; stroke-width: 1.6; stroke-dasharray: 5 4 }
.leaf { fill: #ffffff; stroke: #000000; stroke-width: 0.6 }
.root { fill: #000000; stroke: #ffffff; stroke-width: 2 }
"""


def tree_svg(
    tree: CenterlineTree,
    image: torch.Tensor,
    *,
    background: Background = "mask",
    colour: Colouring = "generation",
    window: Sequence[float] | None = None,
    title: str = "",
    named_ends: int = 8,
) -> bytes:
    """Draw a tree from below, from the front and from the left over its mask or image.

    Parameters
    ----------
    tree : CenterlineTree
    image : tensor (I, J, K)
        A mask (above 0 is inside), drawn as a lit surface, or an image, of which the
        largest value along each line of sight is drawn; on the grid of the tree.
    background : {"mask", "image"}
        What `image` is.
    colour : {"generation", "radius", "structure"}
        What the colour of the curves means.
    window : (low, high), optional
        Values of an image that are black and white.
    title : str
        Written above; by default counts of the tree.
    named_ends : int
        Ends that are numbered, those of the longest paths first, as in `profiles_svg`.

    Returns
    -------
    bytes
        A deterministic SVG document. Orientation is radiological, proportions are true.

    Raises
    ------
    UsageError
        If the image is on another grid or an option is unknown.
    """
    if tuple(image.shape) != tuple(tree.shape):
        raise UsageError(
            "the picture's image is not on the grid of the centerline",
            expected=f"shape {tuple(tree.shape)}", got=f"shape {tuple(image.shape)}",
        )  # fmt: skip
    colours = node_colours(tree, colour)
    box = _box(tree)
    planes, width = _layout(box)
    height = _HEADER + max(p.size_px[1] for p in planes) + _FOOTER
    text = title or _counts(tree)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(text)}">'
        f"<style>{_STYLE}</style><title>{escape(text)}</title>"
        f'<rect class="ground" width="{width}" height="{height}"/>'
        f'<text class="title" x="{_MARGIN}" y="25">{escape(text)}</text>'
    ]
    ends = [int(path[-1]) for path in longest_paths(tree, named_ends)]
    shown, affine = cut_to_box(image, np.asarray(tree.affine), box)
    shown = shown > 0 if background == "mask" else shown
    x = (width - sum(p.size_px[0] for p in planes) - 2 * _GAP) / 2
    for plane in planes:
        grey, cell = _background(shown, affine, plane, box, background, window)
        parts.append(f'<g transform="translate({x:.1f} {_HEADER})">')
        parts += [*_ground(plane, grey, cell), *_curves(tree, plane, colours), *_marks(plane)]
        parts += [*_numbers(tree, plane, ends), "</g>"]
        x += plane.size_px[0] + _GAP
    parts += _legend(tree, colours, height - _FOOTER + 28)
    parts += _scale_bar(planes[0].mm_per_px, width - _MARGIN, height - _FOOTER + 28)
    return "".join([*parts, "</svg>\n"]).encode()


def _counts(tree: CenterlineTree) -> str:
    counts = [
        (len(tree.branches), "branch", "branches"),
        (len(tree.leaves), "end", "ends"),
        (len(tree.roots), "root", "roots"),
    ]
    said = [f"{n} {one if n == 1 else many}" for n, one, many in counts]
    return ", ".join([*said, f"{tree.lengths_mm.sum():,.0f} mm".replace(",", "\u202f")])


def _box(tree: CenterlineTree) -> NDArray[np.float64]:
    """Return the box (3, 2) in mm around the structure, no side of it very thin."""
    reach = np.where(np.isfinite(tree.radius_mm), tree.radius_mm, 0.0)[:, None] * 1.3
    low = (tree.positions_mm - reach).min(0)
    high = (tree.positions_mm + reach).max(0)
    voxel = np.abs(np.asarray(tree.affine)[:3, :3]).sum(1)
    side = np.maximum(1.08 * (high - low) + 4 * voxel, 0.22 * (high - low).max())
    middle = (high + low) / 2
    return np.stack([middle - side / 2, middle + side / 2], 1)


def _layout(box: NDArray[np.float64]) -> tuple[list[Plane], int]:
    """Return the three planes at one scale, side by side, and the width of the picture."""
    side = box[:, 1] - box[:, 0]
    room = _WIDTH - 2 * _MARGIN - 2 * _GAP
    wide = sum(float(side[col]) for _, col, _ in VIEW_AXES.values())
    tall = max(float(side[row]) for _, _, row in VIEW_AXES.values())
    mm_per_px = max(wide / (room - 3), tall / _TALLEST)
    planes = [plane_of_box(view, box, mm_per_px) for view in VIEW_AXES]
    used = sum(p.size_px[0] for p in planes) + 2 * _GAP + 2 * _MARGIN
    return planes, max(used, _LEAST_WIDTH)


def _background(
    image: torch.Tensor, affine: Affine, plane: Plane, box: NDArray[np.float64],
    background: Background, window: Sequence[float] | None,
) -> tuple[NDArray[np.uint8], float]:  # fmt: skip
    """Return grey values and how many pixels of the picture one of theirs covers.

    They are about as fine as the voxels: whoever shows the picture interpolates.
    """
    voxel = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    mm_per_px = max(plane.mm_per_px / _FINEST, _PER_VOXEL * voxel)
    cell = mm_per_px / plane.mm_per_px
    size = [max(1, math.ceil(n / cell)) for n in plane.size_px]
    fine = Plane(plane.view, plane.position_mm, plane.centre_mm, (size[0], size[1]), mm_per_px)
    if background == "mask":
        lit = shaded_mask(image, affine, fine)
        return np.round(_MASK_GREY * lit).astype(np.uint8), cell
    return maximum_projection(image, affine, fine, box, window), cell


def _ground(plane: Plane, grey: NDArray[np.uint8], cell: float) -> list[str]:
    from PIL import Image

    width, height = plane.size_px
    wide, tall = grey.shape[1] * cell, grey.shape[0] * cell
    content = base64.b64encode(encode_png(Image.fromarray(grey).convert("RGB"))).decode()
    return [
        f'<rect class="panel" width="{width}" height="{height}"/>'
        f'<image x="{(width - wide) / 2:.2f}" y="{(height - tall) / 2:.2f}" width="{wide:.2f}" '
        f'height="{tall:.2f}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{content}"/>'
    ]


def _curves(tree: CenterlineTree, plane: Plane, colours: NodeColours) -> list[str]:
    # the middle of the first pixel is at (0.5, 0.5) of the picture
    at = points_to_px(plane, tree.positions_mm) + 0.5
    out = []
    whole = "".join(polyline_path(at[branch.nodes], 1.5) for branch in tree.branches)
    if whole:
        out.append(f'<path class="halo" d="{whole}"/>')
    for level, chains in colours.runs(tree).items():
        path = "".join(polyline_path(at[chain], 1.5) for chain in chains)
        out.append(f'<path d="{path}" stroke="{colours.levels[level]}" stroke-width="2"/>')
    for a, b in tree.closing.tolist():
        out.append(f'<path class="loop" d="{polyline_path(at[[a, b]])}"/>')
    radius = 2.2 if len(tree.leaves) <= 300 else 1.4
    out += [_circle("leaf", at[leaf], radius) for leaf in tree.leaves.tolist()]
    return out + [_circle("root", at[root], 5.0) for root in tree.roots.tolist()]


def _circle(css: str, at: NDArray[np.float64], radius: float) -> str:
    return f'<circle class="{css}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}"/>'


def _numbers(tree: CenterlineTree, plane: Plane, ends: Sequence[int]) -> list[str]:
    """Return a number beyond each of some ends, in the direction in which the path ends."""
    out = []
    for number, node in enumerate(ends, 1):
        before = node
        for _ in range(_DIRECTION_NODES):
            before = max(int(tree.parents[before]), 0)
        start, stop = points_to_px(plane, tree.positions_mm[[before, node]]) + 0.5
        ahead = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-6)
        x, y = np.clip(stop + 10 * ahead, 8, np.array(plane.size_px) - 8).tolist()
        out.append(
            f'<text class="on strong" x="{x:.1f}" y="{y + 4:.1f}" '
            f'text-anchor="middle">{number}</text>'
        )
    return out


def _marks(plane: Plane) -> list[str]:
    """Return orientation letters and the name of the view."""
    width, height = plane.size_px
    places = [
        (5, height / 2 + 5, "start"), (width - 5, height / 2 + 5, "end"),
        (width / 2, 17, "middle"), (width / 2, height - 6, "middle"),
    ]  # fmt: skip
    out = [
        f'<text class="on letter" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{letter}</text>'
        for letter, (x, y, anchor) in zip(_LETTERS[plane.view], places, strict=True)
    ]
    if width >= 150:
        out.append(f'<text class="on" x="6" y="{height - 7}">{_NAMES[plane.view]}</text>')
    return out


def _scale_bar(mm_per_px: float, right: float, y: float) -> list[str]:
    """Return the scale bar of all three views, at the right end of the last line."""
    length_mm = scale_bar_mm(_BAR_ROOM * mm_per_px)
    length = length_mm / mm_per_px
    return [
        f'<rect x="{right - length:.1f}" y="{y - 8:.1f}" width="{length:.1f}" height="4" '
        f'fill="#ffffff"/><text class="strong" x="{right - length - 8:.1f}" y="{y - 1:.1f}" '
        f'text-anchor="end">{length_mm:g} mm</text>'
    ]


def _legend(tree: CenterlineTree, colours: NodeColours, y: float) -> list[str]:
    out = [f'<text class="strong" x="{_MARGIN}" y="{y:.1f}">{escape(colours.name)}</text>']
    x = _MARGIN + 9 + 6.8 * len(colours.name)
    step = 26 if len(colours.levels) <= 14 else max(8, 360 // len(colours.levels))
    for level, name in enumerate(colours.levels):
        out.append(f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="{step}" height="11" fill="{name}"/>')
        label = colours.labels.get(level)
        if label:
            out.append(
                f'<text x="{x + step / 2:.1f}" y="{y + 17:.1f}" text-anchor="middle">'
                f"{escape(label)}</text>"
            )
        x += step
    marks = [("root", 5.0, "root"), ("leaf", 2.2, "end; numbers: longest paths")]
    x += 34
    for css, radius, name in marks:
        out.append(_circle(css, np.array([x, y - 4.5]), radius))
        out.append(f'<text x="{x + 11:.1f}" y="{y:.1f}">{name}</text>')
        x += 34 + 6.6 * len(name)
    if len(tree.closing):
        out.append(f'<path class="loop" d="M{x:.1f} {y - 4:.1f}h26"/>')
        out.append(f'<text x="{x + 32:.1f}" y="{y:.1f}">closes a loop</text>')
    return out


def longest_paths(tree: CenterlineTree, count: int) -> list[NDArray[np.int64]]:
    """Return nodes of the paths that end farthest from their root, the longest first.

    A path starts where it leaves those before it, so that none runs twice; one that
    starts at a root starts there.

    Parameters
    ----------
    tree : CenterlineTree
    count : int
        How many at most.
    """
    distance = tree.distance_mm
    taken = np.zeros(len(tree), bool)
    # ends in the order of their distance; equal ones by number, so that it is stable
    order = tree.leaves[np.argsort(-distance[tree.leaves], kind="stable")]
    paths = []
    for leaf in order[:count].tolist():
        chain = [leaf]
        while not taken[chain[-1]] and tree.parents[chain[-1]] >= 0:
            chain.append(int(tree.parents[chain[-1]]))
        path = np.array(chain[::-1], np.int64)
        taken[path] = True
        paths.append(path)
    return paths


def profiles_svg(tree: CenterlineTree, *, paths: int = 8, title: str = "") -> bytes:
    """Draw the radius in mm against the distance from the root along the longest paths.

    Solid is the radius of the largest ball inside, thin that of a circle with the area
    of the cross-section, where it could be measured.

    Parameters
    ----------
    tree : CenterlineTree
    paths : int
        How many; see `longest_paths`.
    title : str

    Returns
    -------
    bytes
        A deterministic SVG document.

    Raises
    ------
    UsageError
        If `paths` is below 1.
    """
    if paths < 1:
        raise UsageError("paths is wrong", expected="1 or more", got=str(paths)[:20])
    lines, measured = [], False
    chains = longest_paths(tree, paths) or [np.arange(len(tree))]
    for number, path in enumerate(chains, 1):
        colour = SERIES_COLOURS[(number - 1) % len(SERIES_COLOURS)]
        along = tree.distance_mm[path]
        name = f"end {number}, {along[-1]:.0f} mm"
        lines.append(Line(along, tree.radius_mm[path], name, colour))
        if np.isfinite(tree.area_radius_mm[path]).any():
            measured = True
            lines.append(Line(along, tree.area_radius_mm[path], "", colour, thin=True))
    keys = [("largest ball inside", False)] + [("area of the section", True)] * measured
    return line_chart_svg(
        lines, x_label="distance from the root, mm", y_label="radius, mm",
        title=title or "Radius along the longest paths", keys=keys,
    )  # fmt: skip
