"""Volumes of patients that do not exist, as a transform."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import Randomizable

from medpipe.errors import InputError, StepError, UsageError
from medpipe.steps._base import ArrayStep, DictStep, check_choice, rewrap, with_facts
from medpipe.synthesis.generator import DrawnVolume, Generator
from medpipe.synthesis.routes import DrawSettings
from medpipe.types import Finding, Severity

__all__ = [
    "SampleVolume",
    "SampleVolumeD",
    "SampleVolumeDict",
    "SampleVolumed",
    "read_conditions",
]

DEFAULT_MODEL = "synthesis-brain"
LONGEST_ROW = 100_000
"""Bytes of a file of conditions."""

_NOTICE = logging.getLogger("medpipe.notice")


def read_conditions(row: Any) -> dict[str, Any]:
    """Return the conditions of a case: a mapping, or a JSON file that holds one.

    Raises
    ------
    StepError
        If it is an image or a document.
    InputError
        If the file is no JSON object of numbers, texts, true, false and null.
    """
    if isinstance(row, Mapping):
        return dict(row)
    if not isinstance(row, str | os.PathLike):
        raise StepError("the step needs conditions", expected="an input of kind table")
    wrong = InputError(
        "the conditions of the case cannot be read",
        expected='a JSON object such as {"age_years": 70, "sex": "F"}',
    )
    try:
        with Path(row).open("rb") as file:
            content = file.read(LONGEST_ROW + 1)
        found = json.loads(content) if len(content) <= LONGEST_ROW else None
    except (OSError, ValueError, RecursionError):
        raise wrong from None
    if not isinstance(found, dict) or any(isinstance(v, dict | list) for v in found.values()):
        raise wrong
    return found


class SampleVolume(ArrayStep, Randomizable):
    """Draw a volume of a patient that does not exist.

    Parameters
    ----------
    model : str
        Name of a packaged generator, or a file that ``train_synthesis`` made.
    conditions : dict, optional
        Those of every case; what the row of a case says counts more.
    missing : {"refuse", "unknown"}
        What a condition means that neither says: an error, or that it is not known.
    temperature, top_k, top_p, guidance, steps, candidates, corrections, detail
        See `medpipe.synthesis.DrawSettings`.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        conditions: dict[str, bool | int | float | str] | None = None,
        missing: Literal["refuse", "unknown"] = "refuse",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        steps: int = 30,
        candidates: int = 1,
        corrections: int | None = None,
        detail: float | None = None,
    ) -> None:
        self.name = model
        self.fixed = dict(conditions or {})
        self.missing = check_choice("missing", missing, ("refuse", "unknown"))
        self.settings = DrawSettings(
            temperature,
            top_k,
            top_p,
            guidance,
            steps,
            candidates=candidates,
            corrections=corrections,
            detail=detail,
        )
        self.device = torch.device("cpu")
        self._model: Generator | None = None

    @property
    def model(self) -> Generator:
        """The generator, read once, on the device of the step."""
        if self._model is None:
            self._model = Generator.read(self.name)
        return self._model.to(self.device)

    def set_device(self, device: torch.device) -> None:
        """Choose where to draw."""
        self.device = device

    def draw(self, row: Any) -> DrawnVolume:
        """Return image and labels for the conditions of a case; see `read_conditions`.

        The seed comes from the random state of the step; the image knows seed, conditions
        and model.

        Raises
        ------
        UsageError
            If a condition is missing, unknown to the model or outside its range: its name,
            unit and range are said.
        InputError, StepError
            If the conditions cannot be read, or the model is no generator.
        ResourceError
            If memory does not suffice.
        """
        model = self.model
        asked = {**self.fixed, **{k: v for k, v in read_conditions(row).items() if v is not None}}
        absent = model.missing(asked)
        if absent and self.missing == "refuse":
            first = absent[0]
            span = " or ".join(map(str, first.values)) or f"{first.low:g} to {first.high:g}"
            raise UsageError(
                f"{len(absent)} of the conditions of the model are missing: "
                + ", ".join(c.name for c in absent),
                expected=f"{first.name}: {span} {first.unit}".rstrip(),
                hint='say it, or set missing = "unknown"',
            )
        seed = int(self.R.randint(2**31 - 1))
        last: list[Any] = []
        (drawn,) = model.stream([asked], [seed], self.settings, progress=last.append)
        if last and hasattr(last[-1], "tokens_per_s"):
            _NOTICE.info("%.0f tokens/s", last[-1].tokens_per_s)
        facts = {"generated": {"seed": seed, "conditions": asked, "model": model.digest}}
        unknown = Finding(
            "synthesis.unknown_conditions", Severity.WARNING,
            f"conditions that were not said: {', '.join(c.name for c in absent)}",
        )  # fmt: skip
        for image in (drawn.image, drawn.labels):
            if image is not None:
                with_facts(image, facts, [unknown] if absent else [])
        return drawn

    def __call__(self, row: Any) -> Any:
        """Return the image (C, I, J, K) of `draw`."""
        return self.draw(row).image


