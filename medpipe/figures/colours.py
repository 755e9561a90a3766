"""Colours of label values: the same label has the same colour in every picture."""

from __future__ import annotations

import colorsys

__all__ = ["hex_colour", "label_colour"]

# Bright, far apart on grey anatomy, and told apart with the common colour vision
# deficiencies for the first eight (after Okabe and Ito, lightened for a black ground).
_FIRST = (
    (240, 90, 60),
    (70, 180, 250),
    (250, 205, 50),
    (60, 210, 150),
    (235, 130, 200),
    (255, 150, 40),
    (150, 140, 255),
    (170, 230, 70),
)
_GOLDEN = 0.618033988749895


def label_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour (0..255) of a label value; it depends on the value alone."""
    if 1 <= label <= len(_FIRST):
        return _FIRST[label - 1]
    hue = (label * _GOLDEN) % 1.0
    light = 0.55 + 0.15 * ((label * 7) % 3) / 2
    r, g, b = colorsys.hls_to_rgb(hue, light, 0.85)
    return round(255 * r), round(255 * g), round(255 * b)


def hex_colour(rgb: tuple[int, int, int]) -> str:
    """Return ``"#rrggbb"``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
