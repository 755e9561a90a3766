"""The mosaic: full-FOV cuts and three rows of slices in radiological orientation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medpipe.figures.drawing import Ink, blend_labels, legend_places
from medpipe.figures.layout import GAP, Layout
from medpipe.figures.sampling import Canonical, sample_plane
from medpipe.figures.window import Window

if TYPE_CHECKING:
    import torch

__all__ = ["Mosaic", "draw_message", "draw_mosaic"]

OUTSIDE = 26
"""Grey of pixels that lie outside the grid, so that they are not taken for air."""
NAN_COLOUR = (214, 64, 200)
LEGEND_MAX = 28
SCALE_HEIGHT = 46


@dataclass(frozen=True, slots=True)
class Mosaic:
    """A finished picture and where its scale bars are."""

    picture: Any
    scale_bars: list[dict[str, Any]]


def _paint(
    volume: Canonical, overlay: Canonical | None, layout: Layout, window: Window
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int32] | None]:
    """Sample every panel on the device; return levels, which pixels lie in the grid and which
    are NaN, and labels of the canvas."""
    import torch

    device = volume.data.device
    size = (layout.height, layout.width)
    grey = torch.zeros(size, dtype=torch.uint8, device=device)
    covered = torch.zeros(size, dtype=torch.bool, device=device)
    broken = torch.zeros(size, dtype=torch.bool, device=device)
    labels = torch.zeros(size, dtype=torch.int32, device=device) if overlay else None
    step = float(np.linalg.norm(volume.affine[:3, :3], axis=0).min())
    for panel in layout.panels:
        left, top, right, bottom = panel.box
        supersample = min(2, max(1, round(panel.plane.mm_per_px / step)))
        values, inside = sample_plane(volume, panel.plane, supersample=supersample)
        level = (values - window.low) * (255 / (window.high - window.low))
        level = torch.nan_to_num(level, nan=0.0).clamp(0, 255).round().to(torch.uint8)
        grey[top:bottom, left:right] = torch.where(inside, level, OUTSIDE)
        covered[top:bottom, left:right] = inside
        broken[top:bottom, left:right] = torch.isnan(values) & inside
        if overlay is not None and labels is not None:
            found, there = sample_plane(overlay, panel.plane, nearest=True)
            found = torch.nan_to_num(found).round().to(torch.int32)
            labels[top:bottom, left:right] = torch.where(there, found, 0)
    return (
        grey.cpu().numpy(),
        covered.cpu().numpy(),
        broken.cpu().numpy(),
        labels.cpu().numpy() if labels is not None else None,
    )


def draw_mosaic(
    volume: Canonical,
    overlay: Canonical | None,
    layout: Layout,
    window: Window,
    *,
    title: str,
    notes: Sequence[str] = (),
    legend: Sequence[tuple[int, str]] = (),
    banner: str | None = None,
    colours: NDArray[np.uint8] | None = None,
) -> Mosaic:
    """Draw a mosaic.

    Parameters
    ----------
    volume, overlay : Canonical
        An image and, on any grid of its own, a label map.
    layout : Layout
    window : Window
    title, notes : str, list of str
        Text of the line above the panels.
    legend : list of (label, text)
    banner : str, optional
        A large line across the full-FOV cuts, e.g. that the image is constant.
    colours : ndarray (256, 3), optional
        Colours of the window from its lower to its upper end, with a scale; grey by default.
    """
    grey, covered, broken, labels = _paint(volume, overlay, layout, window)
    shown = list(legend[:LEGEND_MAX])
    top = layout.height + GAP + (0 if colours is None else SCALE_HEIGHT)
    places = legend_places(shown, layout.width, top)
    rgb = np.zeros((places[-1][1] + 26 if places else top, layout.width, 3), np.uint8)
    rgb[: layout.height] = grey[..., None]
    if colours is not None:
        rgb[: layout.height][covered] = colours[grey[covered]]
    rgb[: layout.height][broken] = NAN_COLOUR
    if labels is not None:
        blend_labels(rgb[: layout.height], labels)
    ink = Ink(rgb)
    bars, seen = [], set()
    for panel in layout.panels:
        ink.panel(panel)
        if panel.full or panel.plane.view not in seen:
            bar = ink.scale_bar(panel)
            bars += [bar] if bar else []
        if not panel.full:
            seen.add(panel.plane.view)
    ink.header(title, "  ·  ".join(notes))
    if colours is not None:
        ink.colour_scale(colours, window, layout.height + GAP)
    ink.legend(shown, top)
    if banner:
        _, top, _, low = layout.strip_box()
        ink.banner(banner, (top + low) / 2)
    return Mosaic(ink.picture, bars)


def draw_message(lines: Sequence[str]) -> Mosaic:
    """Draw a picture that only says why there is none."""
    rgb = np.full((240, 900, 3), OUTSIDE, np.uint8)
    ink = Ink(rgb)
    for rank, line in enumerate(lines):
        ink.banner(line, 120 + 34 * (rank - (len(lines) - 1) / 2))
    return Mosaic(ink.picture, [])


def panels_json(layout: Layout) -> list[dict[str, Any]]:
    """Return where each panel lies in the picture and in the patient."""
    out: list[dict[str, Any]] = []
    for panel in layout.panels:
        plane = panel.plane
        item: Mapping[str, Any] = {
            "view": plane.view,
            "position_mm": round(plane.position_mm, 4),
            "box": list(panel.box),
            "centre_mm": [round(c, 4) for c in plane.centre_mm],
            "mm_per_px": round(plane.mm_per_px, 6),
            "full_fov": panel.full,
        }
        out.append(dict(item))
    return out


def centre_of(volume: Canonical, mask: torch.Tensor) -> NDArray[np.float64] | None:
    """Return the mean position in mm of the true voxels of a mask, or None without any."""
    total = mask.sum()
    if not int(total):
        return None
    index = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        profile = mask.sum(dim=others).double().cpu().numpy()
        index.append(float((profile * np.arange(len(profile))).sum() / profile.sum()))
    return volume.affine[:3, :3] @ np.array(index) + volume.affine[:3, 3]
