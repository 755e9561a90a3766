"""Values as people read them: durations, bytes, parameters; the filters of the templates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FILTERS", "amount", "bytes_text", "duration", "methods_text", "parameters"]


def duration(seconds: Any) -> str:
    """Return e.g. ``"85 ms"``, ``"3.2 s"``, ``"4 min 05 s"`` or ``"2 h 10 min"``."""
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(count: Any) -> str:
    """Return e.g. ``"1.4 GB"``: powers of 1000, as in ``--memory-gb``."""
    if not isinstance(count, int | float) or not math.isfinite(count) or count <= 0:
        return "–"
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def amount(value: Any) -> str:
    """Return a table's value: numbers to five digits, the rest as text."""
    from jinja2 import Undefined

    if value is None or isinstance(value, Undefined):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**15:
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, int | float):
        large = 1e5 <= abs(value) < 1e15
        return f"{value:,.0f}".replace(",", "\u202f") if large else f"{value:.5g}"
    if isinstance(value, str):
        return value if len(value) <= 200 else value[:199] + "…"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:199] + "…"


def parameters(params: Any) -> list[tuple[str, str]]:
    """Return name and value of every parameter that is set."""
    if not isinstance(params, Mapping):
        return []
    return [(str(name), amount(value)) for name, value in params.items() if value is not None]


def methods_text(
    workflow: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], n_done: int, versions: Mapping
) -> str:
    """Return a paragraph for the methods section of a paper."""
    name, version = workflow.get("name", "?"), workflow.get("version", "?")
    digest = str(workflow.get("digest", ""))[:12]
    parts = []
    for step in steps:
        values = ", ".join(f"{k} = {v}" for k, v in parameters(step.get("params")))
        parts.append(f"{step.get('use', '?')}{f' ({values})' if values else ''}")
    packages = ", ".join(
        f"{label} {versions[key]}"
        for key, label in (
            ("torch", "PyTorch"), ("monai", "MONAI"), ("SimpleITK", "SimpleITK"),
            ("nibabel", "NiBabel"), ("pydicom", "pydicom"), ("numpy", "NumPy"),
        )
        if versions.get(key)
    )  # fmt: skip
    cases = f"{n_done} case{'s' if n_done != 1 else ''}"
    text = (
        f"Images of {cases} were processed with medpipe {versions.get('medpipe', '?')}, "
        f"workflow {name} version {version} (digest {digest}). "
    )
    if parts:
        text += f"The steps were, in order: {'; '.join(parts)}. "
    if packages:
        text += f"The computation used {packages}. "
    return text + (
        "Every result is addressed by the SHA-256 of its inputs, parameters and step versions."
    )


FILTERS = {
    "duration": duration,
    "bytes": bytes_text,
    "amount": amount,
    "parameters": parameters,
}
