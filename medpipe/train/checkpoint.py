"""State dicts of a training run in one file, whole or not at all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medpipe.errors import InputError, UsageError
from medpipe.io.atomic import atomic_path
from medpipe.train.settings import LoopSettings
from medpipe.types import Json

__all__ = ["read_checkpoint", "write_checkpoint"]

FORMAT = "medpipe-checkpoint-1"
_FREE = ("workers", "checkpoint_every", "amp")
"""Settings that may change when a run continues."""


def write_checkpoint(
    path: Path, state: dict[str, Any], settings: LoopSettings, bound_to: dict[str, Json]
) -> None:
    """Write state dicts, tensors and JSON values, and what the run is bound to.

    Raises
    ------
    StoreError
        If the file cannot be written; the one before is then still there.
    """
    with atomic_path(path) as tmp:
        torch.save({"format": FORMAT, "settings": _binding(settings, bound_to), **state}, tmp)


def read_checkpoint(
    path: Path, settings: LoopSettings, device: torch.device, bound_to: dict[str, Json]
) -> dict[str, Any]:
    """Return what `write_checkpoint` wrote; nothing in the file is run.

    Raises
    ------
    InputError
        If the file is damaged or something else.
    UsageError
        If it belongs to a run with other settings.
    """
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception:  # torch raises whatever its reader does for damaged files
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(
            "not a checkpoint that can be used",
            where=path.name,
            expected="one that this version of medpipe wrote",
            hint="remove it to start anew",
        )
    wanted, found = _binding(settings, bound_to), state["settings"]
    changed = sorted(n for n in wanted | found if wanted.get(n, ...) != found.get(n, ...))
    if changed:
        raise UsageError(
            "the checkpoint is of other settings",
            where=path.name,
            got=", ".join(changed),
            hint="give the settings of the run to continue, or another file",
        )
    return state


def _binding(settings: LoopSettings, bound_to: dict[str, Json]) -> dict[str, Any]:
    own = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    return own | bound_to
