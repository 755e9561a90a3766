"""The parts of an evaluation: distributions, anatomy, conditions, privacy, utility."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import Interval
from medpipe.synthesis.evaluation_sets import (
    EvaluationSettings,
    Measured,
    SynthesisSet,
    UtilityPlan,
)
from medpipe.synthesis.metrics._figures import Floats, column
from medpipe.synthesis.metrics.agreement import agreement_table
from medpipe.synthesis.metrics.distances import rms_distances
from medpipe.synthesis.metrics.frechet import frechet
from medpipe.synthesis.metrics.kernel import kid
from medpipe.synthesis.metrics.manifold import precision_recall
from medpipe.synthesis.metrics.ms_ssim import ms_ssim_pairs
from medpipe.synthesis.metrics.privacy import (
    Privacy,
    membership_auc,
    nll_gap,
    privacy_of_distances,
)
from medpipe.synthesis.metrics.regions import label_volumes, regional_volumes
from medpipe.synthesis.metrics.t_maps import realign, t_map_share
from medpipe.synthesis.metrics.utility import utility_table
from medpipe.synthesis.segmenter_measures import dice_of_regions

__all__ = [
    "Aligned",
    "align_sets",
    "anatomy",
    "conditions_of",
    "diversity",
    "likelihood_gaps",
    "privacy_of",
    "spread",
    "utility_of",
    "volumes_of",
]

NEIGHBOURS = 5
Tell = Callable[[str], None]


class Aligned:
    """All sets on one grid; distances and t maps look at the voxels inside all volumes."""

    def __init__(self, train: torch.Tensor, test: torch.Tensor, made: torch.Tensor,
                 inside: torch.Tensor) -> None:  # fmt: skip
        self.train, self.test, self.made, self.inside = train, test, made, inside

    def kept(self, images: torch.Tensor) -> torch.Tensor:
        """Return the voxels (n, V) of images that are inside."""
        return images.flatten(1)[:, self.inside.flatten()]


def align_sets(
    train: torch.Tensor, test: torch.Tensor, made: torch.Tensor, settings: EvaluationSettings
) -> Aligned:
    """Align all cases to the mean of the real ones, each interpolated once.

    Raises
    ------
    InputError, StepError
        See `medpipe.synthesis.metrics.realign`; or if no voxel is inside all volumes.
    """
    real = torch.cat([train, test])
    moved = realign(real, made, spacing_mm=settings.spacing_mm, alignment=settings.alignment)
    if not bool(moved.inside.any()):
        raise InputError(
            "no voxel is inside all volumes after their alignment",
            hint="pad the volumes, or look for one that holds something else",
        )
    n = len(train)
    return Aligned(moved.real[:n], moved.real[n:], moved.synthetic, moved.inside)


def diversity(
    images: tuple[torch.Tensor, torch.Tensor], features: tuple[torch.Tensor, torch.Tensor],
    settings: EvaluationSettings,
) -> dict[str, Any]:  # fmt: skip
    """Return how near the distribution of real cases is, and whether its width is kept.

    Parameters
    ----------
    images, features : pair of Tensors
        Of held-out real and of synthetic cases.

    Returns
    -------
    dict of JSON values
        ``kid``, ``frechet``, ``ms_ssim`` and, of sets of 12 cases or more, ``precision``,
        ``recall``, ``density`` and ``coverage``: each a figure with its floor.
    """
    s, (real, made) = settings, features
    halves: dict[str, Any] = {"splits": s.splits, "seed": s.seed, "level": s.level}
    found = {
        "kid": kid(real, made, resamples=s.resamples, **halves),
        "frechet": frechet(real, made, **halves),
        "ms_ssim": ms_ssim_pairs(*images, pairs=s.pairs, seed=s.seed, level=s.level),
    }
    if min(len(real), len(made)) >= 2 * (NEIGHBOURS + 1):
        found |= precision_recall(real, made, neighbours=NEIGHBOURS, **halves)
    return {name: value.to_dict() for name, value in found.items()}


def volumes_of(
    real: torch.Tensor, made: torch.Tensor, settings: EvaluationSettings
) -> dict[str, Any]:
    """Compare regional volumes of label maps (n, I, J, K) that one segmenter made.

    Returns
    -------
    dict of JSON values
        ``rows`` (see `regional_volumes`) and ``values``, in mm³, by region.
    """
    s = settings
    a, b = (label_volumes(x, s.spacing_mm, s.regions) for x in (real, made))
    for name in s.regions:
        if not a[name].mean() > 0 or not b[name].mean() > 0:
            raise InputError(
                f"region {name} is found in no {'real' if a[name].mean() == 0 else 'synthetic'} "
                "case",
                hint="look at the pictures, or train the segmenter longer",
            )
    rows = regional_volumes(a, b, splits=s.splits, **s.resampled())
    values = {n: {"real": a[n].tolist(), "synthetic": b[n].tolist()} for n in s.regions}
    return {"rows": [r.to_dict() for r in rows], "values": values}


def anatomy(
    real: torch.Tensor, made: torch.Tensor, settings: EvaluationSettings,
    mask: torch.Tensor | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the share of voxels in which two sets of images (n, I, J, K) differ, as JSON."""
    s = settings
    return t_map_share(
        real, made, threshold=s.threshold, mask=mask, splits=s.splits,
        permutations=s.permutations, seed=s.seed, level=s.level,
    ).to_dict()  # fmt: skip


