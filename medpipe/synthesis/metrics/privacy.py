"""Has a generator learned its cases by heart: distances, a gate against copies, membership."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats

from medpipe.errors import InputError, UsageError
from medpipe.stats.interval import Interval, PairedDifference, check_level
from medpipe.stats.ranking import delong
from medpipe.synthesis.metrics._figures import (
    Floats,
    bootstrapped,
    column,
    exact_share,
    figure,
    flat,
    median_figure,
    ratio_of_medians,
)
from medpipe.synthesis.metrics.distances import (
    expected_nearest,
    nearest_of_subset,
    rms_distances,
    without_self,
)
from medpipe.synthesis.metrics.floor import WithFloor

__all__ = ["Privacy", "membership_auc", "nll_gap", "privacy", "privacy_of_distances"]

Verdict = Literal["copies", "no copies found", "undecided"]
LIMIT = 0.5


@dataclass(frozen=True)
class Privacy:
    """Distances of a synthetic set to the cases it was trained with.

    Attributes
    ----------
    to_train : WithFloor
        Median distance of a synthetic case to the nearest training case; the floor is that of
        a held-out real case.
    to_held_out : Interval
        Median distance to the nearest held-out case, and `to_train_equal` to the nearest of
        as many training cases (the mean over all such subsets).
    to_train_equal : Interval
    ratio : Interval
        `to_train` over its floor: 1 if synthetic cases are as far from the training cases as
        new real ones, 0 for copies.
    closer : WithFloor
        Share of synthetic cases that are closer to the training cases than to as many
        held-out ones, with an interval for other synthetic cases and these real ones; the
        floor is the range when real cases are called training or held-out at random. Above it
        for many a set that is built from training cases: read `ratio` first.
    authentic : WithFloor
        Share of synthetic cases that are further from their nearest training case than that
        one is from the other training cases.
    smallest, smallest_real : float
        Smallest distance of a synthetic to a training case, and between two real cases.
    copied : tuple of (int, int, float)
        Synthetic cases below `limit` times `smallest_real`: their index, that of the training
        case, and the distance.
    verdict : {"no copies found", "copies", "undecided"}
    rule : str
        How the verdict is made.
    """

    to_train: WithFloor
    to_held_out: Interval
    to_train_equal: Interval
    ratio: Interval
    closer: WithFloor
    authentic: WithFloor
    smallest: float
    smallest_real: float
    copied: tuple[tuple[int, int, float], ...]
    verdict: Verdict
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self) | {"copied": [list(c) for c in self.copied]}


def privacy(
    synthetic: torch.Tensor | ArrayLike,
    train: torch.Tensor | ArrayLike,
    held_out: torch.Tensor | ArrayLike,
    *,
    limit: float = LIMIT,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Privacy:
    """Compare synthetic cases with those the generator was trained with, and with new ones.

    Parameters
    ----------
    synthetic, train, held_out : Tensor or array, shape (n, ...)
        Aligned images, or features; root mean square differences are taken. No patient may
        be in both real sets, and each patient once.
    limit : float
        Of the gate, between 0 and 1 (see `privacy_of_distances`).
    resamples, seed : int
        Bootstrap of ratios and shares.
    level : float
        Coverage.

    Raises
    ------
    InputError
        If the cases do not compare, there are less than two, or two real cases are the same.
    UsageError
        For a level or limit outside 0..1, or too few resamples.
    """
    names = ("the synthetic cases", "the training cases", "the held-out cases")
    made, known, new = (
        flat(v, name) for v, name in zip((synthetic, train, held_out), names, strict=True)
    )
    return privacy_of_distances(
        rms_distances(made, known),
        rms_distances(made, new),
        rms_distances(new, known),
        rms_distances(known, known),
        rms_distances(new, new),
        limit=limit,
        resamples=resamples,
        seed=seed,
        level=level,
    )


def privacy_of_distances(
    to_train: Floats,
    to_held_out: Floats,
    held_out_to_train: Floats,
    within_train: Floats,
    within_held_out: Floats,
    *,
    limit: float = LIMIT,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Privacy:
    """Return what `privacy` does, of distances that are known.

    The gate: "copies" if a synthetic case is closer to a training case than `limit` times the
    smallest distance between two real cases, or if the whole interval of `ratio` is below
    `limit`; "undecided" if the interval holds it; else "no copies found", which is no proof.
    A share of cases closer to the training set enters no verdict.

    Parameters
    ----------
    to_train : array (n, T)
    to_held_out : array (n, H)
    held_out_to_train : array (H, T)
    within_train : array (T, T)
    within_held_out : array (H, H)
        The distance of a case to itself is not looked at.
    limit, resamples, seed, level
        As in `privacy`.

    Raises
    ------
    InputError, UsageError
        As `privacy`.
    """
    check_level(level)
    if not 0 < limit < 1:
        raise UsageError("the limit is a share", expected="0 < limit < 1", got=f"{limit:g}")
    options: dict[str, Any] = {"resamples": resamples, "seed": seed, "level": level}
    near, new = to_train.min(axis=1), held_out_to_train.min(axis=1)
    known, others = without_self(within_train), without_self(within_held_out)
    smallest_real = float(min(new.min(), known.min(), others.min()))
    if smallest_real == 0:
        raise InputError(
            "two real cases are the same",
            expected="each patient once, in one set",
            hint="leave one of the two out",
        )
    k = min(to_train.shape[1], to_held_out.shape[1])
    ratio = ratio_of_medians(near, new, **options)
    rows = np.flatnonzero(near < limit * smallest_real)
    copied = tuple((int(r), int(to_train[r].argmin()), float(near[r])) for r in rows)
    return Privacy(
        to_train=WithFloor(median_figure(near, level), median_figure(new, level)),
        to_held_out=median_figure(expected_nearest(to_held_out, k), level),
        to_train_equal=median_figure(expected_nearest(to_train, k), level),
        ratio=ratio,
        closer=WithFloor(
            _mean_share(_closer(to_train, to_held_out), **options),
            _relabelled(np.hstack([to_train, to_held_out]), k, resamples, seed, level),
        ),
        authentic=WithFloor(
            _authentic(to_train, known, level), _authentic(held_out_to_train, known, level)
        ),
        smallest=float(near.min()),
        smallest_real=smallest_real,
        copied=copied,
        verdict=_verdict(ratio, bool(copied), limit),
        rule=_rule(limit, level),
    )


def _verdict(ratio: Interval, copied: bool, limit: float) -> Verdict:
    if copied or (ratio.high is not None and ratio.high < limit):
        return "copies"
    return "no copies found" if ratio.low is not None and ratio.low > limit else "undecided"


def _rule(limit: float, level: float) -> str:
    return (
        f"copies: a synthetic case is closer to a training case than {limit:g} times the "
        f"smallest distance between two real cases, or the {100 * level:g} % interval of the "
        f"ratio is below {limit:g}; undecided: the interval holds {limit:g}"
    )


def _closer(first: Floats, second: Floats) -> Floats:
    """Return for each case the probability that the first set is closer, at equal sizes.

    A subset of the larger set, of the size of the smaller, is drawn at random: the mean over
    all of them, exactly. Equal distances count half.
    """
    if first.shape[1] < second.shape[1]:
        return 1 - _closer(second, first)
    nearest = second.min(axis=1)
    ordered = np.sort(first, axis=1)
    weights = nearest_of_subset(first.shape[1], second.shape[1])
    below = np.where(ordered < nearest[:, None], weights, 0.0)
    same = np.where(ordered == nearest[:, None], weights, 0.0)
    return (below + same / 2).sum(axis=1)


def _mean_share(values: Floats, *, resamples: int, seed: int, level: float) -> Interval:
    """Return the mean of values of 0..1: exact if all are 0 or 1, else by bootstrap."""
    if np.isin(values, (0.0, 1.0)).all():
        return exact_share(int(values.sum()), values.size, level)
    return bootstrapped((values,), np.mean, resamples=resamples, seed=seed, level=level)


def _relabelled(distances: Floats, size: int, draws: int, seed: int, level: float) -> Interval:
    """Return the share of `closer` where the real cases are labelled at random."""
    columns = np.tile(np.arange(distances.shape[1]), (draws, 1))
    values = []
    for order in np.random.default_rng(seed).permuted(columns, axis=1):
        first = distances[:, order[:size]].min(axis=1)
        second = distances[:, order[size : 2 * size]].min(axis=1)
        values.append(float(((first < second) + (first == second) / 2).mean()))
    low, high = np.quantile(values, (0.5 - level / 2, 0.5 + level / 2))
    method = f"range of {draws} random labels of the real cases"
    mean = float(np.mean(values))
    return figure(mean, len(distances), method, low=low, high=high, level=level)


def _authentic(distances: Floats, within_train: Floats, level: float) -> Interval:
    """Return the share of cases that are not the closest neighbour of their training case."""
    nearest = distances.argmin(axis=1)
    alone = within_train.min(axis=1)
    further = distances[np.arange(len(distances)), nearest] > alone[nearest]
    return exact_share(int(further.sum()), further.size, level)


def membership_auc(members: ArrayLike, others: ArrayLike, level: float = 0.95) -> Interval:
    """Return how well a score tells training cases from new ones; 0.5 tells nothing.

    Parameters
    ----------
    members, others : array (n,) and (m,)
        Of training and of held-out cases, higher where the case was more likely in training:
        minus the distance to the nearest synthetic case, or the log likelihood of the prior.
    level : float
        Coverage.

    Returns
    -------
    Interval
        DeLong; `events` counts the members.

    Raises
    ------
    InputError
        If the scores cannot be used.
    UsageError
        For a level outside 0..1.

    References
    ----------
    Chen et al. 2020, doi:10.1145/3372297.3417238.
    """
    a, b = column(members, "the score of members"), column(others, "the score of others")
    outcome = np.concatenate([np.ones(a.size), np.zeros(b.size)])
    return delong(outcome, np.concatenate([a, b]), level)


def nll_gap(
    conditional: ArrayLike, unconditional: ArrayLike, level: float = 0.95
) -> PairedDifference:
    """Return conditional minus unconditional negative log likelihood of the same cases.

    Of held-out cases it is negative if the conditions help; one above 0 says that the prior
    has learned which training case belongs to a condition.

    Parameters
    ----------
    conditional, unconditional : array (n,)
        Nats per token of each case, with its conditions and with none.
    level : float
        Coverage.

    Returns
    -------
    PairedDifference
        With the paired t test; its `z` is t.

    Raises
    ------
    InputError
        If the arrays cannot be used.
    UsageError
        For a level outside 0..1.
    """
    check_level(level)
    x = column(conditional, "the conditional likelihood")
    y = column(unconditional, "the unconditional likelihood", x.size)
    gap = x - y
    mean, se, n = float(gap.mean()), float(gap.std(ddof=1)) / gap.size**0.5, gap.size
    if se == 0:
        note = "the difference is the same in all cases"
        return PairedDifference(mean, mean, mean, None, None, n, None, "paired t", level, 0.0, note)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * se
    t = mean / se
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return PairedDifference(mean, mean - half, mean + half, t, p, n, None, "paired t", level, se)
