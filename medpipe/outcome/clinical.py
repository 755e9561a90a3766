"""Clinical covariates as the comparator of a network, and late fusion with it.

Everything is learnt inside the folds: medians for missing values, scales, coefficients and,
where asked for, the penalty. A patient counts once, however many cases there are. A late
fusion learns from logits of networks that saw neither the case nor the test set, which
`nested_logits` provides (Wolpert 1992, doi:10.1016/S0893-6080(05)80023-1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import UsageError
from medpipe.outcome.clinical_model import CT_LOGIT, ClinicalModel, Term
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.folds import Folds, make_folds
from medpipe.outcome.nested import nested_logits
from medpipe.types import Finding, Severity

__all__ = [
    "ClinicalPrediction",
    "clinical_model",
    "fit_clinical",
    "late_fusion",
    "nested_logits",
]

Columns = Mapping[str, NDArray[np.float64]]

ENOUGH_EVENTS: Final = 10.0
"""Events per coefficient below which a finding tells (Peduzzi et al. 1996,
doi:10.1016/S0895-4356(96)00236-3)."""

PENALTIES: Final = tuple(10.0**e for e in range(-3, 4))
"""The inverse penalties that are tried where one is chosen."""

_INNER: Final = 5


@dataclass(frozen=True, eq=False)
class ClinicalPrediction:
    """Out-of-fold predictions of a clinical model, or of a late fusion.

    Attributes
    ----------
    logit : ndarray of float64, shape (n,)
        Of each case by the model of the fold that tests it.
    models : tuple of ClinicalModel
        One per fold.
    model : ClinicalModel
        Of all cases, for new patients; it has no figures of its own.
    findings : tuple of Finding
    """

    logit: NDArray[np.float64]
    models: tuple[ClinicalModel, ...]
    model: ClinicalModel
    findings: tuple[Finding, ...]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Probability of the event, shape (n,)."""
        from scipy.special import expit

        return expit(self.logit)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts of the model in JSON form; no value of a case is in it."""
        return {
            "model": self.model.to_dict(),
            "odds_ratios": self.model.odds_ratios(),
            "folds": [m.to_dict() for m in self.models],
            "events_per_parameter": min(m.events_per_parameter for m in self.models),
            "findings": [f.to_dict() for f in self.findings],
        }


def clinical_model(
    cohort: Cohort,
    folds: Folds,
    *,
    covariates: Sequence[str] | None = None,
    inverse_penalty: float | None = 1.0,
    seed: int = 0,
) -> ClinicalPrediction:
    """Fit a logistic regression on the covariates in each fold and predict its test cases.

    Parameters
    ----------
    cohort : Cohort
    folds : Folds
    covariates : sequence of str, optional
        Names in `cohort.covariates`; by default all.
    inverse_penalty : float or None
        C of scikit-learn's L2 penalty on standardised columns; None chooses one of
        `PENALTIES` in each training set by the log loss of patients left out there.
    seed : int
        Of the splits that choose the penalty.

    Raises
    ------
    UsageError
        If there is no such covariate, or a training set has one outcome only.
    """
    columns = _chosen(cohort, covariates)
    if not columns:
        raise UsageError("a clinical model needs a covariate", got="a table without any")
    return _cross_fit(cohort, folds, [columns] * len(folds), columns, inverse_penalty, seed)


def late_fusion(
    cohort: Cohort,
    folds: Folds,
    logits: NDArray[np.float64],
    *,
    covariates: Sequence[str] | None = None,
    inverse_penalty: float | None = 1.0,
    seed: int = 0,
) -> ClinicalPrediction:
    """Fit a logistic regression on the logit of the network and the covariates.

    Parameters
    ----------
    cohort : Cohort
    folds : Folds
    logits : ndarray of float64, shape (number of folds, n)
        Row k has logits of networks that never saw a test case of fold k: of its test
        cases, and of its training cases by networks that did not see them either
        (`nested_logits`). NaN where there is none, for instance for all but the cases
        that a network was validated with. Then covariates are weighted with all training
        cases first, and their sum against the logit with the cases that have one.
    covariates, inverse_penalty, seed
        See `clinical_model`. An empty sequence recalibrates the logit alone.

    Raises
    ------
    UsageError
        If `logits` is not of that shape, a test case has none, or too few training cases have.
    """
    logits = np.asarray(logits, np.float64)
    n = len(cohort)
    if logits.shape != (len(folds), n):
        raise UsageError(
            "a late fusion needs a row of logits for each fold",
            expected=f"shape ({len(folds)}, {n})",
            got=f"shape {logits.shape}",
            hint="logits of one cross-validation have seen the test cases; see nested_logits",
        )
    tested = logits[folds.fold_of, np.arange(n)]
    if not np.isfinite(tested).all() or np.isinf(logits).any():
        raise UsageError("a logit is infinite, or a test case has none")
    columns = _chosen(cohort, covariates)
    if CT_LOGIT in columns:
        raise UsageError(f"'{CT_LOGIT}' is the name of the network's own covariate")
    by_fold = [{CT_LOGIT: row, **columns} for row in logits]
    everyone = {CT_LOGIT: tested, **columns}
    made = _cross_fit(cohort, folds, by_fold, everyone, inverse_penalty, seed)
    return replace(made, findings=(*made.findings, *_few_logits(cohort, folds, logits)))


def _chosen(cohort: Cohort, names: Sequence[str] | None) -> dict[str, NDArray[np.float64]]:
    unknown = [name for name in names or () if name not in cohort.covariates]
    if unknown:
        raise UsageError("the cohort has no such covariate", got=", ".join(unknown))
    return {
        name: cohort.covariates[name] for name in (cohort.covariates if names is None else names)
    }


def _cross_fit(
    cohort: Cohort,
    folds: Folds,
    by_fold: Sequence[Columns],
    all_columns: Columns,
    inverse_penalty: float | None,
    seed: int,
) -> ClinicalPrediction:
    """Fit per fold with the columns of the fold, and once with all cases."""
    if folds.n_cases != len(cohort):
        raise UsageError("the folds are not of this cohort")
    codes = cohort.patient_codes
    logit = np.full(len(cohort), np.nan)
    models = []
    for k, columns in enumerate(by_fold):
        train, test = folds.train(k), folds.test[k]
        fit = _two_stages if CT_LOGIT in columns else fit_clinical
        model = fit(
            _rows(columns, train),
            cohort.outcome[train],
            patients=codes[train],
            inverse_penalty=inverse_penalty,
            seed=seed,
        )
        logit[test] = model.logit(_rows(columns, test))
        models.append(model)
    final = fit_clinical(
        all_columns, cohort.outcome, patients=codes, inverse_penalty=inverse_penalty, seed=seed
    )
    return ClinicalPrediction(logit, tuple(models), final, _findings(all_columns, models))


def _few_logits(cohort: Cohort, folds: Folds, logits: NDArray[np.float64]) -> tuple[Finding, ...]:
    """Tell how many patients weight the network, where training cases lack a logit."""
    parts = []
    for k, row in enumerate(logits):
        train = folds.train(k)
        if np.isnan(row[train]).any():
            parts.append(cohort.select(train[np.isfinite(row[train])]))
    if not parts:
        return ()
    worst = min(parts, key=lambda part: min(part.n_events, part.n_patients - part.n_events))
    text = (
        f"the logit of the network is weighted with {worst.n_patients} patients"
        f" ({worst.n_events} events) in the smallest training set; nested logits use all"
    )
    return (Finding("fusion.few_logits", Severity.WARNING, text),)


def _two_stages(
    columns: Columns,
    outcome: NDArray[np.int64],
    *,
    patients: NDArray[np.int64],
    inverse_penalty: float | None,
    seed: int,
) -> ClinicalModel:
    """Fit a fusion; where cases lack a logit, weight the covariates with all cases first.

    Few cases carry few coefficients: those with a logit then decide on two, the logit of the
    network and the one of the covariates, taken out of inner folds. The sum is again linear
    in the covariates; its standard errors do not know of the second stage. Where nothing varies
    among the cases with a logit, the covariates decide alone.
    """
    how: dict[str, Any] = {"inverse_penalty": inverse_penalty, "seed": seed}
    known = np.flatnonzero(np.isfinite(columns[CT_LOGIT]))
    some = {"patients": patients[known], **how}
    rest = {name: values for name, values in columns.items() if name != CT_LOGIT}
    cohort = _anonymous(outcome, patients)
    number = _inner_number(cohort)
    if len(known) == len(outcome) or number < 2 or not _terms(rest):
        return fit_clinical(_rows(columns, known), outcome[known], **some)
    folds = make_folds(cohort, folds=number, seed=seed)
    within = np.empty(len(outcome))
    for k, test in enumerate(folds.test):
        train = folds.train(k)
        inside, share = _rows(rest, train), outcome[train].mean()
        if not _terms(inside):  # all that is known there is how frequent the event is
            within[test] = np.log(share / (1 - share))
            continue
        inner = fit_clinical(inside, outcome[train], patients=patients[train], **how)
        within[test] = inner.logit(_rows(rest, test))
    both = {CT_LOGIT: columns[CT_LOGIT][known], "clinical_logit": within[known]}
    first = fit_clinical(rest, outcome, patients=patients, **how)
    if not _terms(both):
        return first
    second = fit_clinical(both, outcome[known], **some)
    terms, intercept, weight = [], second.intercept, 0.0
    for term in second.terms:
        if term.name == CT_LOGIT:
            terms.append(term)
        else:
            weight = term.coefficient / term.scale
            intercept += weight * (first.intercept - term.mean)
    for term in first.terms:
        b, e = weight * term.coefficient, abs(weight) * term.error
        terms.append(replace(term, coefficient=b, error=e))
    return replace(first, terms=tuple(terms), intercept=intercept)


def _anonymous(outcome: NDArray[np.int64], patients: NDArray[np.int64]) -> Cohort:
    """Return a cohort with numbers for names, to make inner folds of."""
    ids = tuple(str(i) for i in range(len(outcome)))
    return Cohort(ids, tuple(str(g) for g in patients), outcome)


def _inner_number(cohort: Cohort) -> int:
    return min(_INNER, cohort.n_events, cohort.n_patients - cohort.n_events)


def _rows(columns: Columns, cases: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    return {name: values[cases] for name, values in columns.items()}


def _findings(columns: Columns, models: Sequence[ClinicalModel]) -> tuple[Finding, ...]:
    findings = []
    worst = min(models, key=lambda m: m.events_per_parameter)
    if worst.events_per_parameter < ENOUGH_EVENTS:
        rarer = min(worst.events, worst.patients - worst.events)
        text = (
            f"{rarer} patients of the rarer outcome for {len(worst.terms)} coefficients are"
            f" {worst.events_per_parameter:.1f} events per parameter, below {ENOUGH_EVENTS:g}"
        )
        findings.append(Finding("clinical.few_events", Severity.WARNING, text))
    for name in columns:
        without = sum(name not in m.names for m in models)
        if without:
            text = f"'{name}' has no two values in {without} training sets and is left out there"
            findings.append(Finding("clinical.constant", Severity.WARNING, text))
    return tuple(findings)


def fit_clinical(
    covariates: Columns,
    outcome: NDArray[np.int64],
    *,
    patients: NDArray[np.int64] | None = None,
    inverse_penalty: float | None = 1.0,
    seed: int = 0,
) -> ClinicalModel:
    """Fit a logistic regression with an L2 penalty on standardised covariates.

    Missing values become the median, and a covariate that has any gets a column that says
    where. Columns with one value only are left out. Each case weighs one over the number of
    cases of its patient.

    Parameters
    ----------
    covariates : dict of ndarray of float64, shape (n,)
        NaN is a missing value.
    outcome : ndarray of int64, shape (n,)
    patients : ndarray of int64, shape (n,), optional
        A number for each patient; by default each case is one.
    inverse_penalty, seed
        See `clinical_model`.

    Raises
    ------
    UsageError
        If there is one outcome only, no column that varies, or a value is infinite.
    """
    outcome = np.asarray(outcome, np.int64)
    groups = np.arange(len(outcome)) if patients is None else np.asarray(patients, np.int64)
    if len(np.unique(outcome)) < 2:
        raise UsageError("a training set has one outcome only")
    if inverse_penalty is not None and not 0.0 < inverse_penalty < np.inf:
        raise UsageError("the inverse penalty is out of range", expected="above 0")
    terms = _terms(covariates)
    if not terms:
        raise UsageError("no covariate varies in a training set")
    chosen = inverse_penalty is None
    if inverse_penalty is None:
        inverse_penalty = _choose_penalty(covariates, outcome, groups, seed)
    _, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    empty = ClinicalModel(
        terms,
        0.0,
        float(inverse_penalty),
        chosen,
        len(outcome),
        len(sizes),
        len(np.unique(groups[outcome == 1])),
    )
    return _solve(empty, covariates, outcome, 1.0 / sizes[which])


def _terms(covariates: Columns) -> tuple[Term, ...]:
    """Return the columns that vary, without coefficients."""
    terms = []
    for name, values in covariates.items():
        missing = np.isnan(values)
        if np.isinf(values).any():
            raise UsageError(f"'{name}' has an infinite value")
        if missing.all():
            continue
        median = float(np.median(values[~missing]))
        filled = np.where(missing, median, values)
        if np.ptp(filled) > 0:
            mean, scale = float(filled.mean()), float(filled.std())
            terms.append(Term(name, "value", median, mean, scale))
        if missing.any():
            share = float(missing.mean())
            terms.append(Term(name, "missing", median, share, float(missing.std())))
    return tuple(terms)


def _solve(
    model: ClinicalModel,
    covariates: Columns,
    outcome: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> ClinicalModel:
    """Return the model with coefficients and their standard errors."""
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression

    design = model.design(covariates)
    fitted = LogisticRegression(
        C=model.inverse_penalty, solver="newton-cholesky", tol=1e-9, max_iter=200
    ).fit(design, outcome, sample_weight=weights)
    slopes, intercept = fitted.coef_[0], float(fitted.intercept_[0])
    p = expit(intercept + design @ slopes)
    full = np.column_stack([np.ones(len(p)), design])
    information = (full * (weights * p * (1.0 - p))[:, None]).T @ full
    information[1:, 1:] += np.eye(len(slopes)) / model.inverse_penalty
    errors = np.sqrt(np.diag(np.linalg.inv(information)))[1:]
    terms = tuple(
        replace(term, coefficient=float(b), error=float(e))
        for term, b, e in zip(model.terms, slopes, errors, strict=True)
    )
    return replace(model, terms=terms, intercept=intercept)


def _choose_penalty(
    covariates: Columns, outcome: NDArray[np.int64], groups: NDArray[np.int64], seed: int
) -> float:
    """Return the penalty with the least log loss of patients left out; of equals the strongest."""
    cohort = _anonymous(outcome, groups)
    number = _inner_number(cohort)
    if number < 2:
        hint = "give the penalty as a number"
        raise UsageError(
            "too few patients to choose a penalty", expected="2 of each outcome", hint=hint
        )
    folds = make_folds(cohort, folds=number, seed=seed)
    losses = []
    for penalty in PENALTIES:
        loss = 0.0
        for k, test in enumerate(folds.test):
            train = folds.train(k)
            model = fit_clinical(
                _rows(covariates, train),
                outcome[train],
                patients=groups[train],
                inverse_penalty=penalty,
            )
            logit = model.logit(_rows(covariates, test))
            loss += float(np.logaddexp(0.0, np.where(outcome[test] == 1, -logit, logit)).sum())
        losses.append(loss)
    return float(PENALTIES[int(np.argmin(losses))])
