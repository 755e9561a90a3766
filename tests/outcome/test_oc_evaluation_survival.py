"""The evaluation of times to the event, from networks to figures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from medpipe.errors import InputError
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings, cross_validate
from medpipe.outcome.evaluation import Predictions, SurvivalPredictions, evaluate
from medpipe.outcome.evaluation_survival import reference_survival
from medpipe.outcome.folds import make_folds
from medpipe.outcome.metrics import survival as measures
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.training import OutcomeTraining

N, AT = 240, np.array([7.0, 30.0, 60.0, 90.0])


def times(seed: int = 0, n: int = N, **changes: Any) -> SurvivalPredictions:
    """Exponential times with hazard exp(x) / 120 a day, of which x is seen with noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1.2, n)
    death, end = rng.exponential(120 * np.exp(-x)), rng.uniform(30, 300, n)
    seen = x + rng.normal(0, 0.5, n)
    given: dict[str, Any] = {
        "event": (death <= end).astype(int),
        "time_days": np.minimum(death, end),
        "survival": np.exp(-np.exp(seen)[:, None] * AT / 120),
        "at_days": AT,
        "fold": np.arange(n) % 5,
    }
    return SurvivalPredictions(**(given | changes))


def beside(given: SurvivalPredictions, **changes: Any) -> Predictions:
    """Classes by the horizon, as the network's risk says."""
    y = ((given.event == 1) & (given.time_days <= AT[-1])).astype(int)
    return Predictions(y, {"ct": 1 - given.survival[:, -1]}, fold=given.fold, **changes)


def evaluated(given: SurvivalPredictions, **options: Any) -> dict[str, Any]:
    found = evaluate(beside(given), survival=given, **({"resamples": 200} | options))
    json.dumps(found, allow_nan=False)
    return found


@pytest.fixture(scope="module")
def given() -> SurvivalPredictions:
    return times()


@pytest.fixture(scope="module")
def part(given: SurvivalPredictions) -> dict[str, Any]:
    return evaluated(given)["survival"]


def curve_of(event: np.ndarray, time: np.ndarray) -> Any:
    data = stats.CensoredData(uncensored=time[event == 1], right=time[event == 0])
    return stats.ecdf(data).sf


def test_every_figure_has_an_interval_around_it(
    given: SurvivalPredictions, part: dict[str, Any]
) -> None:
    assert list(part["figures"]) == [
        "Concordance (Uno, IPCW)",
        "AUROC at 90 days (IPCW)",
        "Brier score at 90 days (IPCW)",
        "Integrated Brier score, 7 to 90 days (IPCW)",
        "The same of Kaplan-Meier for everyone",
        "Scaled integrated Brier score, 0 = Kaplan-Meier",
        "Observed / expected events by 90 days",
        "Calibration slope at 90 days (IPCW)",
    ]
    for name, figure in part["figures"].items():
        assert figure["low"] < figure["value"] < figure["high"], name
        assert figure["method"] == "bootstrap BCa, 200 patient resamples"
        assert (figure["n"], figure["events"]) == (N, given.event.sum())
    early = (given.event == 1) & (given.time_days <= 90)
    assert part["events_by_horizon"] == early.sum()
    lost = (given.event == 0) & (given.time_days < 90)
    assert part["censored_before_horizon"] == lost.sum() > 20


def test_the_reference_has_not_seen_the_fold(
    given: SurvivalPredictions, part: dict[str, Any]
) -> None:
    event, time, fold = given.event, given.time_days, np.asarray(given.fold)
    table = reference_survival(event, time, AT, fold)
    for k in range(5):
        other = curve_of(event[fold != k], time[fold != k]).evaluate(AT)
        np.testing.assert_allclose(table[fold == k], np.tile(other, ((fold == k).sum(), 1)))
    score = measures.integrated_brier(event, time, table, at_days=AT)
    figures = part["figures"]
    assert figures["The same of Kaplan-Meier for everyone"]["value"] == pytest.approx(score)
    ours = measures.integrated_brier(event, time, given.survival, at_days=AT)
    scaled = figures["Scaled integrated Brier score, 0 = Kaplan-Meier"]["value"]
    assert scaled == pytest.approx(1 - ours / score)
    assert part["reference"] == "the other folds"
    whole = reference_survival(event, time, AT)
    np.testing.assert_allclose(whole, np.tile(curve_of(event, time).evaluate(AT), (N, 1)))
    assert part["brier"]["y"][-1] == pytest.approx(
        figures["Brier score at 90 days (IPCW)"]["value"], abs=1e-6
    )


