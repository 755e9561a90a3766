"""Choosing one series out of those a folder holds, by rules that are data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medpipe.errors import InputError, UsageError
from medpipe.io.dicom_group import Series

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SeriesRules", "select_series", "series_table"]

SHOWN = 12


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error:
        raise ValueError("not a regular expression") from None
    return text


class SeriesRules(BaseModel):
    """Conditions a series has to meet; every one that is given must hold.

    Attributes
    ----------
    modality : str
        ``CT``, ``MR``, …
    description : str
        Regular expression searched in SeriesDescription, case ignored.
    series_number : int
        SeriesNumber.
    slice_thickness_mm : (float, float)
        Lowest and highest SliceThickness; the median step where the tag is absent.
    orientation : str
        ``axial``, ``coronal`` or ``sagittal``.
    min_slices : int
        Fewest slices.
    kernel : str
        Convolution kernel, case ignored.
    contrast : bool
        Whether a contrast agent is recorded.
    most_slices : bool
        Take the one with the most slices of those that are left.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: str | None = None
    description: Annotated[str, AfterValidator(_regex)] | None = None
    series_number: int | None = None
    slice_thickness_mm: tuple[float, float] | None = None
    orientation: Literal["axial", "coronal", "sagittal"] | None = None
    min_slices: int | None = Field(default=None, ge=1)
    kernel: str | None = None
    contrast: bool | None = None
    most_slices: bool = False

    @classmethod
    def parse(cls, rules: SeriesRules | dict[str, Any] | None) -> SeriesRules:
        """Return rules from a dict.

        Raises
        ------
        UsageError
            If a rule is unknown or has the wrong type.
        """
        if isinstance(rules, cls):
            return rules
        try:
            return cls.model_validate(rules or {})
        except ValidationError as error:
            names = ", ".join(
                ".".join(map(str, e["loc"])) or "rules"
                for e in error.errors(include_url=False, include_input=False)
            )
            raise UsageError(
                f"the rules that select a series are wrong at: {names}",
                expected=", ".join(cls.model_fields),
            ) from None

    def accept(self, series: Series) -> bool:
        """Return whether a series meets every condition but `most_slices`."""
        thickness = series.thickness_mm
        if thickness is None and series.step_mm is not None:
            thickness = series.step_mm[1]
        tests: tuple[tuple[Any, Callable[[Any], bool]], ...] = (
            (self.modality, lambda v: series.modality == v.upper()),
            (self.description, lambda v: bool(re.search(v, series.description, re.I))),
            (self.series_number, lambda v: series.number == v),
            (
                self.slice_thickness_mm,
                lambda v: thickness is not None and v[0] <= thickness <= v[1],
            ),
            (self.orientation, lambda v: series.orientation == v),
            (self.min_slices, lambda v: series.n_slices >= v),
            (self.kernel, lambda v: (series.kernel or "").upper() == v.upper()),
            (self.contrast, lambda v: series.contrast == v),
        )
        return all(value is None or test(value) for value, test in tests)


def _listed(series: Sequence[Series]) -> str:
    names = [f"{s.label}{' ' + s.orientation if s.orientation else ''}" for s in series[:SHOWN]]
    if len(series) > SHOWN:
        names.append(f"{len(series) - SHOWN} more")
    return ", ".join(names)


def select_series(
    series: Sequence[Series], rules: SeriesRules | dict[str, Any] | None = None
) -> Series:
    """Return the one series that meets the rules.

    Raises
    ------
    InputError
        If none does, or more than one. The message lists them by number,
        modality, slice count and hash, never by description.
    UsageError
        If the rules themselves are wrong.
    """
    wanted = SeriesRules.parse(rules)
    left = [s for s in series if wanted.accept(s)]
    if not left:
        raise InputError(
            "no series meets the rules", got=_listed(series) or "no image series at all"
        )
    if wanted.most_slices:
        most = max(s.n_slices for s in left)
        left = [s for s in left if s.n_slices == most]
    if len(left) > 1:
        split = {f.message for s in left for f in s.findings if f.check == "dicom.split_series"}
        same = len({s.hash8 for s in left}) == 1
        raise InputError(
            "one series falls into parts that are no single volume"
            if same and split
            else f"{len(left)} series could be meant",
            expected="one",
            got=_listed(left) + (f" ({min(split)})" if same and split else ""),
            hint="choose with rules such as series_number, orientation or most_slices, or make a "
            "manifest with one row for each: medpipe manifest scan DIR CASES.csv",
        )
    return left[0]


def series_table(series: Sequence[Series]) -> Table:
    """Return a `rich.table.Table` of series for the terminal, free of patient data."""
    from rich.table import Table

    names = "series modality slices size spacing_mm step_mm tilt_deg orientation kernel contrast"
    table = Table(*names.split(), "id", title=None)
    for s in series:
        step = "" if s.step_mm is None else "/".join(f"{v:.3g}" for v in s.step_mm)
        if s.step_mm is not None and s.step_mm[2] - s.step_mm[0] < 0.01:
            step = f"{s.step_mm[1]:.3g}"
        table.add_row(
            "?" if s.number is None else str(s.number),
            s.modality,
            str(s.n_slices),
            f"{s.cols} × {s.rows}",
            "" if s.spacing_mm is None else f"{s.spacing_mm[1]:.3g} × {s.spacing_mm[0]:.3g}",
            step,
            "" if s.tilt_deg is None else f"{s.tilt_deg:.1f}",
            s.orientation or "",
            s.kernel or "",
            "yes" if s.contrast else "no",
            s.hash8,
        )
    return table