def conditions_of(
    requested: Mapping[str, ArrayLike], made: SynthesisSet, seen: torch.Tensor,
    test: SynthesisSet, seen_test: torch.Tensor, settings: EvaluationSettings, *,
    measures: Mapping[str, Measured], reconstruction: torch.Tensor | None,
    segment: Callable[[torch.Tensor], torch.Tensor],
) -> list[dict[str, Any]]:  # fmt: skip
    """Compare what was requested with what an independent measurement finds, with ceilings.

    A condition with the name of a region is a volume in mm³, measured by the segmenter;
    any other has its own measurement.

    Raises
    ------
    UsageError
        If a condition is no region and has no measurement.
    InputError
        If its values do not fit the cases.
    """
    rebuilt = None if reconstruction is None else segment(reconstruction)
    out = []
    for name, values in requested.items():
        x = column(values, f"condition {name}", len(made), least=4)
        own = measures.get(name)
        if own is None and name not in settings.regions:
            raise UsageError(
                f"condition {name} cannot be measured",
                expected=f"a region ({', '.join(settings.regions)}) or a measurement of it",
            )
        regions = {name: settings.regions[name]} if own is None else {}

        def measured(
            images: torch.Tensor, labels: torch.Tensor, own: Measured | None = own,
            name: str = name, regions: Any = regions,
        ) -> Floats:  # fmt: skip
            if own is not None:
                return column(own.measure(images), f"measured {name}", len(images))
            return label_volumes(labels, settings.spacing_mm, regions)[name]

        truth = _truth(name, own, test, settings)
        ceilings: dict[str, tuple[ArrayLike, ArrayLike]] = {}
        if truth is not None and np.ptp(truth) > 0:
            ceilings["measurement"] = (truth, measured(test.images, seen_test))
            if reconstruction is not None and rebuilt is not None:
                ceilings["reconstruction"] = (truth, measured(reconstruction, rebuilt))
        y = measured(made.images, seen)
        table = agreement_table((x, y), ceilings, **settings.resampled())
        out.append(
            {
                "name": name,
                "unit": "mm³" if own is None else own.unit,
                "rows": {k: v.to_dict() for k, v in table.items()},
                "points": {
                    k: {"requested": list(map(float, a)), "measured": list(map(float, b))}  # type: ignore[arg-type]
                    for k, (a, b) in {"synthetic": (x, y), **ceilings}.items()
                },
            }
        )
    return out


