"""The page of one case."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from medpipe.figures.svg import histogram_svg, share_bar_svg
from medpipe.report.drawings import read_drawings
from medpipe.report.pages import render_page
from medpipe.report.records import Case, Picture, as_dict, as_dicts, number, numbers
from medpipe.report.text import amount

__all__ = ["case_page"]

_SIDE_BY_SIDE = 5  # groups of values that fit beside each other


def case_page(case: Case, out: Path, source: str, *, interactive: bool = False) -> bytes:
    """Return the page of a case.

    Parameters
    ----------
    case : Case
    out : Path
        The output folder; only names below it are written into the page.
    source : str
        Digest of what the page is made from, written into its head.
    """
    longest = max((number(s.get("seconds")) or 0.0 for s in case.steps), default=0.0)
    for step in case.steps:
        seconds = number(step.get("seconds"))
        step["bar"] = _bar(seconds or 0.0, longest)
        step["seconds"] = seconds
        out_keys = step.get("out")
        step["out"] = ", ".join(map(str, out_keys)) if isinstance(out_keys, list) else out_keys
    return render_page(
        "case.html",
        interactive=interactive,
        title=case.case_id,
        source=source,
        case=case,
        pictures=[_picture(p, case) for p in case.pictures],
        drawings=read_drawings(case.folder, case.outputs),
        tables=[_table(name, value) for name, value in case.tables.items()],
        failure=_failure(case),
        rerun=_rerun(case),
    )


def _rerun(case: Case) -> str:
    """Return the commands that run a case again, without the user's paths."""
    name = shlex.quote(case.workflow.get("name", "WORKFLOW"))
    command = f"medpipe run {name} CASES.csv OUT"
    if len(case.inputs) == 1:
        command += f"\nmedpipe run {name} INPUT OUT --case-id {shlex.quote(case.case_id)}"
    return command


def _bar(seconds: float, longest: float) -> Any:
    from markupsafe import Markup

    share = seconds / longest if longest > 0 else 0.0
    return Markup(share_bar_svg(share, f"{100 * share:.0f} % of the longest step"))  # noqa: S704


def _failure(case: Case) -> dict[str, Any] | None:
    """Return what went wrong in the order in which a reader asks for it."""
    if case.status in ("done", "pending"):
        return None
    error = case.error or {}
    rows = [
        ("Step", error.get("step")),
        ("Where", error.get("where")),
        ("Expected", error.get("expected")),
        ("Got", error.get("got")),
        ("Signal", error.get("signal")),
        ("Type", error.get("type")),
        ("Next", error.get("hint")),
    ]
    frames = error.get("frames")
    what = error.get("what") or case.problem or "the case failed without saying why"
    return {
        "what": str(what),
        "rows": [(name, str(value)) for name, value in rows if value not in (None, "")],
        "frames": [str(f) for f in frames[:40]] if isinstance(frames, list) else [],
        "problems": as_dicts(error.get("problems"))[:50],
        "reached": case.steps[-1].get("id") if case.steps else None,
    }


def _picture(picture: Picture, case: Case) -> dict[str, Any]:
    from markupsafe import Markup

    data = picture.data
    histogram = as_dict(data.get("histogram"))
    edges = numbers(histogram.get("edges"))
    counts = numbers(histogram.get("counts"))
    window = numbers(data.get("window"))
    unit = data["unit"] if isinstance(data.get("unit"), str) else ""
    chart = ""
    if edges and counts:
        chart = histogram_svg(
            edges, counts, window=window if len(window) == 2 else None, unit=unit or "voxel value"
        )
    size = numbers(data.get("size_px"))
    link = None
    if picture.png and picture.png.parent == case.folder:
        link = f"../../cases/{quote(case.folder.name)}/{quote(picture.png.name)}"
    return {
        "step": picture.step,
        "problem": picture.problem,
        "png": picture.png_base64(),
        "link": link,
        "size": [int(v) for v in size] if len(size) == 2 else None,
        "alt": _alt(data, case.case_id, picture.step),
        "chart": Markup(chart),  # noqa: S704 - made of numbers alone
        "facts": _facts(data, window, unit),
        "labels": as_dicts(data.get("labels")),
        "notes": [str(n) for n in data.get("notes", [])]
        if isinstance(data.get("notes"), list)
        else [],
        "panels": data.get("panels") if isinstance(data.get("panels"), list) else [],
    }


