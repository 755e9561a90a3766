"""The quality control picture of a step as an object of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medpipe.engine.store import Store
from medpipe.errors import StepError
from medpipe.workflow.compiled import CompiledStep

__all__ = ["PICTURE_JSON", "PICTURE_PNG", "draw_picture"]

PICTURE_PNG = "picture.png"
PICTURE_JSON = "picture.json"


def draw_picture(store: Store, step: CompiledStep, key: str, data: Mapping[str, Any]) -> None:
    """Draw the picture of a step and put it into the store.

    Raises
    ------
    StepError
        If the image to draw is not there.
    """
    from medpipe.figures.qc import render

    qc = step.qc
    if qc is None or qc.key not in data:
        raise StepError("there is no image to draw a picture of")
    overlay = data.get(qc.overlay) if qc.overlay else None
    options = dict(qc.options)
    if overlay is not None and float(overlay.max()) <= 1:
        # a mask is called what the workflow calls it
        options.setdefault("labels", {"1": qc.overlay})
    figure = render(qc.kind, data[qc.key], overlay=overlay, options=options)
    numbers = json.dumps(figure.data, indent=1, sort_keys=True, allow_nan=False)

    def write(folder: Path) -> None:
        (folder / PICTURE_PNG).write_bytes(figure.png)
        (folder / PICTURE_JSON).write_text(numbers + "\n", encoding="utf-8")

    record = {"step": {"id": step.id, "use": step.use, "qc": qc.kind}, "reads": {}, "values": {}}
    store.put(key, record, write)
