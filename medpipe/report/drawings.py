"""Documents of a case that are pictures, to be shown on its page.

They are put into the page as ``<img>`` with a data address: a browser runs no script of
an SVG that is shown as an image and loads nothing for it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Drawing", "is_drawing", "read_drawings"]

MAX_BYTES = 4_000_000
"""A larger picture is only linked."""
MAX_PAGE_BYTES = 16_000_000
"""All pictures of a page together."""

_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture: `address` is its data address, None where `problem` says why not."""

    file: str
    step: str
    link: str
    address: str | None
    problem: str | None


def is_drawing(output: Mapping[str, Any]) -> bool:
    """Whether an output of a record is a document that can be shown as a picture."""
    name = str(output.get("file"))
    return output.get("makes") == "document" and Path(name).suffix.lower() in _MIME


def read_drawings(folder: Path, outputs: Iterable[Mapping[str, Any]]) -> list[Drawing]:
    """Return the pictures among the outputs of a case, in their order.

    Parameters
    ----------
    folder : Path
        Of the case.
    outputs : iterable of mapping
        Records with ``link``; one without a link (the file is absent) is left out.
    """
    found, room = [], MAX_PAGE_BYTES
    for output in outputs:
        if not is_drawing(output) or not output.get("link"):
            continue
        name = str(output["file"])
        address, problem = _address(folder / name, min(room, MAX_BYTES))
        room -= len(address or "")
        step = str(output.get("step", ""))
        found.append(Drawing(name, step, str(output["link"]), address, problem))
    return found


def _address(path: Path, limit: int) -> tuple[str | None, str | None]:
    try:
        if path.stat().st_size > limit:
            return None, "too large to be shown here"
        content = path.read_bytes()
    except OSError:
        return None, "not readable"
    mime = _MIME[path.suffix.lower()]
    if not _looks_like(content, mime):
        return None, "damaged"
    return f"data:{mime};base64,{base64.b64encode(content).decode()}", None


def _looks_like(content: bytes, mime: str) -> bool:
    if mime == "image/png":
        return content[:8] == b"\x89PNG\r\n\x1a\n"
    start = content[:256].lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith((b"<svg", b"<?xml")) and b"</svg>" in content[-64:]
