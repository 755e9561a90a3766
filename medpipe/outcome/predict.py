"""The probability of an outcome from a prepared CT: with its spread, its calibration, its limits.

Needs neither scikit-learn nor pytorch-ignite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor, nn

from medpipe.errors import InputError, StepError, UsageError
from medpipe.geometry import spacing_mm
from medpipe.outcome.bundle import OutcomeBundle, OutcomeFacts
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.ensemble import event_logit, predict_logits
from medpipe.outcome.metrics.shares import wilson
from medpipe.outcome.recalibrate import recalibration_from_dict
from medpipe.steps._base import affine_of, facts_of
from medpipe.types import Json

__all__ = [
    "OutcomePrediction",
    "calibration_groups",
    "check_model_grid",
    "outcome_logit",
    "predict_outcome",
]

FORMAT = "medpipe-prediction-1"
GRID_TOL_MM = 0.01
SAME_MODEL = "give the steps grid, predict and saliency the same model"


@dataclass(frozen=True)
class OutcomePrediction:
    """What a model says about a patient, in the words that its outputs use.

    Parameters
    ----------
    outcome : str
        What the probability is of.
    probability : float
        Of the ensemble: the mean of the members' log odds, recalibrated.
    low, high : float, optional
        Lowest and highest member, each recalibrated; None with a single member. How far the
        members differ is no statement about how often the outcome occurs.
    calibration_low, calibration_high : float, optional
        Interval of 95 % of the recalibrated probability, from the uncertainty of the
        recalibration alone; None without one.
    members : tuple of float
        Recalibrated probability of each.
    logit : float
        Mean log odds before recalibration.
    recalibrated : bool
        Whether the model has a recalibration.
    observed : dict, optional
        What was observed in training among patients with such a probability: ``n``,
        ``events``, ``share``, ``low``, ``high`` (Wilson, 95 %), ``from``, ``to``.
    threshold : float, optional
        Operating point.
    threshold_rule : str
    above : bool, optional
        Whether the probability is at or above the operating point.
    model : dict
        Name, version and digest of the model, its members, and whether it mirrors.
    notice : str
        What must be said with every figure.
    findings : tuple of dict
        What was noticed in the image and in the prediction.
    """

    outcome: str
    probability: float
    low: float | None
    high: float | None
    calibration_low: float | None
    calibration_high: float | None
    members: tuple[float, ...]
    logit: float
    recalibrated: bool
    observed: Mapping[str, Json] | None
    threshold: float | None
    threshold_rule: str
    above: bool | None
    model: Mapping[str, Json]
    notice: str
    findings: tuple[Mapping[str, Json], ...] = ()

    @property
    def spread_text(self) -> str:
        """What `low` and `high` mean."""
        if self.low is None:
            return "one member: no spread"
        kind = "recalibrated" if self.recalibrated else "not recalibrated"
        return f"lowest and highest of {len(self.members)} members of the ensemble, {kind}"

    @property
    def calibration_text(self) -> str:
        """What `calibration_low` and `calibration_high` mean."""
        if self.calibration_low is None:
            return "not recalibrated: no interval"
        return (
            "95 % interval of the recalibration, fitted on predictions of single networks out of "
            "fold; that of the ensemble is not known"
        )

    @property
    def observed_text(self) -> str:
        """What was observed among patients like this one, in a sentence."""
        seen: Any = self.observed
        if not seen:
            return ""
        return (
            f"of {seen['n']} cases of the training with a probability of "
            f"{seen['from']:.2f} to {seen['to']:.2f}, {seen['events']} had the outcome "
            f"({100 * seen['share']:.0f} %, 95 % interval {100 * seen['low']:.0f} to "
            f"{100 * seen['high']:.0f} %)"
        )

    def to_json(self) -> bytes:
        """Return the document of the step ``predict_outcome``."""
        record = asdict(self) | {
            "format": FORMAT,
            "spread": self.spread_text,
            "calibration": self.calibration_text,
            "observed_text": self.observed_text,
        }
        text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
        return (text + "\n").encode()

    @classmethod
    def from_json(cls, document: bytes) -> OutcomePrediction:
        """Rebuild what `to_json` described.

        Raises
        ------
        InputError
            If it is another document.
        """
        try:
            record = json.loads(document)
            if record.pop("format") != FORMAT:
                raise ValueError
            for said in ("spread", "calibration", "observed_text"):
                record.pop(said)
            for name in ("members", "findings"):
                record[name] = tuple(record[name])
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(
                "not a prediction that can be used", expected="a document of predict_outcome"
            ) from None

    def row(self) -> dict[str, Json]:
        """Return the flat row for tables."""
        seen: Mapping[str, Json] = self.observed or {}
        return {
            "outcome": self.outcome,
            "probability": self.probability,
            "lowest_member": self.low,
            "highest_member": self.high,
            "calibration_low": self.calibration_low,
            "calibration_high": self.calibration_high,
            "observed_share": seen.get("share"),
            "observed_low": seen.get("low"),
            "observed_high": seen.get("high"),
            "observed_n": seen.get("n"),
            "threshold": self.threshold,
            "side": None if self.above is None else ("above" if self.above else "below"),
            **{f"member_{n}": p for n, p in enumerate(self.members, 1)},
            "notice": self.notice,
            "model": self.model["name"],
            "model_digest": str(self.model["digest"])[:12],
            "findings": "; ".join(str(f["message"]) for f in self.findings),
        }


def outcome_logit(facts: OutcomeFacts) -> Callable[[Tensor], Tensor]:
    """Return what makes log odds of the outcome (B,) of the outputs (B, K) of a network."""
    survival = bool(facts.interval_ends_days)
    return lambda outputs: event_logit(outputs, survival=survival)


def check_model_grid(bundle: OutcomeBundle, image: MetaTensor) -> None:
    """Raise StepError unless an image (1, I, J, K) is on a grid like the one of training.

    An image that was brought to the grid of another model (step ``model_grid``) is refused
    too, although the grids may be alike: one of the steps was given the wrong model.
    """
    facts = bundle.facts
    step, size = spacing_mm(affine_of(image)), tuple(image.shape[1:])
    made: Any = facts_of(image).get("head_grid") or {}
    margin = float(made.get("top_margin_mm", facts.top_margin_mm))
    off = np.abs(step - facts.spacing_mm).max()
    if (
        size != facts.size_voxels
        or off > GRID_TOL_MM
        or abs(margin - facts.top_margin_mm) > GRID_TOL_MM
    ):
        raise StepError(
            "the image is not on the grid of the model",
            expected=_grid_text(facts.size_voxels, facts.spacing_mm, facts.top_margin_mm),
            got=_grid_text(size, step.tolist(), margin),
            hint=SAME_MODEL,
        )
    owner = str(made.get("model_digest", bundle.digest))
    if owner != bundle.digest:
        raise StepError(
            "the image was prepared for another model",
            expected=f"one prepared for {facts.name}, digest {bundle.digest[:12]}",
            got=f"for {str(made.get('model'))[:60]}, digest {owner[:12]}",
            hint=SAME_MODEL,
        )


def _grid_text(size: Sequence[int], step: Sequence[float], margin: float) -> str:
    voxels = " × ".join(str(n) for n in size)
    return f"{voxels} voxels of {' × '.join(f'{s:g}' for s in step)} mm, {margin:g} mm above"


def predict_outcome(
    bundle: OutcomeBundle,
    networks: Sequence[nn.Module],
    hu: Tensor,
    *,
    findings: Sequence[Mapping[str, Json]] = (),
) -> OutcomePrediction:
    """Return the prediction of an ensemble.

    Parameters
    ----------
    bundle : OutcomeBundle
    networks : sequence of Module
        Those of the bundle, on the device of `hu`.
    hu : Tensor (1, I, J, K)
        HU on the grid of the model.
    findings : sequence of dict
        What was noticed in the image before.

    Raises
    ------
    StepError
        If a probability is not a number.
    """
    facts = bundle.facts
    channels = ct_channels(hu.float(), facts.preset)[None]
    outputs = predict_logits(networks, channels, tta=facts.tta)
    logits = np.array(outcome_logit(facts)(outputs[:, 0]).tolist(), float)
    if not np.isfinite(logits).all():
        raise StepError("the model gives no number for this image", hint="check the image in HU")
    mean = logits[None].mean(1)
    low = high = None
    if facts.recalibration is None:
        members, probability = special.expit(logits), special.expit(mean)
    else:
        recalibration = recalibration_from_dict(dict(facts.recalibration))
        members, probability = recalibration.apply(logits), recalibration.apply(mean)
        low, high = (_rounded(end[0]) for end in recalibration.interval(mean))
    members, probability = [_rounded(p) for p in members], _rounded(probability[0])
    several = len(members) > 1
    return OutcomePrediction(
        outcome=facts.outcome,
        probability=probability,
        low=min(members) if several else None,
        high=max(members) if several else None,
        calibration_low=low,
        calibration_high=high,
        members=tuple(members),
        logit=_rounded(mean[0]),
        recalibrated=facts.recalibration is not None,
        observed=_observed(facts.calibration, probability),
        threshold=facts.threshold,
        threshold_rule=facts.threshold_rule,
        above=None if facts.threshold is None else probability >= facts.threshold,
        model={
            "name": facts.name,
            "version": facts.version,
            "digest": bundle.digest,
            "members": len(members),
            "mirrored_copies": bool(facts.tta),
            "simulated": facts.simulated,
            "demonstration": facts.demonstration,
        },
        notice=facts.notice,
        findings=tuple(dict(f) for f in findings),
    )


def _rounded(value: float) -> float:
    """Return six digits: more would differ between machines."""
    return float(f"{value:.6g}")


def _observed(groups: Sequence[Mapping[str, Json]], probability: float) -> dict[str, Json] | None:
    """Return the group of out-of-fold predictions that a probability falls into."""
    for group in groups:
        if probability <= float(group["to"]) or group is groups[-1]:  # type: ignore[arg-type]
            return dict(group)
    return None


def calibration_groups(
    outcome: ArrayLike, probability: ArrayLike, *, groups: int = 5
) -> list[dict[str, Json]]:
    """Group out-of-fold predictions by their probability and count outcomes.

    Parameters
    ----------
    outcome : array (n,)
        0 or 1.
    probability : array (n,)
        Of patients that the model which says it has not seen.
    groups : int
        Of about equal size; fewer where probabilities are equal.

    Returns
    -------
    list of dict
        ``from``, ``to``, ``n``, ``events``, ``share``, ``low``, ``high``: limits of the
        group, what was observed, and its Wilson interval of 95 % (doi 10.2307/2276774).

    Raises
    ------
    UsageError
        If the arrays do not fit.
    """
    y, p = np.asarray(outcome, float), np.asarray(probability, float)
    if y.ndim != 1 or y.shape != p.shape or not y.size or not np.isfinite(p).all():
        raise UsageError("outcomes and probabilities do not fit", expected="two arrays (n,)")
    edges = np.unique(np.quantile(p, np.linspace(0, 1, groups + 1)))
    place = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, max(len(edges) - 2, 0))
    rows: list[dict[str, Json]] = []
    for number in np.unique(place):
        own = place == number
        n, events = int(own.sum()), int(y[own].sum())
        low, high = (float(end) for end in wilson(events, n))
        rows.append(
            {
                "from": float(p[own].min()),
                "to": float(p[own].max()),
                "n": n,
                "events": events,
                "share": events / n,
                "low": low,
                "high": high,
            }
        )
    return rows
