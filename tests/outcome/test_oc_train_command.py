"""`medpipe outcome-train`, from a table of DICOM series to report and model.

Leaks that are planted in the table, in the images and in the file of folds are refused in one
line, before anything is trained. Tables and images that are no good are in
`test_oc_bad_input`; `train_study` on volumes alone is in `test_oc_study`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_inputs import line, write_series
from pydicom import dcmread

from medpipe.outcome import crossval
from medpipe.outcome.bundle import read_bundle

TWICE = {"scan1": "scan1b", "scan2": "scan2b"}


def fold_of(out: Path) -> dict[str, int]:
    """Return the fold of each case, from 1."""
    record = json.loads((out / "folds.json").read_text())
    return {case: k for k, fold in enumerate(record["folds"], 1) for case in fold["test"]}


def refusal(done, folder: Path) -> str:
    """Return the one line of a refused command that trained nothing."""
    assert done.returncode == 2, done.stdout + done.stderr
    (text,) = [row for row in done.stderr.splitlines() if row.startswith("error ")]
    assert "Traceback" not in done.stderr
    assert {path.name for path in (folder / "OUT").glob("*")} <= {"prepared"}
    return text


@pytest.fixture
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training fails the test."""
    monkeypatch.setattr(crossval, "train_fold", None)


def test_a_plain_cohort_is_trained_and_cases_of_a_patient_stay_together(head_study):
    done, out = head_study.done, head_study.out
    assert done.returncode == 0, done.stderr
    fold = fold_of(out)
    assert set(fold) == {row["case_id"] for row in head_study.rows}
    assert all(fold[first] == fold[second] for first, second in TWICE.items())
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert (evaluation["n"], evaluation["patients"], evaluation["events"]) == (10, 8, 5)
    assert evaluation["flow"]["refused"] == []
    bundle = read_bundle(out / "model")
    assert len(bundle.members) == 2
    assert bundle.facts.tta == [[0]]  # what --mirrored asked for is asked of new CT too
    assert "10 cases, 5 events (simulated), out of fold:" in done.stdout
    assert f"report: {Path('OUT/index.html')}" in done.stdout
    assert "imulated" in (out / "index.html").read_text()


def test_lines_tell_where_training_is_when_no_person_watches(head_study):
    told = head_study.done.stderr.splitlines()
    assert "10 of 10 cases prepared; pictures: OUT/prepared/index.html" in told
    for k in (1, 2):
        assert any(row.startswith(f"fold {k} of 2: 2 of 2 iterations, loss ") for row in told)
    # slices of 8 mm are coarser than they should be: said once for all
    (coarse,) = [row for row in told if row.startswith("noticed: ")]
    assert coarse.startswith("noticed: case scan1 · ct_check: ")
    assert coarse.endswith("; so in scan1b, scan2, scan2b, scan3 and 5 more")
    page = (head_study.out / "index.html").read_text()
    assert "; so in 9 cases more" in page
    assert "scan1" not in page


@pytest.mark.usefixtures("_untrained")
def test_the_same_command_again_trains_nothing(head_study, tmp_path):
    shutil.copytree(head_study.out, tmp_path / "OUT")
    again = head_study.train(tmp_path, head_study.rows)
    assert again.returncode == 0, again.stderr
    assert again.stdout == head_study.done.stdout
    names = ("evaluation.json", "predictions.csv", "folds.json", "index.html")
    for name in names:
        assert (tmp_path / "OUT" / name).read_bytes() == (head_study.out / name).read_bytes()


