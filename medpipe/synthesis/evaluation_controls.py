"""Gates of an evaluation, and planted sets that each of them must stop.

A gate that lets its planted set through sees nothing at this number of cases: what it says
of the synthetic set is then void, whatever it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from medpipe.errors import StepError
from medpipe.synthesis.evaluation_parts import Aligned, anatomy, privacy_of
from medpipe.synthesis.evaluation_sets import EvaluationSettings, SynthesisSet
from medpipe.synthesis.metrics._figures import Floats
from medpipe.synthesis.metrics.agreement import condition_agreement
from medpipe.synthesis.metrics.distances import rms_distances
from medpipe.synthesis.metrics.ms_ssim import ms_ssim_pairs
from medpipe.synthesis.metrics.repeats import repeats_of_distances
from medpipe.synthesis.metrics.t_maps import realign

__all__ = ["gates_of", "plant_controls", "require_controls", "void_gates"]

NOISE = 0.02
"""Of the copies, as a share of the range of values."""
MODES = 2
"""Cases that a collapsed set repeats."""
MODE_NOISE = 0.005
TIMES = 3.0
"""A share of differing voxels above so many times its floor is no chance of halves."""
CHANCE = 0.05

RULES = {
    "copies": "fails if the privacy verdict is copies; undecided is no pass",
    "diversity": "fails if pairs of synthetic volumes are more alike than pairs of real ones "
    "(the interval of their similarity is above that of the real pairs), or if they repeat each "
    "other: the nearest other case is so near that the interval of its distance over that of "
    "real cases is below the limit of copies",
    "conditions": "fails if the interval of the correlation of requested and measured values "
    "of any condition reaches 0",
    "place": f"fails if, without re-alignment, more than {TIMES:g} times the floor of real "
    f"halves differs and a permutation test has p below {CHANCE:g}",
    "anatomy": f"fails if, after re-alignment, more than {TIMES:g} times the floor of real "
    f"halves differs and a permutation test has p below {CHANCE:g}",
}
"""What each gate stops."""


def gates_of(evaluation: Mapping[str, Any], limit: float) -> list[dict[str, Any]]:
    """Return the gates of an evaluation: name, rule, what was found, and whether it passed.

    ``passed`` is None where the figures do not decide.

    Parameters
    ----------
    evaluation : mapping
    limit : float
        Cases of a set that lie nearer to each other than this share of real distances are
        repeats, as those that lie so near to training cases are copies.
    """
    verdict = evaluation["privacy"]["verdict"]
    passed = {"copies": False, "no copies found": True}.get(verdict)
    found = [("copies", passed, verdict)]
    pairs, nearest = (evaluation["distribution"][k] for k in ("ms_ssim", "nearest_other"))
    found.append(("diversity", *_diverse(pairs, nearest, limit)))
    if evaluation["conditions"]:
        rows = {c["name"]: c["rows"]["synthetic"]["pearson"] for c in evaluation["conditions"]}
        found.append(("conditions", *_followed(rows)))
    for name, key in (("place", "as_generated"), ("anatomy", "realigned")):
        found.append((name, *_alike(evaluation["t_map"][key])))
    return [
        {"name": name, "rule": RULES[name], "passed": passed, "found": said, "void": False}
        for name, passed, said in found
    ]


def _diverse(
    pairs: Mapping[str, Any], nearest: Mapping[str, Any], limit: float
) -> tuple[bool | None, str]:
    made, real, ratio = pairs["figure"], pairs["floor"], nearest["ratio"]
    said = (
        f"similarity of synthetic pairs {made['value']:.3f}, of real pairs {real['value']:.3f}; "
        f"distance to the nearest other {nearest['figure']['value']:.3g}, of real cases "
        f"{nearest['floor']['value']:.3g}"
    )
    alike = None if None in (made["low"], real["high"]) else made["low"] > real["high"]
    repeated = None if ratio["high"] is None else ratio["high"] < limit
    if alike or repeated:
        return False, said
    return (None if None in (alike, repeated) else True), said


def _followed(rows: Mapping[str, Mapping[str, Any]]) -> tuple[bool | None, str]:
    said = ", ".join(
        f"{name} r {'not determined' if r['value'] is None else format(r['value'], '.2f')}"
        for name, r in rows.items()
    )
    lows = [-1.0 if r["value"] is None else r["low"] for r in rows.values()]
    if any(low is None for low in lows):
        return None, said
    return min(lows) > 0, said


def _alike(found: Mapping[str, Any]) -> tuple[bool | None, str]:
    made, real = (found["share"][k]["value"] for k in ("figure", "floor"))
    said = (
        f"{100 * made:.2f} % of voxels differ, {100 * real:.2f} % between real halves, "
        f"p = {found['p']:.3f}"
    )
    return not (made > TIMES * real and found["p"] < CHANCE), said


def plant_controls(
    train: SynthesisSet, test: SynthesisSet, made: SynthesisSet, aligned: Aligned,
    within_train: Floats, conditions: list[dict[str, Any]], settings: EvaluationSettings,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure four sets that must fail: a copier, a collapsed, a shuffled and a shifted one.

    Parameters
    ----------
    train, test, made : SynthesisSet
    aligned : Aligned
        The same.
    within_train : array (T, T)
        Distances between the aligned training cases.
    conditions : list of dict
        Those of the evaluation.
    settings : EvaluationSettings

    Returns
    -------
    list of dict of JSON values
        ``name``, ``gate``, ``what`` it is, ``caught``, and what was ``found``.
    """
    rng = np.random.default_rng(settings.seed + 1)
    out = [
        _copier(aligned, settings),
        _collapsed(test, made, aligned, within_train, settings),
    ]
    if conditions:
        out.append(_shuffled(conditions, settings, rng))
    out.append(_shifted(train, test, settings))
    return out


