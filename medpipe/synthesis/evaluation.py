"""How good, how useful and how private synthetic volumes are, in one record.

Every figure stands beside what real cases reach against real cases. The real cases that a
set is compared with are held out: neither the generator nor the segmenter has seen them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike

from medpipe.errors import InputError
from medpipe.stats.interval import Interval
from medpipe.synthesis.evaluation_conditions import check_conditions, conditions_of
from medpipe.synthesis.evaluation_controls import gates_of, plant_controls, void_gates
from medpipe.synthesis.evaluation_parts import (
    Aligned,
    align_sets,
    anatomy,
    check_utility,
    diversity,
    likelihood_gaps,
    privacy_of,
    spread,
    utility_of,
    volumes_of,
)
from medpipe.synthesis.evaluation_pictures import pair_pictures, t_map_pictures
from medpipe.synthesis.evaluation_sets import (
    EvaluationSettings,
    Measured,
    SynthesisSet,
    UtilityPlan,
)
from medpipe.synthesis.metrics._figures import Floats
from medpipe.synthesis.metrics.distances import rms_distances
from medpipe.synthesis.metrics.privacy import Privacy
from medpipe.synthesis.metrics.repeats import repeats_of_distances
from medpipe.synthesis.segmenter import SegmenterModel
from medpipe.synthesis.segmenter_measures import measure_segmenter

__all__ = ["SCHEMA", "evaluate_synthesis"]

SCHEMA = 1
FEWEST = 4
"""Cases of each set."""


def evaluate_synthesis(
    real_train: SynthesisSet,
    real_test: SynthesisSet,
    synthetic: SynthesisSet,
    conditions: Mapping[str, ArrayLike] | None = None,
    *,
    segmenter: SegmenterModel,
    settings: EvaluationSettings,
    measures: Mapping[str, Measured] | None = None,
    reconstruction: torch.Tensor | None = None,
    likelihoods: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    utility: UtilityPlan | None = None,
    cost: Mapping[str, Any] | None = None,
    controls: bool = False,
    study: Mapping[str, Any] | None = None,
    simulated: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a set of synthetic volumes.

    Parameters
    ----------
    real_train : SynthesisSet
        Cases that the generator was trained with.
    real_test : SynthesisSet
        Cases that neither generator nor segmenter has seen; no patient is in both sets.
    synthetic : SynthesisSet
        On the same grid; its labels, if it has any, are used to train with and for nothing
        else: what is measured is measured in the images.
    conditions : mapping of name to array (n,), optional
        What was requested of each synthetic case. A region's name is a volume in mm³.
    segmenter : SegmenterModel
        Trained with real cases alone; its features are those of every distance of features.
    settings : EvaluationSettings
    measures : mapping of name to Measured, optional
        How conditions are measured that are no region's volume in mm³.
    reconstruction : Tensor, shape (n, I, J, K), optional
        Images of `real_test` after the tokeniser and back, for the second ceiling.
    likelihoods : mapping of name to pair of arrays, optional
        Of a set of cases: negative log likelihood with its conditions, and with none.
    utility : UtilityPlan, optional
    cost : mapping, optional
        ``seconds_per_sample``, ``peak_bytes``, ``device``: as measured where it was drawn.
    controls : bool
        Plant four sets that must fail, and void the gates that let theirs through.
    study : mapping, optional
        Facts for the report; JSON values without identifiers.
    simulated : bool
        The real cases are simulated: every figure says so.
    progress : callable, optional
        Told the name of each part when it begins.

    Returns
    -------
    dict of JSON values
        ``gates`` say what passed; the other parts are described in
        ``docs/reference/synthesis-evaluation.md``.

    Raises
    ------
    InputError
        If the sets do not compare.
    UsageError
        If a condition cannot be measured, or a setting is wrong.
    StepError
        If a volume cannot be aligned.
    """
    tell = progress or (lambda name: None)
    s = settings
    _check_sets(real_train, real_test, synthetic, reconstruction)
    check_conditions(conditions or {}, measures or {}, len(synthetic), len(real_test), s)
    if utility:
        check_utility(utility, real_train, real_test, synthetic)
    tell("segmenting")
    seen, seen_test = (segmenter.labels(x.images) for x in (synthetic, real_test))
    features = tuple(segmenter.features(x.images) for x in (real_test, synthetic))
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "n": {"train": len(real_train), "test": len(real_test), "synthetic": len(synthetic)},
        "shape": list(synthetic.images.shape[1:]),
        "spacing_mm": list(s.spacing_mm),
        "level": s.level,
        "simulated": simulated,
        "study": dict(study or {}),
        "features": {"name": segmenter.name, "width": int(features[0].shape[1])},
        "segmenter": _ceiling(segmenter, real_test, s),
    }
    tell("distributions")
    out["distribution"] = diversity((real_test.images, synthetic.images), features, s)  # type: ignore[arg-type]
    out["volumes"] = volumes_of(seen_test, seen, s)
    out["volumes"]["values"] = {
        name: {k: spread(v) for k, v in sets.items()}
        for name, sets in out["volumes"]["values"].items()
    }
    tell("conditions")
    out["conditions"] = conditions_of(
        conditions or {}, synthetic, seen, real_test, seen_test, s, measures=measures or {},
        reconstruction=reconstruction, segment=segmenter.labels,
    )  # fmt: skip
    tell("alignment")
    aligned = align_sets(real_train.images, real_test.images, synthetic.images, s)
    tell("t maps and distances")
    out["t_map"] = _t_maps(real_test, synthetic, aligned, s)
    found, area, distances = privacy_of(aligned, s)
    made = aligned.kept(aligned.made)
    within = (rms_distances(made, made), distances["within_train"])
    out["distribution"]["nearest_other"] = repeats_of_distances(*within, **s.resampled()).to_dict()
    out["privacy"] = _privacy(found, area, distances, s, likelihoods)
    out["pictures"] = pair_pictures(aligned, distances["to_train"], s.shown)
    out["utility"] = (
        utility_of(utility, real_train, real_test, synthetic, s, tell) if utility else None
    )
    out["cost"] = dict(cost or {})
    out["controls"] = []
    out["gates"] = gates_of(out, s.limit)
    if controls:
        tell("planted controls")
        out["controls"] = plant_controls(
            real_train, real_test, synthetic, aligned, distances["within_train"],
            out["conditions"], s,
        )  # fmt: skip
        void_gates(out["gates"], out["controls"])
    return out


