"""Which column of a manifest is what."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medpipe.io.manifest_cells import looks_like_path, starts_formula
from medpipe.io.manifest_rows import Problems

__all__ = ["DIGEST_SUFFIX", "Columns", "path_columns"]

DIGEST_SUFFIX: Final = "_sha256"
_SQUASH: Final = re.compile(r"[^a-z0-9]")


@dataclass(slots=True)
class Columns:
    """Which column is what: name → index."""

    names: list[str]
    case_id: int = 0
    patient_id: int | None = None
    inputs: dict[str, int] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        header: list[str],
        inputs: Collection[str] | None,
        optional: Collection[str],
        problems: Problems,
    ) -> Columns:
        """Say which column is what, and note what is wrong with the header."""
        # A file without a header has a patient in its first row: quote nothing from it.
        trusted = any(_squash(name) == "caseid" for name in header)
        _check_names(header, trusted, problems)
        wanted = [*(inputs or ()), *(i for i in optional if i not in (inputs or ()))]
        known = ["case_id", "patient_id", *wanted, *(i + DIGEST_SUFFIX for i in wanted)]
        required = ["case_id", *(i for i in wanted if i not in optional)]
        _check_known(header, known, required, trusted, problems)
        index = {name: i for i, name in reversed(list(enumerate(header)))}
        columns = cls(
            header,
            index.get("case_id", 0),
            index.get("patient_id"),
            {name: index[name] for name in wanted if name in index},
            frozenset(optional),
        )
        if inputs is not None:
            columns.check_digests(problems)
        return columns

    def digest_of(self, name: str) -> int | None:
        """Return the column with the digest of input `name`."""
        wanted = name + DIGEST_SUFFIX
        return self.names.index(wanted) if wanted in self.names else None

    def check_digests(self, problems: Problems) -> None:
        """Report digest columns that belong to no input."""
        for i, name in enumerate(self.names):
            stem = name.removesuffix(DIGEST_SUFFIX)
            if stem == name or stem in self.inputs:
                continue
            close = difflib.get_close_matches(stem, list(self.inputs), 1)
            hint = f"did you mean '{close[0]}{DIGEST_SUFFIX}'?" if close else None
            text = f"column {i + 1} is named like a digest, but no input has that name"
            problems.add(text, 1, hint)

    def others(self) -> list[tuple[str, int]]:
        """Return the covariates: every column without another meaning."""
        taken = {self.case_id, self.patient_id, *self.inputs.values()}
        taken |= {self.digest_of(name) for name in self.inputs}
        return [(name, i) for i, name in enumerate(self.names) if i not in taken]


def _squash(name: str) -> str:
    return _SQUASH.sub("", name.lower())


def _check_names(header: list[str], trusted: bool, problems: Problems) -> None:
    seen: dict[str, int] = {}
    for i, name in enumerate(header, start=1):
        if not name.strip():
            problems.add(f"column {i} has no name", 1, "name it, or delete the column")
            continue
        if name.strip() != name:
            problems.add(f"the name of column {i} has blanks around it", 1, "remove them")
        if starts_formula(name) or not name.isprintable() or len(name) > 128:
            problems.add(f"column {i} has a name that is not plain text", 1, "rename it")
        elif name.casefold() in seen:
            quoted = f" '{name}'" if trusted else ""
            first = seen[name.casefold()]
            problems.add(f"columns {first} and {i} have the same name{quoted}", 1, "rename one")
        seen.setdefault(name.casefold(), i)


def _check_known(
    header: list[str], known: list[str], required: list[str], trusted: bool, problems: Problems
) -> None:
    """Report missing columns, and columns that are almost, but not quite, a known one."""
    near = {_squash(name): name for name in known if name not in header}
    told = set()
    for i, name in enumerate(header, start=1):
        meant = near.get(_squash(name), "")
        if meant and name not in known:
            told.add(meant)
            problems.add(f"column {i} is not quite '{meant}'", 1, f"rename it to '{meant}'")
    for name in required:
        if name in header or name in told:
            continue
        spare = [h for h in header if h not in known] if trusted else []
        close = difflib.get_close_matches(name, spare, 1)
        hint: str | None
        if close:
            hint = f"did you mean '{name}' where it says '{close[0]}'?"
        else:
            hint = "the first line names the columns" if name == "case_id" else None
        problems.add(f"there is no column '{name}'", 1, hint)


def path_columns(
    rows: Iterator[tuple[int, list[str]]],
    columns: Columns,
    folder: Path,
    check_files: bool,
) -> dict[str, int]:
    """Return the columns whose cells all look like paths, or all exist."""
    candidates = {name: i for name, i in columns.others() if not name.endswith(DIGEST_SUFFIX)}
    declared = {name for name in candidates if columns.digest_of(name) is not None}
    open_names = {name: i for name, i in candidates.items() if name not in declared}
    spelled, present = set(open_names), set(open_names if check_files else ())
    filled = set()
    for _, row in rows:
        for name, i in open_names.items():
            cell = row[i] if i < len(row) else ""
            if not cell:
                continue
            filled.add(name)
            if name in spelled and not looks_like_path(cell):
                spelled.discard(name)
            if name in present and ("\0" in cell or not os.path.exists(folder / cell)):
                present.discard(name)
        open_names = {name: i for name, i in open_names.items() if name in spelled | present}
        if not open_names:
            break
    found = (filled & (spelled | present)) | declared
    return {name: i for name, i in candidates.items() if name in found}
