"""One case: the images of one examination and what the study knows about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from medpipe.types import Json

__all__ = ["CASE_ID", "Case"]

CASE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
"""What a case id looks like; it becomes the name of a folder."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a manifest.

    Attributes
    ----------
    case_id : str
        Matches `CASE_ID`; the only name of the case that is ever recorded.
    inputs : dict
        Input name → path of a file or a folder; None when an optional input is absent.
    patient_id : str or None
        Groups the cases of one patient for splits. Never recorded by the engine.
    covariates : dict
        Further columns. Never recorded by the engine.
    """

    case_id: str
    inputs: Mapping[str, str | None]
    patient_id: str | None = None
    covariates: Mapping[str, Json] = field(default_factory=dict)