@pytest.mark.usefixtures("_untrained")
def test_a_copy_of_a_ct_under_another_patient_is_refused(head_study, tmp_path):
    """Another study by its header, the same voxels: found once both are prepared."""
    copied = next(row for row in head_study.rows if row["case_id"] == "scan3")
    shutil.copytree(copied["image"], tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        ds = dcmread(path)
        ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.1"
        ds.save_as(path)
    fold = {}
    for seed in range(8):  # a split that tears the two apart
        rows = [*head_study.rows, copied | {"case_id": "copy", "patient_id": "P10",
                                           "image": str(tmp_path / "copy")}]  # fmt: skip
        fold = planned(rows, seed)
        if fold["copy"] != fold["scan3"]:
            break
    head_study.prepared_in(tmp_path)
    text = refusal(head_study.train(tmp_path, rows, "--seed", seed), tmp_path)
    assert "a test set is known from training; got the same voxels in " in text
    assert f"scan3 (fold {fold['scan3']}), copy (fold {fold['copy']})" in text
    assert "P10" not in text
    assert "; got the same voxels" in text
    assert "the same study" not in text


def planned(rows, seed: int, folds: int = 2) -> dict[str, int]:
    """Return the fold of each case that scikit-learn gives a table, from 1."""
    from sklearn.model_selection import StratifiedGroupKFold

    codes: dict[str, int] = {}
    groups = [codes.setdefault(row["patient_id"], len(codes)) for row in rows]
    outcome = np.array([int(row["outcome"]) for row in rows])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    split = splitter.split(np.zeros(len(rows)), outcome, groups)
    return {rows[i]["case_id"]: k for k, (_, test) in enumerate(split, 1) for i in test}


@pytest.mark.usefixtures("_untrained")
def test_two_series_of_one_study_under_two_patients_are_refused(head_study, tmp_path):
    """The headers are enough: nothing is prepared, nothing is written."""
    rows = [dict(row) for row in head_study.rows]
    fold = planned(rows, 0)
    first = next(row for row in rows if fold[row["case_id"]] == 1)
    other = next(row for row in rows if fold[row["case_id"]] == 2)
    uid = "1.2.826.0.1.3680043.8.498.424242"
    for row in (first, other):
        row["image"] = str(tmp_path / row["case_id"])
        write_series(Path(row["image"]), line(3), study=uid)
    done = head_study.train(tmp_path, rows)
    text = refusal(done, tmp_path)
    named = [f"{row['case_id']} (fold {fold[row['case_id']]})" for row in rows
             if row is first or row is other]  # fmt: skip
    assert f"a test set is known from training; got the same study in {', '.join(named)}." in text
    assert uid not in done.stderr + done.stdout
    assert hashlib.sha256(uid.encode()).hexdigest() not in done.stderr + done.stdout
    assert not (tmp_path / "OUT").exists()


@pytest.mark.usefixtures("_untrained")
@pytest.mark.parametrize("digest", ["kept", "made anew"])
def test_folds_that_tear_a_patient_apart_are_refused(head_study, tmp_path, digest):
    out = tmp_path / "OUT"
    head_study.prepared_in(tmp_path)
    record = json.loads((head_study.out / "folds.json").read_text())
    fold = fold_of(head_study.out)
    here = fold["scan1b"]
    record["folds"][here - 1]["test"].remove("scan1b")
    record["folds"][2 - here]["test"].append("scan1b")
    if digest == "made anew":
        patient = {row["case_id"]: row["patient_id"] for row in head_study.rows}
        rows = sorted(
            [case, patient[case], k] for k, f in enumerate(record["folds"]) for case in f["test"]
        )
        text = json.dumps(rows, separators=(",", ":"), sort_keys=True)
        record["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (out / "folds.json").write_text(json.dumps(record))
    done = head_study.train(tmp_path, head_study.rows)
    assert done.returncode == 2
    (text,) = [row for row in done.stderr.splitlines() if row.startswith("error ")]
    assert f"scan1b (fold {3 - here})" in text
    assert f"scan1 (fold {here})" in text
    assert "the same patient in " in text
    assert ("folds.json" in text) == (digest == "kept")
    assert not (out / "networks").exists()
    assert not (out / "evaluation.json").exists()


def test_times_by_site_make_folds_that_are_named_by_it(head_study, tmp_path):
    """One of the sites has no event: its fold has no area, and that is said."""
    rows = [dict(row) for row in head_study.rows]
    for row in rows:
        number = int(row["patient_id"][1:])
        row["site"] = "west" if number in (2, 8) else "east" if number in (1, 3, 4) else "north"
    head_study.prepared_in(tmp_path)
    times = ("--loss", "survival", "--time", "time_days", "--event", "event")
    ends = ("--interval-days", 20, "--interval-days", 90)
    done = head_study.train(tmp_path, rows, "--by-site", *times, *ends)
    assert done.returncode == 0, done.stderr
    assert "warning: fold 3 (a site of 3 cases) has one outcome only" in done.stderr.splitlines()
    site = {row["case_id"]: row["site"] for row in rows}
    with (tmp_path / "OUT" / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["case_id"]: row["fold"] for row in table} == site
    assert all(1 > float(row["s_20d"]) > float(row["s_90d"]) > 0 for row in table)
    evaluation = json.loads((tmp_path / "OUT" / "evaluation.json").read_text())
    named = {row["site"]: (row["n"], row["events"]) for row in evaluation["folds"]}
    assert named == {"east": (4, 3), "north": (3, 2), "west": (3, 0)}
    west = next(row for row in evaluation["sites"] if row["label"] == "west")
    assert west["auroc"]["value"] is None
    assert (evaluation["survival"]["n"], evaluation["survival"]["events"]) == (10, 5)
    assert "CT alone: Concordance (Uno, IPCW) " in done.stdout
    model = read_bundle(tmp_path / "OUT" / "model")
    assert (len(model.members), model.facts.interval_ends_days) == (3, (20.0, 90.0))


@pytest.mark.usefixtures("_untrained")
@pytest.mark.parametrize(
    ("words", "change", "told"),
    [
        (["--by-site"], {"site": "north"}, "folds by site need two sites; got one"),
        (["--by-site"], {"site": ""}, "folds by site need the site of every case; got none for"),
        (["--loss", "survival"], {}, "the survival loss needs the time to the event; expected"),
        (["--time", "days", "--event", "event"], {}, "there is no column 'days'"),
        (["--time", "time_days"], {}, "a time needs an event and an event a time"),
        (
            ["--loss", "survival", "--time", "time_days", "--event", "event"],
            {"time_days": "200"},
            "no event lies within the intervals of time; expected 90 d",
        ),
        (["--nested"], {}, "nested networks need three folds; got 2"),
        (["--encoder", "none.pt"], {}, "--encoder: there is no such file of weights"),
        (["--architecture", "densenet121"], {}, "the volumes are too small for the network"),
        (["--validation-share", "0"], {}, "nothing is left to recalibrate and to choose"),
        (["--sensitivity", "0.9", "--specificity", "0.9"], {}, "the operating point is wrong"),
    ],
)
def test_what_the_table_or_a_setting_lacks_is_told_before_anything_is_prepared(
    head_study, tmp_path, words, change, told
):
    done = head_study.train(tmp_path, [row | change for row in head_study.rows], *words)
    assert done.returncode == 2
    assert told in done.stderr
    assert len([row for row in done.stderr.splitlines() if row.startswith("error ")]) == 1
    assert not (tmp_path / "OUT").exists()
