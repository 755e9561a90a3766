"""A study from prepared volumes to files, and what is refused before a network is trained."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.special import expit

from medpipe.errors import UsageError
from medpipe.io.nifti import read_nifti, write_nifti
from medpipe.outcome import crossval
from medpipe.outcome.bundle import read_bundle
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.clinical import late_fusion
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.crossval import CrossSettings
from medpipe.outcome.folds import Folds, make_folds, write_folds
from medpipe.outcome.network import OutcomeNetworkSettings
from medpipe.outcome.plan import plan_study
from medpipe.outcome.prepare import GridSettings
from medpipe.outcome.recalibrate import recalibration_from_dict
from medpipe.outcome.study import StudyFacts, train_study
from medpipe.outcome.training import OutcomeTraining, read_fold_model
from medpipe.types import Volume

GRID = GridSettings((10.0, 10.0, 10.0), (16, 16, 16))
SETTINGS = CrossSettings(
    training=OutcomeTraining(
        iterations=4, batch_size=8, validate_every=2, validation_share=0.3, augmentation=None,
        folds=2, size_voxels=(16, 16, 16), spacing_mm=(10.0, 10.0, 10.0),
    ),
    network=OutcomeNetworkSettings(architecture="small"),
)  # fmt: skip
FACTS = StudyFacts("toy", "death within 3 months", simulated=True, demonstration=True)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(1)
    outcome = np.tile([0, 0, 1], 8)
    ids = tuple(f"c{i:02d}" for i in range(len(outcome)))
    volumes = {}
    for case, y in zip(ids, outcome, strict=True):
        hu = rng.normal(30 + 15 * y, 10, (16, 16, 16)).round().astype(np.int16)
        volumes[case] = folder / f"{case}.nii.gz"
        write_nifti(volumes[case], Volume(hu, GRID.affine()))
    age = 55 + 8 * outcome + rng.normal(0, 9, len(ids))
    return Cohort(ids, tuple(f"p{i}" for i in ids), outcome, {"age_years": age}), volumes


def test_a_study_leaves_a_report_and_a_model(cohort, tmp_path):
    table, volumes = cohort
    done = train_study(
        table, volumes, tmp_path, SETTINGS, grid=GRID, facts=FACTS, device="cpu", resamples=50,
        refused={"check: could not be prepared": 3},
    )  # fmt: skip
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert (evaluation["n"], evaluation["events"]) == (24, 8)
    assert evaluation["simulated"] is True
    assert evaluation["flow"]["read"] == 27
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [r["case_id"] for r in rows] == list(table.case_ids)
    np.testing.assert_allclose(
        [float(r["p_ct"]) for r in rows], done.crossed.probability["ct"], atol=1e-6
    )
    bundle = read_bundle(tmp_path / "model")
    assert bundle.digest == done.model_digest
    assert len(bundle.members) == 2
    facts = bundle.facts
    assert (facts.name, facts.outcome) == ("toy", "death within 3 months")
    assert facts.spacing_mm == GRID.spacing_mm
    assert "demonstration" in facts.notice
    # the map for new patients is that of all log odds out of fold
    learned = recalibration_from_dict(facts.recalibration)
    want = done.crossed.final.apply(done.crossed.tested)
    np.testing.assert_allclose(learned.apply(done.crossed.tested), want)
    assert "Simulated data" in (tmp_path / "model" / "docs" / "README.md").read_text()
    again = train_study(
        table, volumes, tmp_path, SETTINGS, grid=GRID, facts=FACTS, device="cpu", resamples=50,
        refused={"check: could not be prepared": 3},
    )  # fmt: skip
    assert again.model_digest == done.model_digest
    assert again.evaluation == done.evaluation


def test_folds_of_another_cohort_are_refused(cohort, tmp_path):
    table, volumes = cohort
    train_study(table, volumes, tmp_path, SETTINGS, grid=GRID, device="cpu", resamples=20)
    fewer = table.select(range(21))
    with pytest.raises(UsageError, match="fold"):
        train_study(fewer, volumes, tmp_path, SETTINGS, grid=GRID, device="cpu", resamples=20)


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def timed(cohort):
    """The cohort with times: most of those with the event have it early, two of them late."""
    table, _ = cohort
    rng = np.random.default_rng(3)
    event = table.outcome.copy()
    time = np.where(event, rng.uniform(1, 40, len(table)), rng.uniform(95, 300, len(table)))
    time[np.flatnonzero(event)[:2]] = (75.0, 88.0)
    return replace(table, time_days=time, event=event)


def test_times_to_the_event_are_predicted_and_judged(cohort, timed, tmp_path):
    _, volumes = cohort
    ends = (10.0, 45.0, 90.0)
    training = replace(SETTINGS.training, loss="survival", interval_days=ends)
    network = OutcomeNetworkSettings(architecture="small", outputs=3)
    settings = replace(SETTINGS, training=training, network=network)
    done = train_study(
        timed, volumes, tmp_path, settings, grid=GRID, device="cpu", resamples=50
    )  # fmt: skip
    rows = rows_of(tmp_path / "predictions.csv")
    curves = np.array([[float(row[f"s_{end:g}d"]) for end in ends] for row in rows])
    assert (np.diff(np.c_[np.ones(len(rows)), curves], axis=1) < 0).all()
    logit = np.array([float(row["ct_logit"]) for row in rows])
    np.testing.assert_allclose(1 - curves[:, -1], expit(logit), atol=2e-6)
    # the hazards of a case are those of the stored network of the fold that tests it
    for i in (0, 13):
        model = read_fold_model(tmp_path / "networks" / f"fold{rows[i]['fold']}.safetensors")
        hu = torch.from_numpy(np.array(read_nifti(volumes[rows[i]["case_id"]]).data))
        with torch.no_grad():
            said = model.network(ct_channels(hu.float()[None], "windows")[None])[0]
        hazards = 1 / (1 + np.exp(-said.double().numpy()))
        np.testing.assert_allclose(curves[i], np.cumprod(1 - hazards), atol=2e-6)
    # nobody is censored before the last interval ends: concordance is a share of pairs
    risk = 1 - done.crossed.survival_predictions().survival[:, -1]
    right = total = 0.0
    for i, j in permutations(range(len(rows)), 2):
        if timed.event[i] and timed.time_days[i] < timed.time_days[j]:
            total += 1
            right += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    survival = evaluation["survival"]
    assert (survival["n"], survival["events"]) == (24, 8)
    found = survival["figures"]["Concordance (Uno, IPCW)"]
    assert found["value"] == pytest.approx(right / total, abs=1e-9)
    assert evaluation["study"]["training"]["intervals_end_days"] == "10, 45, 90"
    assert read_bundle(tmp_path / "model").facts.interval_ends_days == ends


@pytest.mark.parametrize("kind", ["study", "voxels"])
def test_a_leak_is_refused_before_a_file_is_written(cohort, tmp_path, monkeypatch, kind):
    table, volumes = cohort
    monkeypatch.setattr(crossval, "train_fold", None)
    fold = make_folds(table, folds=2).fold_of
    i, j = (int(np.flatnonzero(fold == k)[0]) for k in (0, 1))
    given, options = dict(volumes), {}
    if kind == "voxels":
        given[table.case_ids[j]] = given[table.case_ids[i]]
    else:
        options["study_digests"] = {table.case_ids[i]: "d", table.case_ids[j]: "d"}
    with pytest.raises(UsageError, match=f"known from training; got the same {kind} in ") as caught:
        train_study(table, given, tmp_path / "OUT", SETTINGS, grid=GRID, **options)
    assert f"{table.case_ids[i]} (fold 1)" in str(caught.value)
    assert f"{table.case_ids[j]} (fold 2)" in str(caught.value)
    assert not (tmp_path / "OUT").exists()


def test_folds_of_other_settings_are_refused(cohort, tmp_path):
    table, _ = cohort
    file = tmp_path / "folds.json"
    made = make_folds(table, folds=2, seed=5)
    write_folds(file, made, table)
    found = plan_study(table, SETTINGS, file=file)
    assert found.digest == made.digest
    three = replace(SETTINGS, training=replace(SETTINGS.training, folds=3))
    with pytest.raises(UsageError, match="expected 3 folds by patient, got 2 folds by patient"):
        plan_study(table, three, file=file)
    sites = replace(table, sites=tuple("ab" * 12))
    with pytest.raises(UsageError, match="expected folds by site, got 2 folds by patient"):
        plan_study(sites, replace(SETTINGS, by_site=True), file=file)
    with pytest.raises(UsageError, match="nested networks need three folds; got 2"):
        plan_study(table, replace(SETTINGS, nested=True), file=file)


def test_patients_must_remain_to_train_and_to_validate_with():
    ids = tuple(f"c{i:02d}" for i in range(12))
    three = Cohort(ids, ids, np.array([1, 1, 1, *[0] * 9]))
    settings = replace(SETTINGS, training=replace(SETTINGS.training, folds=3))
    assert len(plan_study(three, settings)) == 3  # two with the event train and validate
    two = Cohort(ids, ids, np.array([1, 1, *[0] * 10]))
    text = "training without fold 1: too few patients are left .* got 1 and 5. Next: make fewer"
    with pytest.raises(UsageError, match=text):
        plan_study(two, SETTINGS)
    # a third site has no event: a nested network that is trained there alone sees none
    four = Cohort(ids, ids, np.array([1] * 4 + [0] * 8))
    sites = replace(four, sites=tuple("aabb" + "abcc" * 2))
    assert len(plan_study(sites, replace(SETTINGS, by_site=True))) == 3
    with pytest.raises(UsageError, match="without fold a and fold b: no event is left to train"):
        plan_study(sites, replace(SETTINGS, by_site=True, nested=True))


def test_covariates_that_cannot_be_learned_from_are_told_first(cohort):
    table, _ = cohort
    same = replace(table, covariates={"wfns": np.full(len(table), 3.0)})
    with pytest.raises(UsageError, match="no covariate varies in a training set"):
        plan_study(same, SETTINGS)


def test_covariates_that_do_not_vary_within_a_fold_do_not_end_a_study():
    """Two of one age are all that an inner fold has; a network says the same of everyone."""
    ids = tuple(f"c{i}" for i in range(8))
    outcome = np.array([1, 0, 1, 0] * 2)
    table = Cohort(ids, ids, outcome, {"age_years": np.array([70.0, 70, 70, 60] * 2)})
    folds = Folds((np.arange(4, 8), np.arange(4)), "")
    logits = np.full((2, 8), np.nan)
    logits[0, [0, 1, *range(4, 8)]] = logits[1, [*range(6)]] = 0.1
    kinds = set()
    for seed in range(8):  # of the inner folds
        fused = late_fusion(table, folds, logits, seed=seed)
        assert np.isfinite(fused.probability).all()
        kinds |= {model.names for model in fused.models}
    assert kinds == {("age_years",)}  # a log odds that does not vary has no weight