def _ceiling(
    segmenter: SegmenterModel, test: SynthesisSet, settings: EvaluationSettings
) -> dict[str, Any] | None:
    """Return what the segmenter reaches on the held-out real cases, None without labels."""
    if test.labels is None:
        return None
    s = settings
    return measure_segmenter(
        segmenter.labels, test.images, test.labels, spacing_mm=s.spacing_mm, regions=s.regions,
        seed=s.seed, level=s.level,
    )  # fmt: skip


def _t_maps(
    test: SynthesisSet, made: SynthesisSet, aligned: Aligned, s: EvaluationSettings
) -> dict[str, Any]:
    """Return the share of voxels that differ before and after the re-alignment."""
    inside = aligned.inside
    return {
        "alignment": s.alignment,
        "inside_share": float(inside.double().mean()),
        "as_generated": anatomy(test.images, made.images, s),
        "realigned": anatomy(aligned.test, aligned.made, s, inside),
        "picture": t_map_pictures(aligned.test, aligned.made, s.threshold, inside),
    }


def _privacy(
    found: Privacy, area: Interval, distances: Mapping[str, Floats], s: EvaluationSettings,
    likelihoods: Mapping[str, tuple[ArrayLike, ArrayLike]] | None,
) -> dict[str, Any]:  # fmt: skip
    # which case was copied is for the owner of the data: the record tells how many
    record = found.to_dict()
    record["copied"] = len(found.copied)
    nearest = {
        "synthetic_to_train": spread(distances["to_train"].min(axis=1)),
        "synthetic_to_held_out": spread(distances["to_held_out"].min(axis=1)),
        "held_out_to_train": spread(distances["held_out_to_train"].min(axis=1)),
    }
    return {
        **record,
        "space": "intensities after re-alignment, root mean square",
        "membership": area.to_dict(),
        "likelihoods": likelihood_gaps(likelihoods or {}, s.level),
        "nearest": nearest,
    }


def _check_sets(
    train: SynthesisSet, test: SynthesisSet, made: SynthesisSet,
    reconstruction: torch.Tensor | None,
) -> None:  # fmt: skip
    named = {"training": train, "held-out": test, "synthetic": made}
    for name, one in named.items():
        if len(one) < FEWEST:
            raise InputError(
                f"there are too few {name} cases", expected=f"{FEWEST} or more", got=str(len(one))
            )
        if one.images.shape[1:] != test.images.shape[1:]:
            raise InputError(
                f"the {name} cases have another grid than the held-out ones",
                expected=str(tuple(test.images.shape[1:])),
                got=str(tuple(one.images.shape[1:])),
            )
        if not math.isfinite(float(one.images.sum(dtype=torch.float64))):
            raise InputError(f"the {name} cases have values that are missing or infinite")
    if reconstruction is not None and reconstruction.shape != test.images.shape:
        raise InputError(
            "the reconstructions are not of the held-out cases",
            expected=f"shape {tuple(test.images.shape)}",
            got=f"shape {tuple(reconstruction.shape)}",
        )