def _times(values: list[float]) -> str:
    return " × ".join(f"{v:.4g}" for v in values)


def _alt(data: dict[str, Any], case_id: str, step: str) -> str:
    shape = _times(numbers(data.get("shape")))
    size = f" of {shape} voxels" if shape else ""
    return (
        f"Axial, coronal and sagittal slices{size} after step {step} of case {case_id}, "
        "patient right on the left"
    )


def _facts(data: dict[str, Any], window: list[float], unit: str) -> list[tuple[str, str]]:
    """Return name and value of the image's numbers that are there."""
    percentiles = as_dict(data.get("percentiles"))
    rows: list[tuple[str, str | None]] = [
        ("Voxels", _times(numbers(data.get("shape"))) or None),
        ("Spacing", _unit(_times(numbers(data.get("spacing_mm"))), "mm")),
        ("Field of view", _unit(_times(numbers(data.get("fov_mm"))), "mm")),
        ("Voxel axes", str(data["axis_codes"]) if data.get("axis_codes") else None),
        ("Window", _unit(" to ".join(map(amount, window)), unit)),
    ]
    for name, value in (
        ("Minimum", data.get("min")),
        ("1st percentile", percentiles.get("p1")),
        ("Median", percentiles.get("p50")),
        ("Mean", data.get("mean")),
        ("99th percentile", percentiles.get("p99")),
        ("Maximum", data.get("max")),
    ):
        found = number(value)
        rows.append((name, None if found is None else _unit(f"{found:.5g}", unit)))
    broken = number(data.get("nan_percent"))
    if broken:
        rows.append(("NaN", f"{broken:.3g} %"))
    return [(name, value) for name, value in rows if value]


def _unit(text: str, unit: str) -> str | None:
    return f"{text} {unit}".strip() if text else None


def _table(name: str, value: Any) -> dict[str, Any]:
    """Lay a table value out: records as rows, groups of values side by side, else two columns."""
    if isinstance(value, dict) and isinstance(value.get("rows"), list):
        value = value["rows"]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return _grid(name, value)
    if not isinstance(value, dict):
        value = {"value": value}
    groups, single = _groups(value)
    if not groups:
        return {"name": name, "columns": [], "rows": _pairs(single), "left_out": 0}
    if len(groups) > _SIDE_BY_SIDE:
        out = _grid(name, [{"": key, **group} for key, group in groups.items()])
    else:  # few groups of many values read better as columns
        names = list(dict.fromkeys(key for group in groups.values() for key in group))
        rows = [{"": key, **{g: v.get(key) for g, v in groups.items()}} for key in names]
        out = _grid(name, rows)
    return out | {"pairs": _pairs(single)}


def _groups(value: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Part a mapping into groups of values (nested ones by their whole name) and single values."""
    groups: dict[str, dict[str, Any]] = {}
    single: dict[str, Any] = {}
    for key, inner in value.items():
        if not isinstance(inner, dict):
            single[str(key)] = inner
        elif inner and all(isinstance(v, dict) for v in inner.values()):
            groups |= {f"{key} {k}": dict(v) for k, v in inner.items()}
        elif inner:
            groups[str(key)] = dict(inner)
    return groups, single


def _grid(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(str(k) for row in rows for k in row))[:40]
    body = [[_flat(row.get(c)) for c in columns] for row in rows[:500]]
    return {"name": name, "columns": columns, "rows": body, "left_out": len(rows) - len(body)}


def _pairs(single: dict[str, Any]) -> list[list[Any]]:
    return [[key, _flat(value)] for key, value in single.items()]


def _flat(value: Any) -> Any:
    """Return lists of numbers as text: ``1, 1, 5``, corners of a box as ``… to …``."""
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return ", ".join(f"{v:.4g}" for v in value)
    if all(isinstance(v, list) for v in value):
        return " to ".join(str(_flat(v)) for v in value)
    return value
