"""Quality control pictures: one image in, one PNG and its numbers out.

The picture is what a reader looks at first and the numbers are what a program
can sort by. Both are deterministic: the same image gives the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medpipe.errors import UsageError
from medpipe.figures.colours import hex_colour, label_colour
from medpipe.figures.drawing import encode_jpeg, encode_png
from medpipe.figures.flags import geometry_flags, obliquity_deg, value_flags
from medpipe.figures.histogram import Statistics, describe_values, label_counts
from medpipe.figures.layout import Layout, foreground_box_mm, plan_layout
from medpipe.figures.mosaic import Mosaic, centre_of, draw_message, draw_mosaic, panels_json
from medpipe.figures.sampling import Canonical, fov_box_mm, to_canonical
from medpipe.figures.scale import COLOURS, Display, display_of, quantity_window, values_of
from medpipe.figures.window import choose_window, looks_like_ct
from medpipe.geometry import affine_problem, axis_codes, shear_angle_deg, spacing_mm
from medpipe.types import Affine, Finding, Severity

if TYPE_CHECKING:
    import torch
    from monai.data import MetaTensor

__all__ = ["KINDS", "OPTIONS", "VERSION", "QcFigure", "render"]

VERSION = "2"
"""Part of the key of a picture; bumped when pictures change."""

KINDS = ("mosaic",)
OPTIONS = ("window_hu", "slices", "labels")
THUMBNAIL_WIDTH = 300
N_SLICES = 8


@dataclass(frozen=True, slots=True)
class QcFigure:
    """A picture (PNG bytes) and its numbers (JSON values)."""

    png: bytes
    data: dict[str, Any]


def render(
    kind: str,
    image: MetaTensor,
    *,
    overlay: MetaTensor | None = None,
    options: Mapping[str, Any] | None = None,
) -> QcFigure:
    """Draw a picture of an image for its report.

    Parameters
    ----------
    kind : {"mosaic"}
        ``"mosaic"``: full-FOV cuts through the centre, then rows of axial,
        coronal and sagittal slices inside the foreground, in radiological
        orientation (patient right on the viewer's left) and true proportions.
    image : MetaTensor, shape (C, I, J, K)
        On any device, with any affine. Complex values are shown by magnitude;
        of several channels the first is shown. A map of a quantity
        (`medpipe.figures.scale`) is shown in colours with a scale.
    overlay : MetaTensor, shape (1, I, J, K), optional
        Label values, on a grid of its own. The cuts go through its centre and
        the slices through its extent.
    options : mapping, optional
        ``window_hu = [low, high]``; ``slices``, the slices in a row (default 8);
        ``labels``, names by label value, e.g. ``{"1": "head"}``.

    Returns
    -------
    QcFigure
        Its `data` holds shape, ``spacing_mm``, ``axis_codes``, ``fov_mm``,
        value statistics and histogram, ``window``, ``labels`` (voxels, ml,
        colour), ``flags`` (findings), ``panels`` (where each panel lies in the
        picture and in the patient), ``scale_bars`` and a ``thumbnail``.

    Raises
    ------
    UsageError
        If the kind or an option is unknown or has a wrong value. An image that
        is empty, constant or broken is no error: the picture says what it is.
    """
    chosen = _checked(kind, dict(options or {}))
    volume, affine, notes, flags = _prepare(image)
    data: dict[str, Any] = {
        "schema": 1,
        "kind": kind,
        "version": VERSION,
        "shape": [int(n) for n in image.shape[1:]],
        "channels": int(image.shape[0]),
        "dtype": str(image.dtype).removeprefix("torch."),
    }
    display = _display(image)
    if display is not None:
        volume = Canonical(volume.data * display.factor, volume.affine)
    stats = describe_values(volume.data if display is None else values_of(volume.data))
    flags = flags + value_flags(stats)
    if stats.n_voxels == 0:
        mosaic = draw_message(["the image holds no voxels"])
        return _finish(mosaic, None, data | stats.to_dict(), flags, notes)
    shape = tuple(int(n) for n in volume.data.shape)
    flags = geometry_flags(volume.affine, shape) + flags
    data |= _geometry(affine, data["shape"]) | stats.to_dict()
    fov = fov_box_mm(volume.affine, shape)
    is_ct = display is None and looks_like_ct(stats, _modality(image))
    inside = foreground_box_mm(volume, _threshold(stats, is_ct), fov)
    width_mm = float(inside[0, 1] - inside[0, 0])
    window = choose_window(stats, chosen, is_ct=is_ct, width_mm=width_mm)
    if display is not None and chosen.get("window_hu") is not None:
        window = replace(window, name=display.name, unit=display.unit)
    elif display is not None:
        window = quantity_window(stats, display)
    labels, legend, slices_box, centre, more = _labels(overlay, chosen, fov, inside)
    labels, marked = _marked(labels, legend, overlay)
    layout = plan_layout(volume, fov, inside, slices_box, centre, int(chosen["slices"]))
    mosaic = draw_mosaic(
        volume, labels, layout, window,
        title=window.text(), notes=[_grid_text(volume), *notes],
        legend=[(e["label"], _legend_text(e)) for e in marked], banner=_banner(stats),
        colours=None if display is None else COLOURS,
    )  # fmt: skip
    data |= {
        "window": [window.low, window.high],
        "window_name": window.name.rstrip(","),
        "unit": window.unit,
        "labels": legend,
        "panels": panels_json(layout),
        "scale_bars": mosaic.scale_bars,
    }
    return _finish(mosaic, layout, data, flags + more, notes)


def _checked(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    if kind not in KINDS:
        raise UsageError("unknown kind of picture", expected=" or ".join(KINDS), got=kind[:40])
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise UsageError("unknown qc option", expected=", ".join(OPTIONS), got=unknown[0][:40])
    slices = options.setdefault("slices", N_SLICES)
    if not isinstance(slices, int) or isinstance(slices, bool) or not 1 <= slices <= 16:
        raise UsageError("wrong number of slices", where="qc option slices",
                         expected="a whole number from 1 to 16", got=repr(slices)[:40])  # fmt: skip
    labels = options.setdefault("labels", {})
    if not isinstance(labels, Mapping):
        raise UsageError("label names are a table", where="qc option labels",
                         expected='{"1" = "name"}', got=type(labels).__name__)  # fmt: skip
    return options


def _prepare(image: MetaTensor) -> tuple[Canonical, Affine, list[str], list[Finding]]:
    """Return the first channel as float32 in canonical voxel order, and what was left out."""
    import torch

    notes, flags = [], []
    if image.ndim != 4:
        raise UsageError(
            "wrong number of axes", where="qc", expected="(C, I, J, K)", got=f"{image.ndim} axes"
        )
    first = image.as_tensor()[0]
    if image.shape[0] > 1:
        notes.append(f"volume 1 of {image.shape[0]}")
    if first.is_complex():
        first = first.abs()
        notes.append("magnitude of complex values")
    affine = np.asarray(image.affine.detach().cpu(), float)
    problem = affine_problem(affine)
    if problem:
        flags.append(Finding("qc.affine", Severity.ERROR, f"drawn as 1 mm voxels: {problem}"))
        notes.append("unusable affine, drawn as 1 mm voxels")
        affine = np.eye(4)
    return to_canonical(first.detach().to(torch.float32), affine), affine, notes, flags


def _facts(image: MetaTensor) -> Mapping[str, Any]:
    record = image.meta.get("medpipe") or {}
    return record.get("source") or {}


def _modality(image: MetaTensor) -> str | None:
    modality = _facts(image).get("modality")
    return modality if isinstance(modality, str) else None


def _display(image: MetaTensor) -> Display | None:
    return None if image.is_complex() else display_of(_facts(image))


def _threshold(stats: Statistics, is_ct: bool) -> float:
    """Value above which a voxel counts as foreground when the slices are spread."""
    if is_ct:
        return -300.0
    if stats.low is None or stats.high is None:
        return 0.0
    if stats.integer and stats.distinct <= 64:
        return stats.low
    low, high = stats.percentiles["p1"], stats.percentiles["p99"]
    return low + 0.12 * (high - low) if high > low else stats.low


def _geometry(affine: Affine, shape: list[int]) -> dict[str, Any]:
    step = spacing_mm(affine)
    return {
        "spacing_mm": [round(float(s), 6) for s in step],
        "fov_mm": [round(float(s * n), 4) for s, n in zip(step, shape, strict=True)],
        "axis_codes": axis_codes(affine),
        "shear_deg": round(shear_angle_deg(affine), 4),
        "oblique_deg": round(obliquity_deg(affine), 4),
        "voxel_ml": abs(float(np.linalg.det(affine[:3, :3]))) / 1000,
    }


def _grid_text(volume: Canonical) -> str:
    """Say the grid in the patient's axes, so that the storage order does not change the picture."""
    shape = " x ".join(str(n) for n in volume.data.shape)
    step = " x ".join(f"{s:.4g}" for s in spacing_mm(volume.affine))
    return f"{shape} voxels of {step} mm  (R-L, P-A, I-S)"


def _banner(stats: Statistics) -> str | None:
    if stats.low is None:
        return "no finite value: every voxel is NaN or infinite"
    return f"constant image: every finite voxel is {stats.low:g}" if stats.constant else None


def _legend_text(entry: Mapping[str, Any]) -> str:
    name = str(entry["name"]).encode("latin-1", "replace").decode("latin-1")
    return f"{name[:40]}  {entry['ml']:.4g} ml"


def _labels(
    overlay: MetaTensor | None, options: Mapping[str, Any], fov: np.ndarray, inside: np.ndarray
) -> tuple[Canonical | None, list[dict[str, Any]], np.ndarray, np.ndarray, list[Finding]]:
    """Return the overlay, its label volumes, where to cut, and what is odd about it."""
    middle = fov.mean(1)
    if overlay is None:
        return None, [], inside, middle, []
    labels, affine, _, flags = _prepare(overlay)
    counts = label_counts(labels.data)
    if not counts:
        return None, [], inside, middle, [
            *flags, Finding("qc.overlay_empty", Severity.WARNING, "the overlay holds no label")
        ]  # fmt: skip
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    entries = [
        {
            "label": label,
            "name": str(options["labels"].get(str(label), f"label {label}")),
            "voxels": count,
            "ml": round(count * voxel_ml, 6),
            "colour": hex_colour(label_colour(label)),
        }
        for label, count in sorted(counts.items())
    ]
    marked: torch.Tensor = labels.data.round() != 0
    own_fov = fov_box_mm(labels.affine, tuple(labels.data.shape))
    box = foreground_box_mm(Canonical(marked.float(), labels.affine), 0.5, own_fov)
    low, high = np.maximum(box[:, 0], fov[:, 0]), np.minimum(box[:, 1], fov[:, 1])
    if (high <= low).any():
        flags.append(Finding("qc.overlay_outside", Severity.ERROR,
                             "the labels lie outside the image: wrong affine?"))  # fmt: skip
        return labels, entries, inside, middle, flags
    centre = centre_of(labels, marked)
    return labels, entries, np.stack([low, high], 1), middle if centre is None else centre, flags


def _marked(
    labels: Canonical | None, legend: list[dict[str, Any]], overlay: MetaTensor | None
) -> tuple[Canonical | None, list[dict[str, Any]]]:
    """Return labels and legend without those that their image wants unmarked.

    A map of quality says ``source["display"] = {"unmarked": [1]}``: what is good stays
    as it is.
    """
    shown = {} if overlay is None else _facts(overlay).get("display")
    plain = shown.get("unmarked") if isinstance(shown, Mapping) else None
    if labels is None or not isinstance(plain, list):
        return labels, legend
    data = labels.data
    for value in plain:
        data = data.masked_fill(data == value, 0)
    kept = [entry for entry in legend if entry["label"] not in plain]
    return Canonical(data, labels.affine), kept


def _finish(
    mosaic: Mosaic,
    layout: Layout | None,
    data: dict[str, Any],
    flags: list[Finding],
    notes: list[str],
) -> QcFigure:
    picture = mosaic.picture
    box = layout.strip_box() if layout else (0, 0, picture.width, picture.height)
    jpeg, width, height = encode_jpeg(picture, box, THUMBNAIL_WIDTH)
    data |= {
        "notes": notes,
        "flags": [f.to_dict() for f in sorted(flags, key=lambda f: -f.severity)],
        "size_px": [picture.width, picture.height],
        "thumbnail": {
            "mime": "image/jpeg",
            "width": width,
            "height": height,
            "base64": base64.b64encode(jpeg).decode(),
        },
    }
    return QcFigure(encode_png(picture), data)
