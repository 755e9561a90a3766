"""Several images at one position: copies, time points, or a contradiction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError
from medpipe.io.dicom_header import Frame
from medpipe.types import Finding, Severity

__all__ = ["resolve_repeats"]

_KEYS = (
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoTime",
    "AcquisitionTime",
    "DimensionIndexValues",
    "AcquisitionNumber",
    "InstanceNumber",
)

Places = list[list[int]]


def _without_copies(
    places: Places, planes: NDArray[Any], frames: Sequence[Frame], strict: bool
) -> Places:
    """Drop images equal to an earlier one of their position; `strict` asks for the same UID."""
    out = []
    for place in places:
        kept: list[int] = []
        for i in place:
            name = (frames[i].instance, frames[i].index)
            copies = (
                j for j in kept if not strict or name == (frames[j].instance, frames[j].index)
            )
            if not any(np.array_equal(planes[i], planes[j]) for j in copies):
                kept.append(i)
        out.append(kept)
    return out


def _counts(places: Places) -> set[int]:
    return {len(p) for p in places}


def _time_order(places: Places, frames: Sequence[Frame]) -> tuple[Places, str]:
    """Sort each position's images by the first tag that tells all of them apart."""
    for key in _KEYS:
        values = [[frames[i].order.get(key) for i in place] for place in places]
        if any(v is None for row in values for v in row):
            continue
        if any(len(set(row)) < len(row) for row in values):
            continue
        if key in _KEYS[:1] and len({frozenset(row) for row in values}) > 1:
            raise InputError("the positions do not have the same time points")
        if key in _KEYS[2:3] and len({frozenset(row) for row in values}) > 1:
            continue
        ordered = [
            [i for _, i in sorted(zip(row, place, strict=True))]
            for row, place in zip(values, places, strict=True)
        ]
        return ordered, key
    raise InputError("the time points cannot be told apart: no tag puts them in order")


def resolve_repeats(
    places: Places,
    planes: NDArray[Any],
    frames: Sequence[Frame],
    names: Sequence[str],
    time_points: Literal["refuse", "stack"],
) -> tuple[Places, list[Finding], str | None]:
    """Decide what several images at one position mean.

    Parameters
    ----------
    places : list of list of int
        Indices of the images at each position.
    planes : ndarray, shape (N, rows, cols)
        All images after rescaling.
    frames : sequence of Frame, length N
        Their headers.
    names : sequence of str
        The name of each position in messages.
    time_points : {"refuse", "stack"}
        What to do when every position has the same number of different images.

    Returns
    -------
    places : list of list of int
        One image per position, or all time points in order.
    findings : list of Finding
    ordered_by : str or None
        The tag that ordered the time points.

    Raises
    ------
    InputError
        If images contradict each other, or are time points and may not be.
    """
    before = sum(map(len, places))
    left = _without_copies(places, planes, frames, strict=True)
    loose = _without_copies(left, planes, frames, strict=False)
    # time points may hold equal images (air), so equal pixels alone are no proof of a copy there
    if _counts(loose) == {1} or len(_counts(left)) > 1:
        left = loose
    findings = []
    if dropped := before - sum(map(len, left)):
        text = f"{dropped} exact cop{'ies' if dropped > 1 else 'y'} of slices dropped"
        findings.append(Finding("dicom.duplicates", Severity.WARNING, text))
    if _counts(left) == {1}:
        return left, findings, None
    if len(_counts(left)) > 1:
        rank, place = max(enumerate(left), key=lambda p: len(p[1]))
        raise InputError(
            f"{len(place)} different images at one position",
            where=names[rank],
            expected="one, or the same number at every position",
        )
    n = _counts(left).pop()
    if time_points == "refuse":
        raise InputError(
            f"{n} different images at each of the {len(left)} positions: time points or echoes",
            hint='set time_points="stack" for a 4-D volume, or select one of them',
        )
    ordered, key = _time_order(left, frames)
    return ordered, findings, key
