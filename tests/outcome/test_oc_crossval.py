"""Cross-validation: nothing of a test case reaches what is said of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from oc_pictures import FLAT, SETTINGS, TRAINING, study
from safetensors.torch import save_file

from medpipe.errors import UsageError
from medpipe.outcome import crossval
from medpipe.outcome.crossval import cross_validate
from medpipe.outcome.evaluation import evaluate
from medpipe.outcome.folds import make_folds
from medpipe.outcome.leaks import pixel_digest
from medpipe.outcome.network import outcome_network


@pytest.fixture(scope="module")
def plain():
    cohort, volumes = study()
    folds = make_folds(cohort, folds=3, seed=4)
    return cohort, volumes, folds, cross_validate(
        cohort, volumes, SETTINGS, folds=folds, device="cpu"
    )  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
def test_outcomes_of_a_test_set_do_not_change_what_is_said_of_it(plain, nested):
    cohort, volumes, folds, first = plain
    settings = replace(SETTINGS, nested=nested)
    if nested:
        first = cross_validate(cohort, volumes, settings, folds=folds, device="cpu")
        assert np.isfinite(first.logits).all()
    test = folds.test[1]
    turned = cohort.outcome.copy()
    turned[test] = 1 - turned[test]
    other = cross_validate(
        replace(cohort, outcome=turned), volumes, settings, folds=folds, device="cpu"
    )
    assert set(first.probability) == {"prevalence", "clinical", "ct", "ct_clinical"}
    for name, values in first.probability.items():
        np.testing.assert_allclose(other.probability[name][test], values[test], rtol=1e-6)
        rest = np.setdiff1d(np.arange(len(cohort)), test)
        assert not np.allclose(other.probability[name][rest], values[rest], rtol=1e-6), name
    assert other.thresholds["ct"][1] == pytest.approx(first.thresholds["ct"][1], rel=1e-6)


def test_what_is_said_can_be_evaluated(plain):
    cohort, _, folds, done = plain
    found = evaluate(done.predictions(simulated=True), resamples=50)
    assert found["n"] == len(cohort)
    by_name = {m["name"]: m for m in found["models"]}
    assert set(by_name) == {"prevalence", "clinical", "ct", "ct_clinical"}
    held = [np.flatnonzero(np.isfinite(row)) for row in done.logits]
    for k, known in enumerate(held):
        assert set(folds.test[k]) < set(known)
        inner = [cohort.patients[i] for i in np.setdiff1d(known, folds.test[k])]
        assert not set(inner) & {cohort.patients[i] for i in folds.test[k]}


def test_networks_that_are_there_are_not_trained_again(plain, tmp_path, monkeypatch):
    cohort, volumes, folds, first = plain
    kept = cross_validate(cohort, volumes, SETTINGS, folds=folds, folder=tmp_path, device="cpu")
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"fold{k}.safetensors" for k in (1, 2, 3)]
    np.testing.assert_allclose(kept.logits, first.logits, rtol=1e-6)
    monkeypatch.setattr(crossval, "train_fold", None)
    again = cross_validate(cohort, volumes, SETTINGS, folds=folds, folder=tmp_path, device="cpu")
    np.testing.assert_array_equal(again.logits, kept.logits)
    changed = replace(SETTINGS, training=replace(TRAINING, learning_rate=2e-2))
    with pytest.raises(UsageError, match="networks of another training"):
        cross_validate(cohort, volumes, changed, folds=folds, folder=tmp_path, device="cpu")
    encoder = tmp_path / "encoder.safetensors"
    save_file(outcome_network(FLAT).features.state_dict(), encoder)
    with pytest.raises(UsageError, match="networks of another training"):
        cross_validate(
            cohort, volumes, SETTINGS, folds=folds, folder=tmp_path, encoder=encoder, device="cpu"
        )


def test_a_recalibration_that_turns_the_order_round_is_told(plain):
    cohort, _, folds, first = plain
    codes = [f.check for f in first.findings]
    assert "recalibration.turned" not in codes
    logits = np.where(np.isfinite(first.logits), first.logits, np.nan)
    train = folds.train(1)
    known = train[np.isfinite(logits[1, train])]
    logits[1, known] = 3.0 - 6.0 * cohort.outcome[known] + 0.1 * np.arange(len(known))
    judged = crossval._judged(cohort, folds, SETTINGS, first.models, logits, ())
    told = [f.message for f in judged.findings if f.check == "recalibration.turned"]
    assert [m for m in told if "of fold 2" in m]
    test = folds.test[1]
    raw = logits[1, test]
    assert np.corrcoef(raw, judged.probability["ct"][test])[0, 1] < 0


def test_the_same_pixels_in_two_folds_are_refused(plain):
    cohort, volumes, folds, _ = plain
    digests = {case: pixel_digest(1000 * v) for case, v in volumes.items()}
    one, two = (cohort.case_ids[folds.test[k][0]] for k in (0, 1))
    digests[one] = digests[two]
    with pytest.raises(UsageError, match="known from training") as caught:
        cross_validate(cohort, volumes, SETTINGS, folds=folds, pixel_digests=digests)
    assert one in str(caught.value)
    assert two in str(caught.value)


def test_what_is_missing_is_said(plain):
    cohort, volumes, folds, _ = plain
    with pytest.raises(UsageError, match="no prepared volume"):
        cross_validate(cohort, {k: v for k, v in volumes.items() if k != "c07"}, SETTINGS)
    alone = replace(SETTINGS, training=replace(TRAINING, validation_share=0))
    with pytest.raises(UsageError, match="nothing is left to recalibrate"):
        cross_validate(cohort, volumes, alone, folds=folds)
