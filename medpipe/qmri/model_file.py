"""A trained PERK model as one file: safetensors with a JSON header that says all about it.

The tensors are numbers and nothing else; what they mean (protocol, priors, units, noise,
seed, kernel scale, ridge, score) stands in the header in readable text. Nothing in the
file is ever run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

import medpipe
from medpipe.errors import InputError, MedpipeError
from medpipe.io.atomic import write_bytes_atomic
from medpipe.qmri.features import FourierFeatures
from medpipe.qmri.perk_model import Guard, Perk
from medpipe.qmri.priors import prior_from_dict
from medpipe.qmri.protocol import Protocol
from medpipe.qmri.quantities import QUANTITIES
from medpipe.qmri.training import Recipe

__all__ = ["load_perk", "save_perk"]

FORMAT = "medpipe-perk"
VERSION = 1
HEADER = "medpipe"
LONGEST_FILE = 1_000_000_000
"""Bytes; the usual model has 100 thousand."""


def save_perk(model: Perk, path: str | Path) -> None:
    """Write a trained model; the file is there whole or not at all.

    Parameters
    ----------
    model : Perk
    path : str or Path
        Usually with the ending ``.safetensors``.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {
        "frequencies": model.features.frequencies.contiguous(),
        "phases": model.features.phases.contiguous(),
        "readout": model.readout.contiguous(),
        "offset": model.offset.contiguous(),
    }
    text = json.dumps(_header(model), ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(Path(path), save(tensors, metadata={HEADER: text}))


def _header(model: Perk) -> dict[str, Any]:
    recipe = model.recipe
    guard = model.guard
    return {
        "format": FORMAT,
        "version": VERSION,
        "medpipe": medpipe.__version__,
        "protocol": recipe.protocol.to_dict(),
        "priors": {name: prior.to_dict() for name, prior in recipe.priors.items()},
        "units": {name: QUANTITIES[name].unit for name in recipe.priors},
        "regressed": list(recipe.regressed),
        "noise_sigma": list(recipe.noise_sigma),
        "normalize": recipe.normalize,
        "logarithm": recipe.logarithm,
        "seed": recipe.seed,
        "samples": model.samples,
        "length_scale": model.length_scale,
        "ridge": model.ridge,
        "score": model.score,
        "guard": {"misfit": guard.misfit, "limit": guard.limit, "m0": guard.m0},
    }


def load_perk(path: str | Path, protocol: Protocol | None = None) -> Perk:
    """Read a trained model.

    Parameters
    ----------
    path : str or Path
        What `save_perk` wrote.
    protocol : Protocol, optional
        The protocol of the images: a model of another one is refused.

    Raises
    ------
    InputError
        If the file cannot be read, is damaged or no model, or was trained for another
        protocol; the error then names what differs.
    """
    file = Path(path)
    header, tensors = _read(file)
    try:
        model = _model(header, tensors)
    except MedpipeError as error:
        raise _wrong(file, f"its header is wrong ({error.what})") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise _wrong(file, "its header lacks something or has another form") from None
    problem = _misfit(model, tensors)
    if problem:
        raise _wrong(file, problem)
    differences = protocol.difference(model.protocol) if protocol else []
    if differences:
        raise InputError(
            "the model was trained for another protocol than that of the images",
            where=file.name,
            got="; ".join(differences),
            hint="train a model for this protocol",
        )
    return model


def _wrong(file: Path, why: str) -> InputError:
    return InputError(
        f"not a model that can be used: {why}",
        where=file.name,
        expected="a file written by save_perk",
        hint="train the model again",
    )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        if file.stat().st_size > LONGEST_FILE:
            raise _wrong(file, "it is too large")
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(HEADER)
            names = set(opened.keys())
            if text is None or names != {"frequencies", "phases", "readout", "offset"}:
                raise _wrong(file, "it holds something else")
            tensors = {name: opened.get_tensor(name) for name in names}
    except OSError:
        raise InputError("the model file cannot be read", where=file.name) from None
    except SafetensorError:
        raise _wrong(file, "it is damaged, or no safetensors") from None
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong(file, "its header is no JSON") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _wrong(file, "it holds something else")
    if header.get("version") != VERSION:
        raise InputError(
            "the model file has another version",
            where=file.name,
            expected=str(VERSION),
            hint="use the medpipe that wrote it, or train the model again",
        )
    return header, tensors


def _model(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Perk:
    protocol = Protocol.from_dict(header["protocol"])
    priors = {str(name): prior_from_dict(p, name) for name, p in header["priors"].items()}
    recipe = Recipe(
        protocol,
        priors,
        tuple(float(sigma) for sigma in header["noise_sigma"]),
        bool(header["normalize"]),
        bool(header["logarithm"]),
        int(header["seed"]),
    )
    score = header["score"]
    return Perk(
        recipe,
        FourierFeatures(tensors["frequencies"], tensors["phases"]),
        tensors["readout"],
        tensors["offset"],
        float(header["length_scale"]),
        float(header["ridge"]),
        int(header["samples"]),
        None if score is None else float(score),
        Guard(**{name: float(header["guard"][name]) for name in ("misfit", "limit", "m0")}),
    )


def _misfit(model: Perk, tensors: dict[str, torch.Tensor]) -> str | None:
    """Return in which way header and tensors do not belong together."""
    recipe, protocol = model.recipe, model.protocol
    if set(recipe.priors) != {*protocol.latents, *protocol.knowns}:
        return "its priors are not those of its protocol"
    if len(recipe.noise_sigma) != protocol.count:
        return "its noise is not that of its protocol"
    regressors, latents = protocol.count + len(protocol.knowns), len(recipe.regressed)
    count = tensors["phases"].numel()
    shapes = {
        "frequencies": (regressors, count),
        "phases": (count,),
        "readout": (latents, count),
        "offset": (latents,),
    }
    for name, shape in shapes.items():
        found = tensors[name]
        if tuple(found.shape) != shape or found.dtype != torch.float64 or count == 0:
            return f"its {name} have another size or type"
        if not bool(found.isfinite().all()):
            return f"its {name} are not finite"
    numbers = (model.length_scale, model.ridge, *recipe.noise_sigma)
    if not all(math.isfinite(x) and x > 0 for x in numbers):
        return "its settings are no numbers above 0"
    return None
