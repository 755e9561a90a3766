"""Which models are packaged, and how a file of weights is read and written.

A model is a safetensors file: tensors, and JSON about them in the header. Beside it lies
its card, in Markdown.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medpipe.errors import InputError, UsageError
from medpipe.types import Json

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MODELS",
    "PackagedModel",
    "load_weights",
    "model_card",
    "pack_weights",
    "unpack_weights",
]

FOLDER = Path(__file__).parent
HEADER = "medpipe"
FORMAT = "medpipe-weights-1"
LONGEST_FILE = 2_000_000_000


@dataclass(frozen=True)
class PackagedModel:
    """A model that comes with medpipe.

    Parameters
    ----------
    file : str
        Name of the safetensors file in this folder; the card has the ending ``.md``.
    sha256 : str
        Digest of the file.
    task : str
        What it is for: ``"outcome"`` for models of `medpipe.outcome`.
    """

    file: str
    sha256: str
    task: str = ""


MODELS: dict[str, PackagedModel] = {
    "centerline": PackagedModel(
        "centerline.safetensors",
        "636ff6d17adcd3784a34d6e463d519039c116378deba95f00221bb3cb64a65f2",
        "centerline",
    ),
    "sah-mortality-demo": PackagedModel(
        "sah-mortality-demo.safetensors",
        "b22acf9eca628dde73aa9f5a3a09fa97ebd924be252ab64455fd74490fa73d7d",
        "outcome",
    ),
    "synthesis-hippocampus": PackagedModel(
        "synthesis-hippocampus.safetensors",
        "0b749978e4f58e1f075e96b9a438ba03841e2e3dacd1fb986997ffc20cdb8cea",
        "synthesis",
    ),
    "synthesis-brain": PackagedModel(
        "synthesis-brain.safetensors",
        "72b53ef9112ddeef90d6bd8c540ea2bde3457c280ec896ac25077cb6d3c02058",
        "synthesis",
    ),
}
"""Models by name."""


def load_weights(name_or_path: str | Path) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Return the tensors of a model and what its header says about them.

    Parameters
    ----------
    name_or_path : str or Path
        A name in `MODELS`, or a file that `pack_weights` made.

    Returns
    -------
    tensors : dict of Tensor
        On the CPU, in the precision of the file.
    metadata : dict of JSON values

    Raises
    ------
    UsageError
        If there is neither such a model nor such a file.
    InputError
        If the file is damaged or no safetensors file of medpipe, or a packaged file is not
        the one that belongs to this version.
    """
    packaged = MODELS.get(str(name_or_path))
    file = Path(name_or_path) if packaged is None else FOLDER / packaged.file
    if packaged is None and not file.is_file():
        raise UsageError(
            "no such model",
            expected=f"{', '.join(MODELS) or 'none is packaged here'}, or a .safetensors file",
        )
    try:
        if file.stat().st_size > LONGEST_FILE:
            raise _wrong(file.name, "it is too large")
        content = file.read_bytes()
    except OSError:
        raise InputError("the model cannot be read", where=file.name) from None
    if packaged is not None and hashlib.sha256(content).hexdigest() != packaged.sha256:
        raise InputError(
            "the model is not the one that belongs to this version of medpipe",
            where=file.name,
            expected=f"sha256 {packaged.sha256[:12]}…",
            hint="install medpipe again",
        )
    return unpack_weights(content, file.name)


def model_card(name: str) -> str:
    """Return the card of a packaged model, in Markdown.

    Raises
    ------
    UsageError
        If there is no such model.
    """
    if name not in MODELS:
        raise UsageError("no such model", expected=", ".join(MODELS) or "none is packaged")
    return (FOLDER / MODELS[name].file).with_suffix(".md").read_text("utf-8")


def pack_weights(tensors: dict[str, Tensor], metadata: dict[str, Json]) -> bytes:
    """Return a model as the content of a safetensors file, the same bytes for the same model."""
    from safetensors.torch import save

    text = json.dumps(
        {"format": FORMAT, **metadata}, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    ordered = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    return save(ordered, metadata={HEADER: text})


def unpack_weights(
    content: bytes, where: str | None = None
) -> tuple[dict[str, Any], dict[str, Json]]:
    """Return tensors and metadata of what `pack_weights` made; nothing in it is run.

    Raises
    ------
    InputError
        If it is something else; `where` says in which file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata = json.loads(header["__metadata__"][HEADER])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        raise _wrong(where, "it is damaged, or no safetensors file") from None
    if not isinstance(metadata, dict) or metadata.pop("format", None) != FORMAT:
        raise _wrong(where, "it holds something else")
    return tensors, metadata


def _wrong(where: str | None, why: str) -> InputError:
    return InputError(
        f"not a model that can be used: {why}",
        where=where,
        expected="a .safetensors file written by medpipe",
    )
