"""A table (a dict of JSON values) as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["table_csv"]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one level, with dots between the names."""
    row: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            row |= _flat(item, f"{prefix}{name}.")
        else:
            row[f"{prefix}{name}"] = item
    return row


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list):
        return json.dumps(value)
    # A spreadsheet would run such a text as a formula.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def table_csv(table: Mapping[str, Any]) -> str:
    """Return a table as CSV text.

    A dict of dicts (such as label → measures) gives a row for each, with its
    name in the column ``name``; anything else gives one row. Deeper levels
    become columns with dotted names, lists are JSON text.
    """
    if table and all(isinstance(item, Mapping) for item in table.values()):
        rows = [{"name": name, **_flat(item)} for name, item in table.items()]
    else:
        rows = [_flat(table)]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_cell(c) for c in columns)
    writer.writerows([_cell(row.get(c)) for c in columns] for row in rows)
    return text.getvalue()
