"""The page of a case as one SVG document: the figures first, then slices with the map."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.figures.drawing import encode_png
from medpipe.figures.layout import foreground_box_mm
from medpipe.figures.projection import plane_of_box, windowed
from medpipe.figures.sampling import Canonical, fov_box_mm, sample_plane, to_canonical
from medpipe.figures.scale import COLOURS
from medpipe.outcome.explain import HEAD_HU
from medpipe.outcome.predict import OutcomePrediction
from medpipe.types import Affine

__all__ = ["case_page_svg"]

WINDOW_HU = (0.0, 80.0)
STRONGEST = 0.75
"""Opacity of the map where it is 1."""
_WIDTH, _SIDE, _COLUMNS, _GAP = 1240, 40, 4, 6
_BAR_TOP, _LINE, _LETTERS = 130, 21, 150
_STYLE = """
.ground { fill: #ffffff } .dark { fill: #0c0f12 }
text { fill: #39424a; font: 14px system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif }
.title { fill: #1c2126; font-size: 25px; font-weight: 600 } .sub { font-size: 16px }
.notice { fill: #fff3d1; stroke: #c98a00 } .said { fill: #5b3d00; font-weight: 600 }
.back { fill: #e8ebee } .spread { fill: #9cc3e6 } .value { fill: #14507f }
.member { fill: none; stroke: #14507f; stroke-width: 1.5 }
.point { stroke: #b3321b; stroke-width: 2 }
.seen { stroke: #2a7d5f; stroke-width: 3 } .on { fill: #e8e8e8; font-size: 12px }
"""


def case_page_svg(
    found: OutcomePrediction,
    ct: torch.Tensor,
    heat: torch.Tensor,
    affine: Affine,
    facts: Mapping[str, Any],
    *,
    slices: int = 8,
) -> bytes:
    """Draw the page of a case.

    Parameters
    ----------
    found : OutcomePrediction
    ct : Tensor (I, J, K)
        HU.
    heat : Tensor (I, J, K)
        The map, 0 to 1.
    affine : array (4, 4)
        Voxel index to RAS+ mm, of both.
    facts : mapping
        Of the map, as the step ``outcome_saliency`` records them.
    slices : int
        Axial slices; the one where the map is strongest is among them.

    Returns
    -------
    bytes
        A deterministic SVG document. The notice of the model stands at its top.
    """
    text = _sentences(found, facts)
    top = _BAR_TOP + 96
    pictures, height = _slices(ct, heat, affine, slices, top + _LINE * len(text) + 16)
    title = f"Probability of {found.outcome}: {100 * found.probability:.0f} %"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">'
        f"<style>{_STYLE}</style><title>{escape(title)}</title>"
        f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
        *_notice(found.notice),
        f'<text class="title" x="{_SIDE}" y="86">{escape(title)}</text>',
        f'<text class="sub" x="{_SIDE}" y="112">{escape(_range(found))}</text>',
        *_bar(found),
    ]
    for number, line in enumerate(text):
        parts.append(f'<text x="{_SIDE}" y="{top + number * _LINE}">{escape(line)}</text>')
    return "".join([*parts, *pictures, "</svg>\n"]).encode()


def _notice(notice: str) -> list[str]:
    said = f"Research output. {notice[:1].upper()}{notice[1:]}." if notice else "Research output."
    return [
        f'<rect class="notice" x="{_SIDE}" y="16" width="{_WIDTH - 2 * _SIDE}" height="32" rx="4"/>'
        f'<text class="said" x="{_SIDE + 12}" y="37">{escape(said)}</text>'
    ]


def _range(found: OutcomePrediction) -> str:
    if found.low is None or found.high is None:
        return found.spread_text
    return f"{100 * found.low:.0f} to {100 * found.high:.0f} %: {found.spread_text}"


def _bar(found: OutcomePrediction) -> list[str]:
    """Draw the probability on a scale of 0 to 100 %."""
    wide, y = _WIDTH - 2 * _SIDE, _BAR_TOP

    def x(share: Any) -> float:
        return _SIDE + wide * min(max(float(share), 0.0), 1.0)

    out = [f'<rect class="back" x="{_SIDE}" y="{y}" width="{wide}" height="22" rx="3"/>']
    if found.low is not None and found.high is not None:
        width = max(x(found.high) - x(found.low), 1)
        out.append(
            f'<rect class="spread" x="{x(found.low):.1f}" y="{y}" width="{width:.1f}" height="22"/>'
        )
    out += [f'<circle class="member" cx="{x(p):.1f}" cy="{y + 11}" r="4"/>' for p in found.members]
    at = x(found.probability)
    out.append(f'<rect class="value" x="{at - 2.5:.1f}" y="{y - 4}" width="5" height="30"/>')
    seen = found.observed
    if seen:
        out.append(
            f'<line class="seen" x1="{x(seen["low"]):.1f}" y1="{y + 30}" '
            f'x2="{x(seen["high"]):.1f}" y2="{y + 30}"/>'
        )
    if found.threshold is not None:
        at = x(found.threshold)
        out.append(f'<line class="point" x1="{at:.1f}" y1="{y - 6}" x2="{at:.1f}" y2="{y + 36}"/>')
    for tick in range(0, 101, 10):
        out.append(
            f'<text x="{x(tick / 100):.1f}" y="{y + 52}" text-anchor="middle">{tick} %</text>'
        )
    return out


def _sentences(found: OutcomePrediction, facts: Mapping[str, Any]) -> list[str]:
    """Return the lines under the scale."""
    model = found.model
    lines = ["Blue: the ensemble, its spread, and its members as circles."]
    if found.calibration_low is not None and found.calibration_high is not None:
        low, high = 100 * found.calibration_low, 100 * found.calibration_high
        lines.append(f"{low:.0f} to {high:.0f} %: {found.calibration_text}.")
    if found.observed:
        lines.append(f"Green: {found.observed_text}.")
    if found.threshold is not None:
        side = "at or above" if found.above else "below"
        lines.append(
            f"Red: operating point {100 * found.threshold:.0f} %; this patient is {side} it. "
            f"{found.threshold_rule}"
        )
    lines.append(
        f"Model: {model['name']}, version {model['version']}, {model['members']} members, "
        f"digest {str(model['digest'])[:12]}."
    )
    lines += [f"Noticed: {f['message']}" for f in found.findings]
    lines += _about_map(facts)
    return [row for line in lines for row in textwrap.wrap(str(line), _LETTERS)]


def _about_map(facts: Mapping[str, Any]) -> list[str]:
    """Return what must be said about the map."""
    if facts["empty"]:
        return [f"{facts['method']}: empty map. No voxel speaks for the outcome; nothing is shown."]
    lines = [
        f"{facts['method']}, mean of {facts['members']} members"
        + (f", empty in {facts['empty_members']} of them" if facts["empty_members"] else "")
        + ": where the model's arithmetic looked, no evidence of a cause."
    ]
    blood = facts["blood"]
    if blood["energy_share"] is not None and blood["volume_share"] is not None:
        low, high = facts["blood_window_hu"]
        lines.append(
            f"{100 * blood['energy_share']:.0f} % of the map lies in voxels of {low:g} to {high:g} "
            f"HU, which are {100 * blood['volume_share']:.0f} % of the head."
        )
    rows = facts.get("randomised_weights") or []
    if rows and rows[-1]["rank_correlation"] is None:
        lines.append("Check: not determined, the map of random weights is empty or constant.")
    elif rows:
        lines.append(
            "Check: rank correlation of the first member's map with the one of random weights "
            f"{rows[-1]['rank_correlation']:.2f} (a map that shows what was learned is near 0)."
        )
    return lines


def _slices(
    ct: torch.Tensor, heat: torch.Tensor, affine: Affine, count: int, top: int
) -> tuple[list[str], int]:
    """Return rows of slices, each followed by the same with the map, and where they end."""
    volume, shown = to_canonical(ct, affine), to_canonical(heat, affine)
    box = foreground_box_mm(volume, HEAD_HU, fov_box_mm(volume.affine, tuple(ct.shape)))
    wide = (_WIDTH - 2 * _SIDE - (_COLUMNS - 1) * _GAP) // _COLUMNS
    mm_per_px = float(box[0, 1] - box[0, 0]) / wide
    places = _positions(shown, box, count)
    out, y = [], top
    for start in range(0, len(places), _COLUMNS):
        row = places[start : start + _COLUMNS]
        for with_map in (False, True):
            for column, place in enumerate(row):
                at = np.array(box)
                at[2] = place
                plane = plane_of_box("axial", at, mm_per_px)
                grey = windowed(sample_plane(volume, plane)[0], WINDOW_HU)
                rgb = np.repeat(grey[..., None], 3, 2)
                if with_map:
                    rgb = _blended(rgb, windowed(sample_plane(shown, plane)[0], (0.0, 1.0)))
                out.append(_image(rgb, _SIDE + column * (wide + _GAP), y, place))
            y += grey.shape[0] + _GAP
    return out, y + 16


def _positions(heat: Canonical, box: NDArray[np.float64], count: int) -> list[float]:
    """Return heights in mm spread over the head, the strongest slice of the map among them."""
    low, high = box[2]
    places = (low + (np.arange(count) + 0.5) / count * (high - low)).tolist()
    profile = heat.data.amax((0, 1))
    if float(profile.max()) > 0:
        # of an oblique grid, the height of the middle of the strongest slice
        k = int(profile.argmax())
        middle = [(heat.data.shape[0] - 1) / 2, (heat.data.shape[1] - 1) / 2, k, 1]
        strongest = float(heat.affine[2] @ middle)
        if low <= strongest <= high:
            nearest = min(range(count), key=lambda n: abs(places[n] - strongest))
            places[nearest] = strongest
    return sorted(places, reverse=True)


def _blended(rgb: NDArray[np.uint8], level: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay a map over a slice; where it is 0 the slice is as it was."""
    alpha = (level / 255 * STRONGEST)[..., None]
    return np.round(rgb * (1 - alpha) + COLOURS[level] * alpha).astype(np.uint8)


def _image(rgb: NDArray[np.uint8], x: int, y: int, place: float) -> str:
    from PIL import Image

    content = base64.b64encode(encode_png(Image.fromarray(rgb))).decode()
    height, width = rgb.shape[:2]
    return (
        f'<image x="{x}" y="{y}" width="{width}" height="{height}" '
        f'href="data:image/png;base64,{content}"/>'
        f'<text class="on" x="{x + 6}" y="{y + height - 8}">z {place:+.1f} mm</text>'
        f'<text class="on" x="{x + 6}" y="{y + height / 2:.0f}">R</text>'
    )
