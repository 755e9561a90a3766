"""Ink on a mosaic: contours, letters, scale bars, legends. Arrays and Pillow, on the CPU."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medpipe.figures.colours import label_colour
from medpipe.figures.layout import MARGIN, Panel
from medpipe.figures.svg import ticks
from medpipe.figures.window import Window

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

__all__ = ["Ink", "blend_labels", "contour_mask", "encode_jpeg", "encode_png", "scale_bar_mm"]

INK = (232, 232, 232)
FAINT = (168, 168, 168)
FILL_ALPHA = 0.10
_LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
_AXIS = {"axial": "z", "coronal": "y", "sagittal": "x"}


def contour_mask(labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Return the pixels of a label that touch, by an edge, a pixel of another value."""
    edge = np.zeros(labels.shape, bool)
    across = labels[:, 1:] != labels[:, :-1]
    down = labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge & (labels != 0)


def blend_labels(rgb: NDArray[np.uint8], labels: NDArray[np.int32]) -> None:
    """Lay labels over a picture in place: a light fill and a solid contour."""
    values, inverse = np.unique(labels, return_inverse=True)
    table = np.array([label_colour(int(v)) for v in values], float)
    colour = table[inverse.reshape(labels.shape)]
    edge = contour_mask(labels)
    alpha = np.where(edge, 1.0, np.where(labels != 0, FILL_ALPHA, 0.0))[..., None]
    rgb[:] = np.round(rgb * (1 - alpha) + colour * alpha).astype(np.uint8)


def scale_bar_mm(width_mm: float) -> float:
    """Return a round length (1, 2 or 5 times a power of ten) of about a quarter of `width_mm`."""
    target = max(width_mm, 1e-6) / 4
    power = 10.0 ** np.floor(np.log10(target))
    return float(max(m * power for m in (1, 2, 5) if m * power <= target * (1 + 1e-9)))


