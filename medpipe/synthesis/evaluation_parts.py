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
    SynthesisSet,
    UtilityPlan,
)
from medpipe.synthesis.metrics._figures import Floats
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
    "check_utility",
    "diversity",
    "half_real",
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


def privacy_of(
    aligned: Aligned, settings: EvaluationSettings, made: torch.Tensor | None = None
) -> tuple[Privacy, Interval, dict[str, Floats]]:
    """Return the distances to the training cases, the area under the curve of membership, and
    the distances that were compared.

    Parameters
    ----------
    made : Tensor, shape (n, I, J, K), optional
        In place of the synthetic cases of `aligned`.

    Returns
    -------
    privacy : Privacy
    area : Interval
    distances : dict of arrays
        ``within_train`` and ``within_held_out`` are those of the cases of one set.
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


def check_utility(
    plan: UtilityPlan, train: SynthesisSet, test: SynthesisSet, made: SynthesisSet
) -> None:
    """Raise InputError without labels, and UsageError if there are too few real cases."""
    named = (("training", train), ("held-out", test), ("synthetic", made))
    for name, cases in named:
        if cases.labels is None:
            raise InputError(
                f"the {name} cases have no labels",
                hint="the utility needs those of all three sets; leave it out without them",
            )
    if plan.real_cases > len(train):
        raise UsageError(
            "there are not so many real cases", expected=f"1 to {len(train)}",
            got=str(plan.real_cases),
        )  # fmt: skip


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
    check_utility(plan, train, test, made)
    k, truth = plan.real_cases, torch.stack([labels[0] for _, labels in test.pairs()])
    reference = f"real {k}"
    scores: dict[str, dict[str, list[Floats]]] = {name: {} for name in settings.regions}
    for seed in plan.seeds:
        chosen = np.random.default_rng(seed).permutation(len(train))[:k].tolist()
        few, new = train.pairs(chosen), made.pairs()
        ways = {"synthetic": new, reference: few, f"real {k} + synthetic": half_real(few, new)}
        if k < len(train):
            ways[f"real {len(train)}"] = train.pairs()
        for name, samples in ways.items():
            tell(f"training with {name}, seed {seed}")
            found = plan.train(samples, int(seed))(test.images)
            dice = dice_of_regions(found, truth, settings.regions)
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


def half_real(few: Sequence[Any], synthetic: Sequence[Any]) -> list[Any]:
    """Return cases of which half are real: fewer real ones are repeated, not drowned."""
    return [*few] * max(1, round(len(synthetic) / len(few))) + [*synthetic]


def spread(values: Sequence[float] | Floats) -> list[float]:
    """Return values as JSON, in order of size: which case has which is not told."""
    return np.sort(np.asarray(values, np.float64)).tolist()
