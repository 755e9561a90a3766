"""Rules for single cells of a manifest: pure functions that return what is wrong, or None.

No message holds the text of a cell: a path or a covariate may name a patient.
A case id is quoted only by callers, and only once `case_id_problem` accepts it.
"""

from __future__ import annotations

import os
import re
from typing import Final

from medpipe.io.case import CASE_ID

__all__ = [
    "RESERVED",
    "SHA256",
    "case_id_problem",
    "escape",
    "id_problem",
    "looks_like_path",
    "path_problem",
    "spreadsheet_error",
    "starts_formula",
    "unescape",
]

SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
"""A digest as `sha256sum` prints it."""

RESERVED: Final = frozenset(
    {"con", "prn", "aux", "nul"}
    | {f"com{i}" for i in range(1, 10)}
    | {f"lpt{i}" for i in range(1, 10)}
)
"""Device names that no folder on Windows can have, with or without an extension."""

_FORMULA: Final = re.compile(r"[=+\-@\t\r]")
_ESCAPED: Final = re.compile(r"'+[=+\-@\t\r]")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
_ERROR_VALUE: Final = re.compile(
    r"#(REF!|NAME\?|VALUE!|DIV/0!|NUM!|NULL!|N/A|SPILL!|CALC!|GETTING_DATA|#+)?\Z", re.ASCII
)
# Spreadsheets write an upper-case E; hexadecimal ids such as 91e07632 are left alone.
_SCIENTIFIC: Final = re.compile(r"\d+([.,]\d+)?E[+-]?\d+\Z", re.ASCII)
_MONTH: Final = r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_DATE: Final = re.compile(rf"(\d{{1,2}}[-. ]{_MONTH}|{_MONTH}[-. ]\d{{2}})\Z", re.ASCII | re.I)
_LONG: Final = re.compile(r"\d{16,}\Z", re.ASCII)
_IMAGE: Final = re.compile(
    r".\.(nii|nii\.gz|dcm|ima|mha|mhd|nrrd|nhdr|hdr|img|mgz|png|tiff?|npy|npz|h5|xml|vtp|csv)"
    r"(#series=[0-9a-f]{8})?\Z",
    re.I,
)
# The common case in one match each, for manifests of a million rows.
_SOUND_ID: Final = re.compile(
    rf"(?!{_MONTH}|con|prn|aux|nul|com|lpt)[a-z][a-z0-9_-]{{0,63}}\Z", re.I
)
_SOUND_PATH: Final = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./ -]{0,1023}(?<! )\Z")
_SLASHED: Final = re.compile(r"\d+/\d+/\d+\Z", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def spreadsheet_error(text: str) -> bool:
    """Whether `text` is an error value such as ``#REF!`` that a spreadsheet left."""
    return text[:1] == "#" and _ERROR_VALUE.match(text) is not None


def starts_formula(text: str) -> bool:
    """Whether a spreadsheet would run `text`; plain numbers and a lone ``-`` are harmless."""
    if not _FORMULA.match(text):
        return False
    return text != "-" and not _NUMBER.match(text)


def escape(text: str) -> str:
    """Return `text` with an apostrophe in front where a spreadsheet would run it.

    `unescape` undoes it exactly: text that already looks escaped gets one
    more apostrophe.
    """
    return f"'{text}" if starts_formula(text) or _ESCAPED.match(text) else text


def unescape(text: str) -> str:
    """Return the text that `escape` was given."""
    return text[1:] if text[:1] == "'" and _ESCAPED.match(text) else text


def id_problem(text: str) -> tuple[str, str | None] | None:
    """Return what a spreadsheet did to an id, with a hint, or None.

    Parameters
    ----------
    text : str
        A case or patient id, not empty.
    """
    if _SOUND_ID.match(text):
        return None
    if spreadsheet_error(text):
        return "holds an error value of a spreadsheet", "repair the formula, export again"
    if _SCIENTIFIC.match(text):
        return (
            "looks like a number that a spreadsheet rewrote in scientific notation",
            "format the column as text, enter the ids again",
        )
    if _DATE.match(text):
        return (
            "looks like an id that a spreadsheet turned into a date",
            "format the column as text, enter the ids again",
        )
    if _LONG.match(text) and not text[15:].strip("0"):
        return (
            "looks like a long number that a spreadsheet cut to 15 digits",
            "format the column as text, enter the ids again",
        )
    if starts_formula(text):
        return "starts with = + - or @, which a spreadsheet would run", "rename it"
    return None


def case_id_problem(text: str) -> tuple[str, str | None] | None:
    """Return why `text` cannot be a case id, with a hint, or None if it can."""
    if _SOUND_ID.match(text):
        return None
    if not text:
        return "case_id is empty", "give every row an id of its own"
    damage = id_problem(text)
    if damage:
        return f"case_id {damage[0]}", damage[1]
    if CASE_ID.match(text):
        if text.partition(".")[0].lower() in RESERVED:
            return "case_id is the name of a device on Windows", "rename it"
        if text.endswith("."):
            return "case_id ends with a dot, which Windows drops", "rename it"
        return None
    if text.strip() != text:
        return "case_id has blanks around it", "remove them"
    if len(text) > 64:
        return f"case_id has {len(text)} characters", "use at most 64"
    return (
        "case_id has characters that a folder name should not have",
        "use letters, digits, dot, dash and underscore; begin with a letter or digit",
    )


def looks_like_path(text: str) -> bool:
    """Whether `text` reads like the path of an image file or a folder."""
    if _IMAGE.search(text):
        return True
    # A slash alone also occurs in n/a, mg/ml and dates.
    if text.startswith(("/", "./", "../")) or text.endswith("/"):
        return True
    return text.count("/") > 1 and not _SLASHED.match(text)


def path_problem(text: str) -> tuple[str, str | None] | None:
    """Return why `text` cannot be a local path, by its spelling alone, or None if it can."""
    if _SOUND_PATH.match(text):
        return None
    if spreadsheet_error(text):
        return "holds an error value of a spreadsheet", "repair the formula, export again"
    if starts_formula(text):
        return "starts with = + - or @, which a spreadsheet would run", "write ./ in front"
    if text.strip() != text:
        return "has blanks around it", "remove them"
    if _CONTROL.search(text):
        return "has a control character or a line break in it", None
    if _URL.match(text):
        return "is not a local path", "copy the file here, name the copy"
    if text[0] == "~":
        return "begins with ~, which is not expanded", "write the whole path"
    if "\\" in text:
        return "has backslashes", "write / between folders"
    if len(os.fsencode(text)) > 4096:
        return "is longer than 4096 bytes", None
    return None
