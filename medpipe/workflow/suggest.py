"""The nearest known name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "shown"]

_LONGEST = 60


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the nearest of `known`, or all of them when they are few."""
    names = sorted(known)
    near = difflib.get_close_matches(word.lower()[:_LONGEST], names, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    if 0 < len(names) <= 12:
        return f"known: {', '.join(names)}"
    return None


def shown(value: object) -> str:
    """Return `value` as a short printable text in one line, the way TOML would write it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