class SampleVolumed(DictStep, Randomizable):
    """Replace conditions by a volume of a patient who has them and does not exist.

    Parameters
    ----------
    keys : keys of inputs of kind table (a JSON file), or of mappings
    model : str
        Name of a packaged generator, or a file that ``train_synthesis`` made.
    conditions : dict, optional
        Those of every case; what the row of a case says counts more.
    missing : {"refuse", "unknown"}
        What a condition means that neither says: an error, or that it is not known.
    temperature : float
        Of a generator of tokens: below 1 volumes are more alike, and more like the average.
    top_k : int, optional
        Of the same: only so many of the most probable codes are drawn.
    top_p : float, optional
        Of the same: only the most probable codes are drawn that together have this probability.
    guidance : float
        Above 1 conditions count more than they did in training, at twice the cost.
    steps : int
        Of a generator that is a denoiser.
    candidates : int
        Of so many volumes the one is kept whose labels fit the conditions best, at so many
        times the cost.
    corrections : int, optional
        How often, at most, a latent is moved until its labels have what was asked for; each
        costs a decoding, and with a labeller its gradient. By default 6 times, where the
        generator can.
    detail : float, optional
        Share of the fine detail that is put back, which networks leave out; 0: images as
        the networks draw them, intensities not mapped. By default that of the training.
    labels_out : str, optional
        Key that receives the labels, empty ones (and a finding) where the generator draws
        none; with one key alone.
    allow_missing_keys : bool
        Skip keys that are absent.
    """

    version = "5"
    reads = ()
    writes = ("labels_out",)
    files = ("model",)
    makes = "volume"
    random = True

    def __init__(
        self,
        keys: KeysCollection,
        model: str = "synthesis-brain",
        conditions: dict[str, bool | int | float | str] | None = None,
        missing: Literal["refuse", "unknown"] = "refuse",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        steps: int = 30,
        candidates: int = 1,
        corrections: int | None = None,
        detail: float | None = None,
        labels_out: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels_out = labels_out
        self.step = SampleVolume(
            model, conditions, missing, temperature, top_k, top_p, guidance, steps,
            candidates, corrections, detail,
        )  # fmt: skip

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> SampleVolumed:
        """Seed what is drawn."""
        self.step.set_random_state(seed, state)
        return self

    def set_device(self, device: torch.device) -> None:
        """Choose where to draw."""
        self.step.set_device(device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of `data` with each key as a volume."""
        out = dict(data)
        for key in self.key_iterator(out):
            drawn = self.step.draw(out[key])
            out[key] = drawn.image
            if self.labels_out is not None:
                none = drawn.labels is None
                out[self.labels_out] = _no_labels(drawn.image) if none else drawn.labels
        return out


def _no_labels(image: MetaTensor) -> MetaTensor:
    """Return an empty label map that says why it is empty."""
    empty = rewrap(image, torch.zeros_like(image.as_tensor()[:1], dtype=torch.uint8))
    text = "the generator draws no labels: the label map is empty"
    return with_facts(empty, {}, [Finding("synthesis.no_labels", Severity.WARNING, text)])


SampleVolumeD = SampleVolumeDict = SampleVolumed