def _noisy(images: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    noise = torch.randn(images.shape, generator=made).to(images)
    return images + share * (images.max() - images.min()) * noise


def _row(name: str, gate: str, what: str, caught: bool, found: str) -> dict[str, Any]:
    return {"name": name, "gate": gate, "what": what, "caught": caught, "found": found}


def _copier(aligned: Aligned, settings: EvaluationSettings) -> dict[str, Any]:
    n = min(len(aligned.train), len(aligned.made))
    copies = _noisy(aligned.train[:n], NOISE, settings.seed + 1)
    found, area, _ = privacy_of(aligned, settings, copies)
    said = f"{found.verdict}: distance {found.to_train.figure.value:.3g}, "
    said += f"real to real {found.to_train.floor.value:.3g}; membership {area.value:.2f}"
    what = f"{n} training cases with {100 * NOISE:g} % of noise"
    return _row("copier", "copies", what, found.verdict == "copies", said)


def _collapsed(
    test: SynthesisSet, made: SynthesisSet, aligned: Aligned, within_train: Floats,
    settings: EvaluationSettings,
) -> dict[str, Any]:  # fmt: skip
    repeated = [i % min(MODES, len(made)) for i in range(max(len(made), 4))]
    planted, moved = (
        _noisy(images[repeated], MODE_NOISE, settings.seed + 2)
        for images in (made.images, aligned.made)
    )
    pairs = ms_ssim_pairs(
        test.images, planted, pairs=settings.pairs, seed=settings.seed, level=settings.level
    )
    inside = aligned.kept(moved)
    nearest = repeats_of_distances(
        rms_distances(inside, inside), within_train, **settings.resampled()
    )
    passed, said = _diverse(pairs.to_dict(), nearest.to_dict(), settings.limit)
    what = f"{MODES} synthetic cases, repeated"
    return _row("collapsed", "diversity", what, passed is False, said)


def _shuffled(
    conditions: list[dict[str, Any]], settings: EvaluationSettings, rng: np.random.Generator
) -> dict[str, Any]:
    rows = {}
    for condition in conditions:
        points = condition["points"]["synthetic"]
        x, y = (np.asarray(points[k]) for k in ("requested", "measured"))
        found = condition_agreement(x[rng.permutation(x.size)], y, **settings.resampled())
        rows[condition["name"]] = found.pearson.to_dict()
    passed, said = _followed(rows)
    what = "conditions of other cases, at random"
    return _row("shuffled", "conditions", what, passed is False, said)


def _padded(images: torch.Tensor, before: int, after: int) -> torch.Tensor:
    """Return images (n, I, J, K) with more voxels along each axis, the edge repeated."""
    return functional.pad(images[:, None], (before, after) * 3, mode="replicate")[:, 0]


def _shifted(
    train: SynthesisSet, test: SynthesisSet, settings: EvaluationSettings
) -> dict[str, Any]:
    """Move real cases: the t map must see it before the re-alignment, and not after.

    Both sets get a margin, so that what is moved is not cut.
    """
    by = settings.shift_voxels
    real, planted = _padded(test.images, by, by), _padded(train.images, 2 * by, 0)
    passed, before = _alike(anatomy(real, planted, settings))
    moved = realign(real, planted, spacing_mm=settings.spacing_mm, alignment=settings.alignment)
    after, said = _alike(anatomy(moved.real, moved.synthetic, settings, moved.inside))
    what = f"real training cases, moved by {by} voxels along each axis"
    found = f"before re-alignment {before}; after it {said}"
    return _row("shifted", "place", what, passed is False and after is True, found)


def void_gates(gates: list[dict[str, Any]], controls: list[dict[str, Any]]) -> None:
    """Mark the gates that let their planted set through: they decide nothing."""
    through = {c["gate"]: c["name"] for c in controls if not c["caught"]}
    for gate in gates:
        if gate["name"] in through:
            gate |= {"passed": None, "void": True}


def require_controls(evaluation: Mapping[str, Any]) -> None:
    """Demand that the planted sets were caught.

    Raises
    ------
    StepError
        If one was not, or none were planted.
    """
    controls = evaluation.get("controls") or []
    if not controls:
        raise StepError("no controls were planted", hint="evaluate with controls")
    through = [c["name"] for c in controls if not c["caught"]]
    if through:
        raise StepError(
            f"the evaluation does not see planted faults: {', '.join(through)}",
            expected="every planted set fails its gate",
            hint="take more cases; the gates of these are void",
        )
