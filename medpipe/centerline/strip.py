"""The picture of a straightened vessel: two planes along it with axes in mm."""

from __future__ import annotations

import base64
from html import escape

import torch

from medpipe.errors import StepError
from medpipe.figures.drawing import encode_png
from medpipe.figures.projection import windowed
from medpipe.figures.svg import tick_text, ticks
from medpipe.figures.window import Window
from medpipe.types import Affine

__all__ = ["straightened_svg"]

_WIDTH, _LEFT, _TOP, _RIGHT, _GAP, _BOTTOM = 1240, 64, 40, 20, 14, 48
_TALLEST = 300
_STYLE = """
.ground { fill: #0c0f12 }
text { fill: #c9d0d6; font: 12px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif }
.title { fill: #f0f3f5; font-size: 15px; font-weight: 600 }
.on { paint-order: stroke; stroke: #000000; stroke-width: 3px; stroke-linejoin: round }
.axis { stroke: #8a949d } .middle { stroke: #ffd24a; stroke-opacity: 0.55; stroke-dasharray: 7 9 }
"""


def straightened_svg(
    volume: torch.Tensor,
    affine: Affine,
    window: Window,
    *,
    slab_mm: float = 0.0,
    title: str = "",
) -> bytes:
    """Draw two planes along a straightened image, perpendicular to each other.

    Parameters
    ----------
    volume : tensor (W, W, L)
        As `medpipe.centerline.straighten` makes it.
    affine : array (4, 4)
        Voxel index to mm across, across, along.
    window : Window
        Values that are black and white.
    slab_mm : float
        Thickness of which the largest value is shown; 0 for the plane alone.
    title : str

    Returns
    -------
    bytes
        A deterministic SVG document in true proportions.

    Raises
    ------
    StepError
        If the volume is not straightened: its first two axes differ.
    """
    if volume.ndim != 3 or volume.shape[0] != volume.shape[1]:
        raise StepError(
            "the image is not straightened",
            expected="shape (W, W, L), as the step straighten makes it",
            got=f"shape {tuple(volume.shape)}",
        )
    pixel, step = float(affine[0, 0]), float(affine[2, 2])
    along, across = volume.shape[2] * step, volume.shape[0] * pixel
    px_per_mm = min((_WIDTH - _LEFT - _RIGHT) / along, _TALLEST / across)
    wide, tall = along * px_per_mm, across * px_per_mm
    height = _TOP + 2 * tall + _GAP + _BOTTOM
    text = title or f"Straightened vessel, {along:.0f} mm"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'width="{_WIDTH}" height="{height:.0f}" role="img" aria-label="{escape(text)}">'
        f"<style>{_STYLE}</style><title>{escape(text)}</title>"
        f'<rect class="ground" width="{_WIDTH}" height="{height:.0f}"/>'
        f'<text class="title" x="{_LEFT}" y="25">{escape(text)}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="25" text-anchor="end">{escape(window.text())}</text>'
    ]
    for number, name in enumerate(("0°", "90°")):
        y = _TOP + number * (tall + _GAP)
        plane = _plane(volume, number, round(slab_mm / 2 / pixel))
        parts.append(_picture(plane, window, (_LEFT, y, wide, tall)))
        parts.append(f'<text class="on" x="{_LEFT + 8}" y="{y + 18:.1f}">{name}</text>')
        parts += _across(across, y, tall, px_per_mm)
    parts += _along(along - step, _TOP + 2 * tall + _GAP, wide, px_per_mm)
    return "".join([*parts, "</svg>\n"]).encode()


def _plane(volume: torch.Tensor, number: int, reach: int) -> torch.Tensor:
    """Return the plane (W, L) of the first or second normal, the largest value of a slab."""
    middle = volume.shape[0] // 2
    layers = slice(max(middle - reach, 0), middle + reach + 1)
    return volume[:, layers].amax(1) if number == 0 else volume[layers].amax(0)


def _picture(plane: torch.Tensor, window: Window, place: tuple[float, float, float, float]) -> str:
    from PIL import Image

    # the first normal points up
    grey = windowed(plane.flip(0).float(), (window.low, window.high))
    picture = Image.fromarray(grey).convert("RGB")
    content = base64.b64encode(encode_png(picture)).decode()
    x, y, width, height = place
    return (
        f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'preserveAspectRatio="none" href="data:image/png;base64,{content}"/>'
        f'<line class="middle" x1="{x:.1f}" y1="{y + height / 2:.1f}" x2="{x + width:.1f}" '
        f'y2="{y + height / 2:.1f}"/>'
    )


def _across(across: float, y: float, tall: float, px_per_mm: float) -> list[str]:
    out = []
    for tick in ticks(-across / 2, across / 2, 4 if tall >= 60 else 2):
        at = y + tall / 2 - tick * px_per_mm
        out.append(
            f'<line class="axis" x1="{_LEFT - 5}" y1="{at:.1f}" x2="{_LEFT}" y2="{at:.1f}"/>'
        )
        out.append(f'<text x="{_LEFT - 9}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return out


def _along(along: float, y: float, wide: float, px_per_mm: float) -> list[str]:
    out = [f'<line class="axis" x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + wide:.1f}" y2="{y:.1f}"/>']
    half = px_per_mm * along * 0.5
    for tick in ticks(0.0, along, 10):
        at = _LEFT + tick * px_per_mm
        out.append(
            f'<line class="axis" x1="{at:.1f}" y1="{y:.1f}" x2="{at:.1f}" y2="{y + 5:.1f}"/>'
        )
        out.append(
            f'<text x="{at:.1f}" y="{y + 19:.1f}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    out.append(
        f'<text x="{_LEFT + half:.1f}" y="{y + 38:.1f}" text-anchor="middle">'
        "distance along the vessel, mm; across: mm from its middle</text>"
    )
    return out