class Ink:
    """Writes on a picture; every text has a dark outline so that it reads on any tissue."""

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        from PIL import Image, ImageDraw, ImageFont

        self.picture = Image.fromarray(rgb)
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(self.picture)
        # The built-in font, so that the bytes do not depend on the fonts of the machine.
        self._fonts: dict[int, Any] = {s: ImageFont.load_default(s) for s in (11, 13, 15, 17, 22)}

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        """Return the built-in font in one of the sizes 11, 13, 15, 17 and 22."""
        return self._fonts[size]

    def text(
        self,
        xy: tuple[float, float],
        text: str,
        *,
        size: int = 13,
        anchor: str = "la",
        colour: tuple[int, int, int] = INK,
    ) -> float:
        """Write one line and return its width in px."""
        font = self.font(size)
        self._draw.text(
            xy, text, font=font, anchor=anchor, fill=colour, stroke_width=2, stroke_fill=(0, 0, 0)
        )
        return float(font.getlength(text))

    def panel(self, panel: Panel) -> None:
        """Write the letters and the position of one panel."""
        left, top, right, bottom = panel.box
        middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
        letters = _LETTERS[panel.plane.view]
        roomy = right - left >= 60 and bottom - top >= 60
        size = 17 if panel.full else 13
        if roomy:
            self.text((left + 4, middle_y), letters[0], size=size, anchor="lm")
        if roomy and panel.full:
            self.text((right - 4, middle_y), letters[1], size=size, anchor="rm")
            self.text((middle_x, top + 4), letters[2], size=size, anchor="ma")
            self.text((middle_x, bottom - 4), letters[3], size=size, anchor="md")
        if bottom - top >= 24 and right - left >= 50:
            place = f"{_AXIS[panel.plane.view]} {panel.plane.position_mm:+.1f}"
            unit = " mm" if panel.full else ""
            self.text(
                (left + 4, bottom - 3), place + unit, size=13 if panel.full else 11,
                anchor="ld", colour=INK if panel.full else FAINT,
            )  # fmt: skip

    def scale_bar(self, panel: Panel) -> dict[str, Any] | None:
        """Draw a scale bar into a panel's lower right corner and return where it is."""
        left, _, right, bottom = panel.box
        mm_per_px = panel.plane.mm_per_px
        length_mm = scale_bar_mm((right - left) * mm_per_px)
        length = round(length_mm / mm_per_px)
        if length < 4 or right - left < 70 or bottom - panel.box[1] < 40:
            return None
        x1, y1 = right - 8, bottom - 9
        x0 = x1 - length
        self._draw.rectangle((x0 - 1, y1 - 4, x1, y1), fill=(0, 0, 0))
        self._draw.rectangle((x0, y1 - 3, x1 - 1, y1 - 1), fill=(255, 255, 255))
        self.text((x1, y1 - 6), f"{length_mm:g} mm", size=11, anchor="rd")
        return {"mm": length_mm, "px": length, "box": [x0, y1 - 3, x1, y1], "mm_per_px": mm_per_px}

    def header(self, left: str, right: str) -> None:
        """Write the line above the panels."""
        used = self.text((MARGIN, 12), left, size=15)
        room = self.picture.width - 2 * MARGIN - used - 24
        if self.font(13).getlength(right) <= room:
            self.text((self.picture.width - MARGIN, 14), right, size=13, anchor="ra", colour=FAINT)

    def banner(self, text: str, y: float) -> None:
        """Write a large line across the middle."""
        self.text((self.picture.width / 2, y), text, size=22, anchor="mm")

    def colour_scale(self, colours: NDArray[np.uint8], window: Window, top: int) -> None:
        """Draw the colours of a window with its values in their unit, below the panels."""
        left, width = MARGIN + 8, 460
        for x in range(width):
            colour = tuple(int(c) for c in colours[x * 255 // (width - 1)])
            self._draw.line((left + x, top + 4, left + x, top + 16), fill=colour)
        self._draw.rectangle((left - 1, top + 3, left + width, top + 17), outline=FAINT)
        for value in ticks(window.low, window.high):
            share = (value - window.low) / (window.high - window.low)
            at = left + round(share * (width - 1))
            self._draw.line((at, top + 17, at, top + 21), fill=FAINT)
            self.text((at, top + 22), f"{value:g}", anchor="ma")
        self.text((left + width + 14, top + 10), f"{window.name}  {window.unit}", anchor="lm")

    def legend(self, entries: Sequence[tuple[int, str]], top: int) -> None:
        """Write coloured label names below the panels."""
        for x, y, label, text in legend_places(entries, self.picture.width, top, self.font(13)):
            self._draw.rectangle((x, y + 2, x + 12, y + 14), fill=label_colour(label))
            self.text((x + 18, y), text, size=13)


def legend_places(
    entries: Sequence[tuple[int, str]], width: int, top: int, font: Any = None
) -> list[tuple[int, int, int, str]]:
    """Return x, y, label and text of every legend entry, wrapped to the width."""
    if font is None:
        from PIL import ImageFont

        font = ImageFont.load_default(13)
    out, x, y = [], MARGIN, top
    for label, text in entries:
        need = 18 + round(font.getlength(text)) + 22
        if x > MARGIN and x + need > width - MARGIN:
            x, y = MARGIN, y + 22
        out.append((x, y, label, text))
        x += need
    return out


def encode_png(picture: Any) -> bytes:
    """Return PNG bytes without metadata; grey pictures take one channel."""
    rgb = np.asarray(picture)
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
        picture = picture.convert("L")
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=6)
    return out.getvalue()


def encode_jpeg(picture: Any, box: tuple[int, int, int, int], width: int) -> tuple[bytes, int, int]:
    """Return a part of the picture as JPEG bytes of at most `width` px, and its size."""
    from PIL import Image

    part = picture.crop(box)
    scale = min(1.0, width / part.width)
    size = max(1, round(part.width * scale)), max(1, round(part.height * scale))
    part = part.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    part.save(out, format="JPEG", quality=72, optimize=True)
    return out.getvalue(), *size
