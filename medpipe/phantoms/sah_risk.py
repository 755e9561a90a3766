"""Who has a subarachnoid haemorrhage and who dies of it: a stated model.

`draw_covariates` draws age, bleeding and grade; `SahRisk` turns them into a
probability of death within 90 days. Intercept and scale are solved on a large
seeded sample so that the share of deaths and the AUC of the true
probabilities are what was asked for: no classifier can do better than that AUC
but by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from medpipe.errors import UsageError

__all__ = [
    "COEFFICIENTS",
    "THICK_ML",
    "Covariates",
    "SahRisk",
    "ceilings",
    "draw_covariates",
    "draw_times",
    "expected_auc",
    "modified_fisher",
    "sample_auc",
    "solved_risk",
]

Array = NDArray[np.float64]
Covariates = Mapping[str, Any]
"""Numbers or arrays of one length by name, as `draw_covariates` returns them."""

PREVALENCE = 0.288
"""63 of the 219 patients of doi:10.3390/brainsci14010010 died within three months."""
BAYES_AUC = 0.90

COEFFICIENTS: dict[str, float] = {
    "log_blood": 1.00,
    "log_ivh": 0.45,
    "shift_mm": 0.20,
    "age_decades": 0.25,
    "wfns": 0.30,
}
"""Weight of each term before scaling; the terms are those of `SahRisk.terms`."""

AGE_YEARS = (58.0, 13.06)
"""Mean and standard deviation of age (doi:10.3390/brainsci14010010)."""
AGE_RANGE = (20.0, 92.0)
WOMEN = 0.52
NO_BLOOD = 0.04
"""Share of patients whose CT shows no blood."""
SAH_ML = (13.0, 0.85, 0.6, 45.0)
"""Subarachnoid blood: median, spread of the logarithm, least, most."""
IVH_ML = (4.0, 0.85, 0.4, 14.0)
ICH_ML = (11.0, 0.75, 1.5, 40.0)
SHIFT_LIMIT_MM = 12.0
THICK_ML = 6.0
"""From this volume on the blood is a thick layer, below it a thin one."""
THICK_MM = 1.0
"""A clot of more than this is thick in the modified Fisher scale."""
IVH_SEEN_ML = 0.2

WFNS_CUTS = (0.15, 0.72, 1.05, 1.72)
"""Where the latent of `wfns_latent` plus unit noise passes to grades 2, 3, 4, 5."""


def draw_covariates(n: int, rng: np.random.Generator) -> dict[str, Array]:
    """Draw patients.

    Parameters
    ----------
    n : int
        How many.
    rng : Generator
        Source of chance.

    Returns
    -------
    dict of str to ndarray, shape (n,)
        ``age_years``, ``sex`` (1 female), ``sah_ml``, ``ivh_ml``, ``ich_ml``,
        ``shift_mm`` (>= 0) and ``wfns`` (1..5). A common severity links the
        amounts; WFNS follows the blood (`wfns_latent`) and chance.
    """
    severity = rng.standard_normal(n)
    age = np.rint(AGE_YEARS[0] + AGE_YEARS[1] * _normal_within(rng.random(n)))
    sex = (rng.random(n) < WOMEN).astype(float)
    seen = rng.random(n) >= NO_BLOOD
    sah = _log_normal(0.85 * severity + np.sqrt(1 - 0.85**2) * rng.standard_normal(n), SAH_ML)
    sah = np.where(seen, sah, 0.0)
    has_ivh = seen & (rng.random(n) < special.expit(-0.4 + 1.0 * severity))
    ivh = _log_normal(0.4 * severity + 0.9165 * rng.standard_normal(n), IVH_ML) * has_ivh
    has_ich = seen & (rng.random(n) < special.expit(-1.6 + 0.8 * severity))
    ich = _log_normal(0.4 * severity + 0.9165 * rng.standard_normal(n), ICH_ML) * has_ich
    pressed = 0.20 * ich * np.exp(0.35 * rng.standard_normal(n))
    swollen = (rng.random(n) < 0.12) * rng.uniform(1.0, 4.0, n) * seen
    shift = np.minimum(pressed + swollen, SHIFT_LIMIT_MM)
    out = {
        "age_years": age,
        "sex": sex,
        "sah_ml": sah,
        "ivh_ml": ivh,
        "ich_ml": ich,
        "shift_mm": shift,
    }
    latent = wfns_latent(out) + rng.standard_normal(n)
    out["wfns"] = 1.0 + np.searchsorted(WFNS_CUTS, latent)
    return out


def _normal_within(uniform: Array) -> Array:
    """Return standard normal values for `uniform` in 0..1, ages beyond the range left out."""
    low, high = (special.ndtr((a - AGE_YEARS[0]) / AGE_YEARS[1]) for a in AGE_RANGE)
    return special.ndtri(low + uniform * (high - low))


def _log_normal(standard: Array, law: tuple[float, float, float, float]) -> Array:
    median, spread, low, high = law
    return np.clip(median * np.exp(spread * standard), low, high)


def wfns_latent(covariates: Covariates) -> Array:
    """Return the mean of the hidden severity that WFNS is cut from; its noise has variance 1."""
    c = {name: np.asarray(value, float) for name, value in covariates.items()}
    return (
        0.55 * (np.log1p(c["sah_ml"]) - 2.4)
        + 0.45 * (c["ivh_ml"] > 0)
        + 0.10 * c["shift_mm"]
        + 0.012 * c["ich_ml"]
        + 0.35
    )


def modified_fisher(thickness_mm: ArrayLike, ivh_ml: ArrayLike) -> NDArray[np.int64]:
    """Return the modified Fisher grade of a clot's thickness and of blood in the ventricles.

    0 no blood; 1 thin without, 2 thin with blood in the ventricles; 3 thick
    without, 4 thick with it. Thick is more than 1 mm. Blood in the ventricles
    alone is grade 2 (doi:10.1227/01.NEU.0000218821.34014.1B).
    """
    thick = np.asarray(thickness_mm) > THICK_MM
    blood = np.asarray(thickness_mm) > 0
    ivh = np.asarray(ivh_ml) >= IVH_SEEN_ML
    return np.where(thick, 3, np.where(blood | ivh, 1, 0)).astype(np.int64) + ivh


@dataclass(frozen=True, slots=True)
class SahRisk:
    """A logistic model of death within 90 days: logit p = intercept + scale * sum of terms.

    Attributes
    ----------
    intercept, scale : float
        Solved by `solved_risk`.
    """

    intercept: float
    scale: float

    @staticmethod
    def terms(covariates: Covariates) -> dict[str, Array]:
        """Return the terms that `COEFFICIENTS` weigh.

        ``log_blood`` is log(1 + ml) of blood outside the ventricles minus
        log(13), ``log_ivh`` log(1 + ml) of that inside, ``shift_mm`` the
        midline shift, ``age_decades`` (age - 58) / 10, ``wfns`` the grade - 1.
        """
        c = {name: np.asarray(value, float) for name, value in covariates.items()}
        return {
            "log_blood": np.log1p(c["sah_ml"] + c["ich_ml"]) - np.log(13.0),
            "log_ivh": np.log1p(c["ivh_ml"]),
            "shift_mm": c["shift_mm"],
            "age_decades": (c["age_years"] - 58.0) / 10.0,
            "wfns": c["wfns"] - 1.0,
        }

    def predictor(self, covariates: Covariates) -> Array:
        """Return logit p."""
        return self.intercept + self.scale * raw_score(covariates)

    def probability(self, covariates: Covariates) -> Array:
        """Return the probability of death within 90 days."""
        return special.expit(self.predictor(covariates))


def raw_score(covariates: Covariates) -> Array:
    """Return the weighted sum of the terms, before intercept and scale."""
    terms = SahRisk.terms(covariates)
    return np.asarray(sum(COEFFICIENTS[name] * term for name, term in terms.items()), float)


def expected_auc(probability: ArrayLike, score: ArrayLike | None = None) -> float:
    """Return the AUC of a score where case i is an event with the probability i.

    The outcomes are not drawn: each case counts with its probability as an
    event and with the rest as none. Ties count half.

    Parameters
    ----------
    probability : array_like, shape (n,)
        True probability of each case.
    score : array_like, shape (n,), optional
        Default: the probabilities themselves, which gives the Bayes AUC.
    """
    p = np.asarray(probability, float)
    s = p if score is None else np.asarray(score, float)
    _, group = np.unique(s, return_inverse=True)
    events, others = np.bincount(group, p), np.bincount(group, 1 - p)
    below = np.cumsum(others) - others
    return float(events @ (below + others / 2) / (events.sum() * others.sum()))


def sample_auc(outcome: ArrayLike, score: ArrayLike) -> float | None:
    """Return the AUC of a score against drawn outcomes; None if there is one class alone."""
    y = np.asarray(outcome, float)
    return expected_auc(y, score) if 0 < y.sum() < y.size else None


@lru_cache(maxsize=4)
def solved_risk(
    prevalence: float = PREVALENCE, bayes_auc: float = BAYES_AUC, *, n: int = 200_000, seed: int = 0
) -> SahRisk:
    """Return the model with this share of deaths and this AUC of the true probabilities.

    Parameters
    ----------
    prevalence : float
        Between 0 and 1.
    bayes_auc : float
        Between 0.6 and 0.98.
    n, seed : int
        Size and seed of the sample on which both are solved.

    Raises
    ------
    UsageError
        If a figure is out of range.
    """
    if not (0.02 <= prevalence <= 0.9 and 0.6 <= bayes_auc <= 0.98):
        raise UsageError(
            "no risk model has these figures",
            expected="prevalence 0.02..0.9, AUC 0.6..0.98",
            got=f"{prevalence:g}, {bayes_auc:g}",
        )
    raw = np.sort(raw_score(draw_covariates(n, np.random.default_rng([seed, 11]))))
    # Means of neighbours: of so few that neither figure changes in the fourth place.
    raw = raw[: n - n % 50].reshape(-1, 50).mean(1)

    def intercept(scale: float) -> float:
        def excess(shift: float) -> float:
            return float(special.expit(shift + scale * raw).mean()) - prevalence

        return float(optimize.brentq(excess, -200, 200, xtol=1e-6))

    def missing(scale: float) -> float:
        p = special.expit(intercept(scale) + scale * raw)
        below = np.cumsum(1 - p) - (1 - p) / 2  # raw is sorted
        return float(p @ below / (p.sum() * (1 - p).sum())) - bayes_auc

    scale = float(optimize.brentq(missing, 0.05, 8.0, xtol=1e-4))
    return SahRisk(intercept(scale), scale)


def ceilings(risk: SahRisk, *, n: int = 4000, seed: int = 0) -> dict[str, float]:
    """Return the AUC that the best classifier of some of the covariates reaches.

    ``clinical`` knows age and WFNS; ``imaging`` the amounts of blood and the
    shift; ``imaging_age`` also the age, which atrophy shows in part. What is
    not known is integrated out: age is independent of the rest, and WFNS
    given the image is a normal cut into grades.

    Parameters
    ----------
    risk : SahRisk
        The model.
    n, seed : int
        Size and seed of the sample that the AUCs are means over.
    """
    c = draw_covariates(n, np.random.default_rng([seed, 12]))
    truth = risk.probability(c)
    edges = np.concatenate([[-np.inf], WFNS_CUTS, [np.inf]])
    grade = np.diff(special.ndtr(edges - wfns_latent(c)[:, None]), axis=1)  # (n, 5)
    unknown = c | {"wfns": np.ones(n), "age_years": np.full(n, 58.0)}
    base = risk.predictor(unknown)[:, None] + risk.scale * COEFFICIENTS["wfns"] * np.arange(5)
    slope = risk.scale * COEFFICIENTS["age_decades"] / 10
    ages = AGE_YEARS[1] * _normal_within((np.arange(24) + 0.5) / 24)
    by_age = special.expit(base[:, :, None] + slope * ages)  # (n, 5, 24)
    imaging = np.einsum("nk,nka->n", grade, by_age) / len(ages)
    own = slope * (c["age_years"] - 58.0)
    with_age = (grade * special.expit(base + own[:, None])).sum(1)
    # Images of a grade are those of the sample, weighed by how probable the grade is in each.
    share = grade / grade.sum(0)
    table = np.einsum("nk,nka->ka", share, by_age)  # (5, 24)
    known = [
        np.interp(age - 58.0, ages, table[int(wfns) - 1])
        for age, wfns in zip(c["age_years"], c["wfns"], strict=True)
    ]
    scores = {"clinical": np.array(known), "imaging": imaging, "imaging_age": with_age}
    return {name: expected_auc(truth, score) for name, score in scores.items()}


def draw_times(
    probability: ArrayLike, outcome: ArrayLike, rng: np.random.Generator
) -> tuple[Array, NDArray[np.int64]]:
    """Draw days to death within 90 days, or of follow-up beyond them.

    Deaths are exponential with a mean of 25 days times 1.5 minus the
    probability, cut at 90 days; survivors are censored between 90 and 365.

    Returns
    -------
    time_days : ndarray, shape (n,)
    event : ndarray of int64, shape (n,)
        1 where the time is that of death.
    """
    p, died = np.asarray(probability, float), np.asarray(outcome).astype(bool)
    mean = 25.0 * (1.5 - p)
    u = rng.random(p.shape)
    death = -mean * np.log1p(-u * -np.expm1(-90.0 / mean))
    followed = 90.0 + 275.0 * rng.random(p.shape)
    days = np.where(died, np.clip(death, 0.1, 90.0), followed)
    return np.round(days, 1).astype(np.float64), died.astype(np.int64)
