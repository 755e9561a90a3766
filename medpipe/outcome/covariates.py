"""Clinical covariates of patients with a haemorrhage: names, units and possible values.

A cell is read by its covariate: a value that cannot be is told, never repaired
and never quoted. An empty cell is a missing value.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "ACQUISITION",
    "COVARIATES",
    "LATER",
    "Covariate",
    "covariate",
    "covariate_problem",
    "meant_covariate",
    "parse_covariate",
    "parse_number",
]

Trouble = tuple[str, str | None]

MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "."})
"""Cells that say that a value is missing, in lower case."""

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
_COMMA: Final = re.compile(r"[+-]?\d+,\d+\Z", re.ASCII)
_SQUASH: Final = re.compile(r"[^a-z0-9]")
_SEX: Final = {"f": 0.0, "female": 0.0, "m": 1.0, "male": 1.0}


@dataclass(frozen=True, slots=True)
class Covariate:
    """What the values of one column may be.

    Attributes
    ----------
    name : str
        As in the header of the table.
    kind : {"number", "grade", "flag", "sex"}
        A grade is a whole number and enters the model as one; a flag is 0 or 1.
    low, high : float
        The smallest and the largest possible value.
    unit : str
        Empty for a grade, a flag and a column that is not in `COVARIATES`.
    meaning : str
    step : float
        Odds ratios are told for a difference of this size.
    """

    name: str
    kind: Literal["number", "grade", "flag", "sex"]
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""
    meaning: str = ""
    step: float = 1.0

    @property
    def expected(self) -> str:
        """The possible values in words."""
        if self.kind == "sex":
            return "female or male"
        if self.kind == "flag":
            return "0 or 1"
        kind = "a whole number" if self.kind == "grade" else "a number"
        if not math.isfinite(self.low):
            return kind
        unit = f" {self.unit}" if self.unit else ""
        return f"{kind} from {self.low:g} to {self.high:g}{unit}"


_SCHEMA: Final = (
    Covariate("age_years", "number", 0, 120, "years", "age at the CT", 10.0),
    Covariate("sex", "sex", 0, 1, "", "female (0) or male (1)"),
    Covariate("gcs", "grade", 3, 15, "", "Glasgow Coma Scale, sum"),
    Covariate(
        "wfns", "grade", 1, 5, "", "grade of the World Federation of Neurosurgical Societies"
    ),
    Covariate("hunt_hess", "grade", 1, 5, "", "grade of Hunt and Hess"),
    Covariate("fisher", "grade", 1, 4, "", "Fisher grade of the CT"),
    Covariate("modified_fisher", "grade", 0, 4, "", "modified Fisher grade of the CT"),
    Covariate("ivh", "flag", 0, 1, "", "blood in the ventricles"),
    Covariate("ich", "flag", 0, 1, "", "blood in the parenchyma"),
    Covariate("sah_ml", "number", 0, 500, "ml", "volume of subarachnoid blood", 10.0),
    Covariate("ivh_ml", "number", 0, 300, "ml", "volume of blood in the ventricles", 10.0),
    Covariate("ich_ml", "number", 0, 300, "ml", "volume of blood in the parenchyma", 10.0),
    Covariate("midline_shift_mm", "number", 0, 40, "mm", "shift of the midline"),
    Covariate("hydrocephalus", "flag", 0, 1, "", "acute hydrocephalus"),
    Covariate("aneurysm_mm", "number", 0, 100, "mm", "largest diameter of the aneurysm"),
    Covariate("posterior_circulation", "flag", 0, 1, "", "aneurysm of the posterior circulation"),
    Covariate("rebleeding", "flag", 0, 1, "", "bled again before the CT"),
    Covariate("hypertension", "flag", 0, 1, "", "known hypertension"),
    Covariate("anticoagulation", "flag", 0, 1, "", "on an anticoagulant"),
    Covariate("time_to_ct_h", "number", 0, 720, "h", "time from the first symptom to the CT", 6.0),
)

COVARIATES: Final[dict[str, Covariate]] = {c.name: c for c in _SCHEMA}
"""The covariates that are known by name; they are used when their columns are there."""

LATER: Final = frozenset(
    {
        "outcome", "time_days", "event", "death", "died", "death_days", "survival_days",
        "mrs", "mrs90", "mrs_90", "gos", "gose", "length_of_stay_days", "discharge",
        "vasospasm", "delayed_ischaemia", "treatment",
    }
)  # fmt: skip
"""Columns that are known only after the CT. They may be the outcome, never a covariate."""

ACQUISITION: Final = frozenset(
    {
        "modality", "slices", "thickness_mm", "orientation", "series", "suffix", "datatype",
        "ses", "acq", "run", "ce", "rec", "task", "dir", "echo", "part", "space", "desc",
    }
)  # fmt: skip
"""Columns that a scan of a folder writes; they are left alone unless asked for."""


def covariate(name: str) -> Covariate:
    """Return what is known of a covariate; of an unknown one, that it is a number."""
    return COVARIATES.get(name) or Covariate(name, "number")


def meant_covariate(name: str) -> str | None:
    """Return the known covariate that a column's name is almost, but not quite, or None.

    Examples
    --------
    >>> meant_covariate("Age_Years"), meant_covariate("modifed_fisher"), meant_covariate("kernel")
    ('age_years', 'modified_fisher', None)
    """
    squashed = {_SQUASH.sub("", known): known for known in COVARIATES}
    found = squashed.get(_SQUASH.sub("", name.lower()))
    if found is None:
        close = difflib.get_close_matches(name.lower(), list(COVARIATES), 1, 0.8)
        found = close[0] if close else None
    return None if found == name else found


def parse_number(cell: str) -> float | None:
    """Return the number that a cell holds, None for a missing value.

    Raises
    ------
    ValueError
        If it holds anything else; infinity is no number here.
    """
    text = cell.strip()
    if text.lower() in MISSING:
        return None
    value = float(text) if _NUMBER.match(text) else math.inf
    if not math.isfinite(value):
        raise ValueError("not a number")
    return value


def parse_covariate(cell: str, rule: Covariate) -> float | Trouble:
    """Return the value of a cell, NaN for a missing one, or what is wrong and what to do.

    Parameters
    ----------
    cell : str
    rule : Covariate
    """
    if rule.kind == "sex":
        text = cell.strip().lower()
        value = math.nan if text in MISSING else _SEX.get(text)
        if value is not None:
            return value
        return f"'{rule.name}' is neither female nor male", "write female, male or nothing"
    try:
        number = parse_number(cell)
    except ValueError:
        hint = "write a point for decimals" if _COMMA.match(cell.strip()) else None
        return f"'{rule.name}' is not a number", hint or f"write {rule.expected}, or nothing"
    if number is None:
        return math.nan
    return covariate_problem(number, rule) or number


def covariate_problem(value: float, rule: Covariate) -> Trouble | None:
    """Return why a number cannot be a value of a covariate, with a hint, or None."""
    if rule.kind in ("flag", "sex") and value not in (0.0, 1.0):
        return f"'{rule.name}' is not 0 or 1", "write 0, 1 or nothing"
    if not rule.low <= value <= rule.high:
        text = f"'{rule.name}' is out of range"
        return text, f"write {rule.expected}, or nothing if it is not known"
    if rule.kind == "grade" and value != int(value):
        return f"'{rule.name}' is not a whole number", f"write {rule.expected}, or nothing"
    return None