def _truth(
    name: str, own: Measured | None, test: SynthesisSet, settings: EvaluationSettings
) -> Floats | None:
    """Return what the held-out real cases have, where it is known."""
    if own is not None:
        return None if own.truth is None else column(own.truth, f"true {name}", len(test))
    if test.labels is None:
        return None
    return label_volumes(test.labels, settings.spacing_mm, {name: settings.regions[name]})[name]


def privacy_of(
    aligned: Aligned, settings: EvaluationSettings, made: torch.Tensor | None = None
) -> tuple[Privacy, Interval, dict[str, Floats]]:
    """Return the distances to the training cases, the area under the curve of membership, and
    the distances that were compared.

    Parameters
    ----------
    made : Tensor, shape (n, I, J, K), optional
        In place of the synthetic cases of `aligned`.
    """
    train, test = (aligned.kept(x) for x in (aligned.train, aligned.test))
    synthetic = aligned.kept(aligned.made if made is None else made)
    d = {
        "to_train": rms_distances(synthetic, train),
        "to_held_out": rms_distances(synthetic, test),
        "held_out_to_train": rms_distances(test, train),
        "within_train": rms_distances(train, train),
        "within_held_out": rms_distances(test, test),
    }
    found = privacy_of_distances(*d.values(), limit=settings.limit, **settings.resampled())
    # an attacker who holds a case and the synthetic set: the nearer, the likelier a member
    area = membership_auc(-d["to_train"].min(axis=0), -d["to_held_out"].min(axis=0), settings.level)
    return found, area, d


def likelihood_gaps(
    given: Mapping[str, tuple[ArrayLike, ArrayLike]], level: float
) -> dict[str, Any]:
    """Return conditional minus unconditional likelihoods of each set of cases, as JSON."""
    return {name: nll_gap(*pair, level=level).to_dict() for name, pair in given.items()}


def utility_of(
    plan: UtilityPlan, train: SynthesisSet, test: SynthesisSet, made: SynthesisSet,
    settings: EvaluationSettings, tell: Tell,
) -> dict[str, Any]:  # fmt: skip
    """Train with synthetic and with real cases, and test all on the held-out real ones.

    Returns
    -------
    dict of JSON values
        ``regions``: rows of `utility_table` by region; ``reference`` is the name of the row
        that differences are to; ``real_cases``, ``seeds``, and ``tested`` cases by region.
    """
    if test.labels is None:
        raise InputError("the held-out cases have no labels to test with")
    k = plan.real_cases
    if k > len(train):
        raise UsageError(
            "there are not so many real cases", expected=f"1 to {len(train)}", got=str(k)
        )
    reference = f"real {k}"
    scores: dict[str, dict[str, list[Floats]]] = {name: {} for name in settings.regions}
    for seed in plan.seeds:
        chosen = np.random.default_rng(seed).permutation(len(train))[:k].tolist()
        few, new = train.pairs(chosen), made.pairs()
        ways = {"synthetic": new, reference: few, f"real {k} + synthetic": [*few, *new]}
        if k < len(train):
            ways[f"real {len(train)}"] = train.pairs()
        for name, samples in ways.items():
            tell(f"training with {name}, seed {seed}")
            found = plan.train(samples, int(seed))(test.images)
            dice = dice_of_regions(found, test.labels, settings.regions)
            for region, values in dice.items():
                scores[region].setdefault(name, []).append(values)
    regions, tested = {}, {}
    for region, by_way in scores.items():
        there = np.isfinite(next(iter(by_way.values()))[0])
        tested[region] = int(there.sum())
        tables = {name: np.stack(rows)[:, there] for name, rows in by_way.items()}
        rows = utility_table(tables, reference, settings.level)
        regions[region] = [row.to_dict() for row in rows]
    return {
        "regions": regions, "reference": reference, "real_cases": k,
        "seeds": [int(s) for s in plan.seeds], "tested": tested,
    }  # fmt: skip


def spread(values: Sequence[float] | Floats) -> list[float]:
    """Return values as JSON, in order of size: which case has which is not told."""
    return np.sort(np.asarray(values, np.float64)).tolist()