def test_risk_groups_are_thirds_with_their_curves(
    given: SurvivalPredictions, part: dict[str, Any]
) -> None:
    risk = 1 - given.survival[:, -1]
    order = np.argsort(risk)
    rows = part["groups"]["rows"]
    assert [r["label"] for r in rows] == ["low risk", "middle risk", "high risk"]
    marks = part["groups"]["marks_days"]
    assert marks[0] == 0
    assert marks[-1] <= 90
    for row, kept in zip(rows, np.split(order, 3), strict=True):
        event, time = given.event[kept], given.time_days[kept]
        assert row["n"] == 80
        assert row["events"] == (event & (time <= 90)).sum()
        seen = row["observed"]
        peer = curve_of(event, time)
        np.testing.assert_allclose(seen["y"], peer.evaluate(np.array(seen["x"]) + 1e-5), atol=1e-5)
        assert max(seen["x"]) <= seen["until"] == 90
        assert all(a <= b for a, b in zip(seen["low"], seen["high"], strict=True))
        mean = given.survival[kept].mean(axis=0)
        np.testing.assert_allclose(row["predicted"]["y"], [1, *mean], atol=1e-5)
        assert row["at_risk"] == [(time >= t).sum() for t in marks]
    test = part["groups"]["test"]
    assert (test["degrees"], test["n"], test["events"]) == (2, N, part["events_by_horizon"])
    assert test["p"] < 1e-6


def test_calibration_is_seen_by_kaplan_meier(
    given: SurvivalPredictions, part: dict[str, Any]
) -> None:
    bins = part["calibration"]["bins"]
    assert [b["n"] for b in bins] == [24] * 10
    order = np.argsort(1 - given.survival[:, -1])
    for one, kept in zip(bins, np.split(order, 10), strict=True):
        share = 1 - curve_of(given.event[kept], given.time_days[kept]).evaluate(90.0)
        assert one["observed"] == pytest.approx(share, abs=1e-9)
        assert one["mean"] == pytest.approx((1 - given.survival[kept, -1]).mean())
        assert one["low"] <= one["observed"] <= one["high"]
    # a risk that is twice as high as it should be is seen as such
    doubled = replace(given, survival=given.survival**2)
    figures = evaluated(doubled, resamples=100)["survival"]["figures"]
    assert figures["Observed / expected events by 90 days"]["high"] < 0.95


def test_a_group_without_events_has_the_interval_of_those_seen_that_long() -> None:
    low = times(survival=np.linspace(0.999, 0.01, N)[:, None] ** (AT / 90))
    event, time = np.asarray(low.event).copy(), np.asarray(low.time_days).copy()
    event[:24], time[:24] = 0, np.where(np.arange(24) < 20, 120.0, 50.0)
    one = evaluated(replace(low, event=event, time_days=time), resamples=20)["survival"]
    first = one["calibration"]["bins"][0]
    assert (first["observed"], first["low"]) == (0, 0)
    # Wilson's of 0 of 20: z² / (20 + z²)
    square = stats.norm.ppf(0.975) ** 2
    assert first["high"] == pytest.approx(square / (20 + square))


def test_all_events_seen_is_no_reason_to_have_no_interval() -> None:
    base = times(n=60)
    found = evaluated(replace(base, event=np.ones(60, int)), resamples=50)["survival"]
    concordance = found["figures"]["Concordance (Uno, IPCW)"]
    assert concordance["low"] < concordance["value"] < concordance["high"]
    assert found["follow_up_days"] is None
    assert found["groups"]["test"]["p"] is not None


def test_few_cases_have_no_interval_and_no_test() -> None:
    found = evaluated(times(n=15), resamples=20)["survival"]
    assert {f["low"] for f in found["figures"].values()} == {None}
    assert found["groups"]["test"]["p"] is None
    assert all(not r["observed"]["low"] for r in found["groups"]["rows"])
    assert len(found["calibration"]["bins"]) == 2


def test_copies_of_patients_do_not_narrow_anything() -> None:
    one = times(n=90)
    twice = SurvivalPredictions(
        *(np.concatenate([a, a]) for a in (one.event, one.time_days, one.survival)),
        AT, groups=np.tile(np.arange(90), 2), fold=np.tile(np.asarray(one.fold), 2),
    )  # fmt: skip
    alone, both = (evaluated(g, resamples=300)["survival"] for g in (one, twice))
    assert (both["n"], both["patients"]) == (180, 90)
    for name, figure in alone["figures"].items():
        other = both["figures"][name]
        assert other["value"] == pytest.approx(figure["value"], rel=0.05), name
        wide, narrow = (f["high"] - f["low"] for f in (figure, other))
        assert narrow == pytest.approx(wide, rel=0.15), name
    test, again = (r["groups"]["test"] for r in (alone, both))
    assert again["method"] == "log-rank, by patient"
    assert again["statistic"] == pytest.approx(test["statistic"], rel=0.4)
    bands = [
        np.mean(np.subtract(r["observed"]["high"], r["observed"]["low"]))
        for r in (alone["groups"]["rows"][2], both["groups"]["rows"][2])
    ]
    assert bands[1] == pytest.approx(bands[0], rel=0.25)


