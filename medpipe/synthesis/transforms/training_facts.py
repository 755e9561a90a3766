"""What a trained generator says about its training: curves and a table."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from monai.config.type_definitions import KeysCollection

from medpipe.errors import InputError, StepError
from medpipe.figures.chart import loss_chart_svg
from medpipe.models import unpack_weights
from medpipe.steps._base import ArrayStep, DictStep, check_choice
from medpipe.types import Json

__all__ = [
    "SynthesisCurve",
    "SynthesisCurveD",
    "SynthesisCurveDict",
    "SynthesisCurved",
    "SynthesisTable",
    "SynthesisTableD",
    "SynthesisTableDict",
    "SynthesisTabled",
]

_PARTS = {
    "tokens": {"tokeniser": "tokeniser", "prior": "prior"},
    "latents": {"tokeniser": "autoencoder", "prior": "denoiser"},
}
"""What the two trainings of a route were of, by the stages of `SynthesisCurve`."""
_LABELS = {"prior": "nats per token", "denoiser": "mean squared error"}


class SynthesisCurve(ArrayStep):
    """Draw the loss of a training and of its validations against the iterations.

    Parameters
    ----------
    stage : {"prior", "tokeniser"}
        Of a generator of latents: the denoiser, and the autoencoder.
    """

    def __init__(self, stage: Literal["prior", "tokeniser"] = "prior") -> None:
        self.stage = check_choice("stage", stage, ("prior", "tokeniser"))

    def __call__(self, model: Any) -> bytes:
        """Return an SVG document."""
        header = _header(model)
        name = _PARTS[header["route"]][self.stage]
        part = header["parts"][name]
        part = part if "history" in part else part["facts"]  # a network's own file
        title = f"{name.capitalize()}: best after {part['best_iteration']} iterations"
        return loss_chart_svg(part["history"], title=title, y_label=_LABELS.get(name, "loss"))


class SynthesisCurved(DictStep):
    """Replace trained generators by charts: loss against iteration (.svg).

    Parameters
    ----------
    keys : keys of generators of ``train_synthesis``, replaced by documents
    stage : {"prior", "tokeniser"}
        Whose training is drawn; of a generator of latents the denoiser's, and that of the
        autoencoder.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "2"
    reads = ()
    writes = ()
    files = ()
    makes = "document"
    suffix = ".svg"
    random = False

    def __init__(
        self,
        keys: KeysCollection,
        stage: Literal["prior", "tokeniser"] = "prior",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = SynthesisCurve(stage)


class SynthesisTable(ArrayStep):
    """Say what a generator was trained with and how well its parts do on who was held out."""

    def __call__(self, model: Any) -> dict[str, Json]:
        """Return the table; None where nobody validated.

        Of a prior ``conditional`` and ``unconditional`` are likelihoods in nats per token; of
        a denoiser they are mean squared errors of what it predicts.
        """
        header = _header(model)
        route = header["route"]
        first, second = (header["parts"][_PARTS[route][of]] for of in ("tokeniser", "prior"))
        facts = second["facts"]
        conditions = (second if route == "tokens" else header["parts"])["conditions"]
        shown = first["facts"].get("validation") or {}
        table: dict[str, Any] = {
            **header["facts"],
            "route": route,
            "shape": " x ".join(map(str, header["shape"])),
            **(_of_tokens if route == "tokens" else _of_latents)(first, second),
            "conditions": ", ".join(c["name"] for c in conditions) or None,
            "psnr_db": _mean(shown.get("psnr_db")),
            "perplexity": shown.get("perplexity"),
        }
        for number, dice in enumerate(shown.get("dice") or (), 1):
            table[f"dice_{number}"] = _mean(dice)
        for side in ("trained", "held_out"):
            found = facts.get(side) or {}
            for name in ("conditional", "unconditional", "gain"):
                table[f"{side}_{name}"] = _mean(found.get(name))
        return table


def _of_tokens(tokeniser: dict[str, Any], prior: dict[str, Any]) -> dict[str, Json]:
    return {
        "tokens": int(np.prod(prior["network"]["grid"])),
        "codes": prior["network"]["codes"],
        "tokeniser_best_iteration": tokeniser["best_iteration"],
        "prior_best_iteration": prior["best_iteration"],
    }


def _of_latents(autoencoder: dict[str, Any], denoiser: dict[str, Any]) -> dict[str, Json]:
    return {
        "latent_channels": autoencoder["settings"]["latent_channels"],
        "autoencoder_best_iteration": autoencoder["facts"]["best_iteration"],
        "denoiser_best_iteration": denoiser["facts"]["best_iteration"],
    }


def _mean(figure: dict[str, Any] | None) -> Any:
    """Return the value of a figure, whichever of the two names it has."""
    known = figure or {}
    return known.get("mean", known.get("value"))


class SynthesisTabled(DictStep):
    """Replace trained generators by tables: sizes, held-out quality and likelihoods.

    Parameters
    ----------
    keys : keys of generators of ``train_synthesis``, replaced by tables
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "1"
    reads = ()
    writes = ()
    files = ()
    makes = "table"
    random = False

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.step = SynthesisTable()


def _header(model: Any) -> dict[str, Any]:
    """Return what the header of a generator of ``train_synthesis`` says."""
    if not isinstance(model, bytes):
        raise StepError("the step needs a generator", expected="a document of train_synthesis")
    header: Any = unpack_weights(model)[1]
    if header.get("model") != "generator" or header.get("route") not in _PARTS:
        raise InputError("the model does not say how it was trained", hint="train it again")
    return header


SynthesisCurveD = SynthesisCurveDict = SynthesisCurved
SynthesisTableD = SynthesisTableDict = SynthesisTabled
