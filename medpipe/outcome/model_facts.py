"""What is known of a trained model, as its files hold it and its outputs say it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from medpipe.errors import InputError
from medpipe.types import Json

__all__ = ["DEMONSTRATION", "SIMULATED", "OutcomeFacts", "unusable_model"]

DEMONSTRATION = "demonstration, not for clinical use"
SIMULATED = "trained on simulated patients"
_LISTS = ("spacing_mm", "size_voxels", "calibration", "interval_ends_days")
_GROUP = ("from", "to", "n", "events", "share", "low", "high")


@dataclass(frozen=True)
class OutcomeFacts:
    """What prediction must know about a model, and what its outputs must say.

    Parameters
    ----------
    name : str
        Of the model, in every output.
    outcome : str
        What the probability is of, e.g. ``"death within 3 months"``.
    network : dict
        Fields of `medpipe.outcome.network.OutcomeNetworkSettings`.
    preset : str
        How channels are made of HU (`medpipe.outcome.channels.ct_channels`).
    spacing_mm, size_voxels : three numbers
        The grid that the network was trained on.
    top_margin_mm : float
        Air above the vertex on that grid (`medpipe.outcome.prepare.GridSettings`).
    recalibration : dict, optional
        JSON of a map from logits to probabilities, fitted out of fold.
    threshold : float, optional
        Operating point, as a recalibrated probability.
    threshold_rule : str
        How it was chosen, with what it reached.
    calibration : list of dict
        Groups of out-of-fold predictions (`medpipe.outcome.predict.calibration_groups`).
    tta : bool, or list of lists of int
        Mirrored copies that predictions average over (`medpipe.outcome.ensemble`).
    interval_ends_days : list of float
        Ends of the intervals whose hazards the network gives; empty for two classes. The
        probability is of an event by the last.
    simulated, demonstration : bool
        Both are said in every output.
    version : str
        Of the model.
    summary : str
        One paragraph for its card.
    training : dict
        JSON about the cohort and the training: n, events, digests, settings.
    """

    name: str
    outcome: str
    network: Mapping[str, Json]
    preset: str
    spacing_mm: tuple[float, float, float]
    size_voxels: tuple[int, int, int]
    top_margin_mm: float = 6.0
    recalibration: Mapping[str, Json] | None = None
    threshold: float | None = None
    threshold_rule: str = ""
    calibration: Sequence[Mapping[str, Json]] = ()
    tta: bool | Sequence[Sequence[int]] = False
    interval_ends_days: Sequence[float] = ()
    simulated: bool = False
    demonstration: bool = False
    version: str = "1"
    summary: str = ""
    training: Mapping[str, Json] = field(default_factory=dict)

    @property
    def notice(self) -> str:
        """What every output must say, empty for a model of real patients in earnest."""
        said = [DEMONSTRATION] if self.demonstration else []
        return "; ".join([*said, SIMULATED] if self.simulated else said)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        record = asdict(self)
        for name in _LISTS:
            record[name] = list(record[name])
        return record

    @classmethod
    def from_json(cls, record: Any) -> OutcomeFacts:
        """Rebuild what `to_json` described.

        Raises
        ------
        InputError
            If a fact is absent or of another kind.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(record, dict):
            raise unusable_model("its facts are no table")
        given = {name: value for name, value in record.items() if name in names}
        problem = _problem_of(given)
        if problem:
            raise unusable_model(problem)
        for name in _LISTS:
            if name in given:
                given[name] = tuple(given[name])
        return cls(**given)


def _problem_of(given: dict[str, Any]) -> str:
    """Say what is wrong with facts from JSON, or return an empty text."""
    absent = [n for n in ("name", "outcome", "network", "preset", "spacing_mm", "size_voxels")
              if n not in given]  # fmt: skip
    if absent:
        return f"it does not say {', '.join(absent)}"
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str, "outcome": str, "network": dict, "preset": str, "threshold_rule": str,
        "tta": (bool, list), "interval_ends_days": list, "simulated": bool,
        "demonstration": bool, "version": str, "summary": str, "training": dict,
        "calibration": list,
    }  # fmt: skip
    for name, kind in kinds.items():
        if name in given and not isinstance(given[name], kind):
            return f"{name} is of another kind"
    for name in ("spacing_mm", "size_voxels"):
        if not _three(given[name], whole=name == "size_voxels"):
            return f"{name} is not three numbers above 0"
    if not isinstance(given.get("recalibration"), dict | None):
        return "recalibration is no table"
    for group in given.get("calibration", []):
        if not isinstance(group, dict) or not all(_number(group.get(n)) for n in _GROUP):
            return "calibration is no list of groups"
    flips = given.get("tta", False)
    if isinstance(flips, list) and not all(
        isinstance(axes, list) and all(a in (0, 1, 2) for a in axes) for axes in flips
    ):
        return "tta is no list of axes"
    if not _number(given.get("top_margin_mm", 0)):
        return "top_margin_mm is no number"
    threshold = given.get("threshold")
    if threshold is not None and not (_number(threshold) and 0 <= threshold <= 1):
        return "threshold is no probability"
    return ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _three(value: Any, *, whole: bool) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(_number(v) and v > 0 and (not whole or isinstance(v, int)) for v in value)
    )


def unusable_model(why: str, where: str | None = None) -> InputError:
    """Return the error of a model that cannot be used, in one line."""
    return InputError(
        f"not a model of outcomes that can be used: {why}",
        where=where,
        expected="what medpipe outcome-train writes, of this version",
    )