def test_an_outcome_that_is_not_that_of_the_times_is_said(given: SurvivalPredictions) -> None:
    notes = evaluated(given, resamples=2)["notes"]
    assert any("observed for less than 90 days" in note for note in notes)
    assert not any("another than the event" in note for note in notes)
    turned = beside(given)
    y = np.asarray(turned.outcome).copy()
    y[:3] = 1 - y[:3]
    notes = evaluate(replace(turned, outcome=y), survival=given, resamples=2)["notes"]
    assert any(note.startswith("In 3 cases the outcome is another") for note in notes)
    plain = evaluate(beside(given), resamples=2)
    assert plain["survival"] is None
    assert not any("90 days" in note for note in plain["notes"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"at_days": AT[::-1]}, "that rise"),
        ({"at_days": AT - 7}, "above 0"),
        ({"survival": np.full((N, 3), 0.5)}, "table of cases and times"),
        ({"survival": np.full((N, 4), 1.5)}, "outside 0..1"),
        ({"survival": np.tile([0.5, 0.6, 0.5, 0.4], (N, 1))}, "rises with time"),
        ({"event": np.full(N, 2)}, "not binary"),
        ({"time_days": np.full(N, -1.0)}, "negative"),
        ({"groups": ["PATIENT"]}, "another length"),
        ({"fold": np.zeros(3, int)}, "another length"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        times(**change)
    assert "PATIENT" not in str(caught.value)


TRAINING = OutcomeTraining(
    preset="pictures", loss="survival", interval_days=(10.0, 30.0, 90.0), iterations=6,
    batch_size=8, learning_rate=1e-2, validate_every=3, validation_share=0.3,
    augmentation=None, folds=3, seed=4,
)  # fmt: skip
SETTINGS = CrossSettings(
    training=TRAINING,
    network=OutcomeNetworkSettings(spatial_dims=2, channels=1, outputs=3, architecture="small"),
)


def test_hazards_of_a_test_set_come_from_networks_that_did_not_see_it() -> None:
    rng = np.random.default_rng(0)
    n = 45
    outcome = (rng.random(n) < 0.45).astype(np.int64)
    days = np.where(outcome == 1, rng.uniform(1, 90, n), rng.uniform(90, 200, n))
    ids = tuple(f"c{i:02d}" for i in range(n))
    pictures = rng.normal(0.3, 0.15, (n, 1, 16, 16)).astype(np.float32)
    pictures += 0.25 * outcome[:, None, None, None].astype(np.float32)
    cohort = Cohort(ids, ids, outcome, time_days=days, event=outcome)
    volumes = dict(zip(ids, pictures, strict=True))
    folds = make_folds(cohort, folds=3, seed=4)
    done = cross_validate(cohort, volumes, SETTINGS, folds=folds, device="cpu")
    assert done.hazards is not None
    assert done.hazards.shape == (n, 3)
    said = done.survival_predictions()
    assert said is not None
    # the last share is the complement of the probability whose log odds are recalibrated
    np.testing.assert_allclose(1 - said.survival[:, -1], special.expit(done.tested), atol=1e-6)
    found = evaluate(done.predictions(), survival=said, resamples=20)
    assert found["survival"]["horizon_days"] == 90
    test = folds.test[1]
    changed = days.copy()
    changed[test] = np.where(outcome[test] == 1, 91 - days[test], 95.0)
    other = cross_validate(
        replace(cohort, time_days=changed), volumes, SETTINGS, folds=folds, device="cpu"
    )
    assert other.hazards is not None
    np.testing.assert_allclose(other.hazards[test], done.hazards[test], rtol=1e-5)
    rest = np.setdiff1d(np.arange(n), test)
    assert not np.allclose(other.hazards[rest], done.hazards[rest], rtol=1e-5)


def test_another_loss_has_no_times() -> None:
    plain = replace(
        SETTINGS, training=replace(TRAINING, loss="cross-entropy", iterations=2, validate_every=1),
        network=OutcomeNetworkSettings(spatial_dims=2, channels=1, architecture="small"),
    )  # fmt: skip
    rng = np.random.default_rng(1)
    outcome = np.tile([0, 1], 12)
    ids = tuple(f"c{i:02d}" for i in range(24))
    cohort = Cohort(ids, ids, outcome, time_days=np.full(24, 100.0), event=np.zeros(24, np.int64))
    volumes = {i: rng.normal(0, 1, (1, 16, 16)).astype(np.float32) for i in ids}
    done = cross_validate(cohort, volumes, plain, device="cpu")
    assert done.hazards is None
    assert done.survival_predictions() is None
