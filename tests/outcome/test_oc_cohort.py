"""Tables of cohorts: what is read, and that one reading tells every problem by its line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medpipe.errors import ManifestError, UsageError
from medpipe.io.case import Case
from medpipe.io.manifest import write_manifest
from medpipe.outcome.cohort import Cohort, read_cohort
from medpipe.outcome.covariates import (
    ACQUISITION,
    COVARIATES,
    LATER,
    covariate,
    meant_covariate,
    parse_covariate,
    parse_number,
)

PLANTED = "Mustermann"
SOUND = (
    "case_id,patient_id,outcome,site,age_years,sex,gcs,ich_ml\n"
    "c1,p1,1,north,63,F,3,12.5\n"
    "c2,p2,0,south,,male,15,NA\n"
    "c3,p1,1,north,63.5,female,4,0\n"
)


def table(folder: Path, text: str, name: str = "cases.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, **options) -> Cohort:
    options.setdefault("image", None)
    return read_cohort(table(folder, text), **options)


def refused(folder: Path, text: str, **options) -> list[tuple[int | None, str]]:
    with pytest.raises(ManifestError) as caught:
        read(folder, text, **options)
    lines = str(caught.value).splitlines()
    assert PLANTED not in str(caught.value)
    assert all(line.startswith("cases.csv") for line in lines)
    return [(p.line, f"{p.what} | {p.hint}") for p in caught.value.problems]


def rows(column: str, *cells: str) -> str:
    """A sound table with one more column."""
    text = f"case_id,patient_id,outcome,{column}\n"
    return text + "".join(f"c{i},p{i},{i % 2},{cell}\n" for i, cell in enumerate(cells))


def test_a_sound_table_gives_its_columns(tmp_path):
    cohort = read(tmp_path, SOUND)
    assert cohort.case_ids == ("c1", "c2", "c3")
    assert cohort.patients == ("p1", "p2", "p1")
    assert cohort.outcome.tolist() == [1, 0, 1]
    assert cohort.outcome.dtype == np.int64
    assert cohort.sites == ("north", "south", "north")
    assert list(cohort.covariates) == ["age_years", "sex", "gcs", "ich_ml"]
    np.testing.assert_array_equal(cohort.covariates["age_years"], [63.0, np.nan, 63.5])
    np.testing.assert_array_equal(cohort.covariates["sex"], [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(cohort.covariates["ich_ml"], [12.5, np.nan, 0.0])
    assert (cohort.n_patients, cohort.n_events, len(cohort)) == (2, 1, 3)
    assert cohort.patient_codes.tolist() == [0, 1, 0]
    assert cohort.time_days is None
    assert cohort.findings == ()


def test_images_are_found_and_checked(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"a")
    text = "case_id,patient_id,image,outcome\nc1,p1,a.nii.gz,1\nc2,p2,b.nii.gz,0\nc3,p3,,2\n"
    assert refused(tmp_path, text, image="image") == [
        (3, "input 'image' does not exist | None"),
        (4, "input 'image' is empty | every case needs it"),
        (4, "'outcome' is not 0 or 1 | write 1 for the event and 0 for its absence"),
    ]
    cohort = read(tmp_path, text.replace("c3,p3,,2\n", ""), image="image", check_files=False)
    assert cohort.images == {"c1": tmp_path / "a.nii.gz", "c2": tmp_path / "b.nii.gz"}


def test_what_the_writer_of_manifests_wrote_is_read(tmp_path):
    cases = [
        Case(f"c{i}", {"image": None}, f"+p{i}", {"outcome": i % 2, "age_years": 50 + i})
        for i in range(4)
    ]
    write_manifest(tmp_path / "cases.csv", cases)
    cohort = read_cohort(tmp_path / "cases.csv", image=None, covariates=["age_years"])
    assert cohort.patients == ("+p0", "+p1", "+p2", "+p3")
    assert cohort.covariates["age_years"].tolist() == [50.0, 51.0, 52.0, 53.0]


def test_one_reading_finds_every_problem_and_quotes_no_cell(tmp_path):
    text = (
        "case_id,patient_id,outcome,age_years,sex,gcs,time_days,event\n"
        f"c1,p1,,40,F,15,10,1\n"  # missing
        f"c2,p2,{PLANTED},40,F,15,10,1\n"  # no number
        f"c3,p3,2,140,F,15,10,1\n"  # two problems
        f"c4,p4,1,{PLANTED},{PLANTED},2,0,1\n"  # four
        f"c5,p4,0,40,F,3.5,-1,0\n"  # contradicts c4 in outcome and event; two more
        f"bad id,p6,0,40,F,15,5,2\n"  # one of the manifest, one of the event
        f"c7,,0,40,F,15,{PLANTED},0\n"  # no patient, no time
        f"c8,p8,0,40,F,15,,\n"  # no time, no event
    )
    found = refused(tmp_path, text, time="time_days", event="event")
    assert [(line, words.split(" | ")[0]) for line, words in found] == [
        (2, "'outcome' is missing"),
        (3, "'outcome' is not 0 or 1"),
        (4, "'outcome' is not 0 or 1"),
        (4, "'age_years' is out of range"),
        (5, "'time_days' is not above 0"),
        (5, "'age_years' is not a number"),
        (5, "'sex' is neither female nor male"),
        (5, "'gcs' is out of range"),
        (6, "'time_days' is not above 0"),
        (6, "the patient of line 5 has another 'outcome' here"),
        (6, "the patient of line 5 has another 'event' here"),
        (6, "'gcs' is not a whole number"),
        (7, "case_id has characters that a folder name should not have"),
        (7, "'event' is not 0 or 1"),
        (8, "'time_days' is not a number"),
        (8, "'patient_id' is missing"),
        (9, "'time_days' is missing"),
        (9, "'event' is missing"),
    ]


@pytest.mark.parametrize("cell", ["2", "-1", "yes", "0.5", "True", "1e400", "dead", "0,0"])
def test_an_outcome_is_zero_or_one(tmp_path, cell):
    text = rows("gcs", "3", "4") + f'c9,p9,"{cell}",5\n'
    assert refused(tmp_path, text) == [
        (4, "'outcome' is not 0 or 1 | write 1 for the event and 0 for its absence")
    ]


@pytest.mark.parametrize("cell", ["", "NA", "nan", " "])
def test_a_missing_outcome_is_refused(tmp_path, cell):
    text = rows("gcs", "3", "4") + f"c9,p9,{cell},5\n"
    assert refused(tmp_path, text) == [(4, "'outcome' is missing | every case needs it")]


@pytest.mark.parametrize(("value", "told"), [("1", "every outcome is 1"), ("0", "is 0")])
def test_one_class_only_is_refused(tmp_path, value, told):
    text = f"case_id,patient_id,outcome\nc1,p1,{value}\nc2,p2,{value}\n"
    ((line, words),) = refused(tmp_path, text, folds=2)
    assert line is None
    assert told in words
    assert "1 is the event" in words


@pytest.mark.parametrize(("events", "others"), [(3, 9), (9, 3)])
def test_fewer_patients_of_an_outcome_than_folds_are_refused(tmp_path, events, others):
    # the first patient has three cases: cases are not what is counted
    lines = [f"c{i},p{max(i - 2, 0)},1" for i in range(events + 2)]
    lines += [f"d{i},q{max(i - 2, 0)},0" for i in range(others + 2)]
    text = "case_id,patient_id,outcome\n" + "\n".join(lines) + "\n"
    ((line, words),) = refused(tmp_path, text, folds=4)
    kind = "with" if events < others else "without"
    assert line is None
    assert words == f"3 patients {kind} the event are fewer than the 4 folds | use at most 3 folds"
    assert read(tmp_path, text, folds=3).n_events == events


def test_a_patient_with_two_outcomes_is_told_with_both_lines(tmp_path):
    text = f"case_id,patient_id,outcome\nc1,{PLANTED},1\nc2,p2,0\nc3,{PLANTED},0\n"
    assert refused(tmp_path, text) == [
        (
            4,
            "the patient of line 2 has another 'outcome' here"
            " | correct one of the two, or the patient",
        )
    ]


def test_ids_that_differ_by_case_alone_are_refused(tmp_path):
    text = (
        f"case_id,patient_id,outcome,site\nc1,{PLANTED},1,A\nc2,{PLANTED.upper()},1,a\nc3,p,0,A\n"
    )
    assert [(line, w.split(" | ")[0]) for line, w in refused(tmp_path, text)] == [
        (3, "'patient_id' is the one of line 2 but for upper and lower case"),
        (3, "'site' is the one of line 2 but for upper and lower case"),
    ]


def test_blanks_around_a_patient_do_not_make_another(tmp_path):
    text = "case_id,patient_id,outcome\nc1,p1,1\nc2, p1 ,1\nc3,p2,0\n"
    assert read(tmp_path, text).patients == ("p1", "p1", "p2")


def test_without_patients_every_case_is_one_and_it_is_told(tmp_path):
    cohort = read(tmp_path, "case_id,outcome\nc1,1\nc2,0\n")
    assert cohort.patients == ("c1", "c2")
    assert [f.check for f in cohort.findings] == ["cohort.no_patients"]
    (found,) = refused(tmp_path, "case_id,outcome\nc1,1\nc2,0\n", patient="person")
    assert found[0] == 1
    assert "there is no column 'person'" in found[1]


def test_unknown_columns_are_refused_until_they_are_asked_for(tmp_path):
    text = rows("kernel,Age_Years", "1,50", "2,60")
    assert refused(tmp_path, text) == [
        (1, "column 4 ('kernel') is no known covariate | ask for it by name, or delete the column"),
        (1, "column 5 ('Age_Years') is no known covariate | rename it to 'age_years'"),
    ]
    assert read(tmp_path, text, covariates=["kernel"]).covariates["kernel"].tolist() == [1.0, 2.0]
    assert read(tmp_path, text, covariates=[]).covariates == {}
    assert refused(tmp_path, text, covariates=["kernels"]) == [
        (1, "there is no column 'kernels' | did you mean 'kernels' where it says 'kernel'?")
    ]


def test_a_name_of_a_column_that_is_none_is_told_once_and_not_quoted(tmp_path):
    text = rows(f'"{PLANTED}\nborn"', "1", "2")
    ((line, words),) = refused(tmp_path, text)
    assert (line, words.split(" | ")[0]) == (1, "column 4 has a name that is not plain text")


def test_an_unknown_covariate_must_be_a_number(tmp_path):
    text = rows("lactate", "1.5", "-2e1", PLANTED, '"1,5"', "inf", "1_0")
    assert refused(tmp_path, text, covariates=["lactate"]) == [
        (4, "'lactate' is not a number | write a number, or nothing"),
        (5, "'lactate' is not a number | write a point for decimals"),
        (6, "'lactate' is not a number | write a number, or nothing"),
        (7, "'lactate' is not a number | write a number, or nothing"),
    ]


def test_columns_of_a_scan_and_later_ones_are_left_alone(tmp_path):
    names = [*sorted(ACQUISITION), *sorted(LATER - {"outcome"})]
    text = rows(",".join(names), *(",".join(["x"] * len(names)),) * 2)
    assert read(tmp_path, text).covariates == {}


@pytest.mark.parametrize("name", sorted(LATER))
def test_what_is_known_only_later_is_no_covariate(tmp_path, name):
    with pytest.raises(UsageError, match=r"known only after|used for two things"):
        read(tmp_path, SOUND, covariates=[name])


def test_columns_must_not_contradict_each_other(tmp_path):
    with pytest.raises(UsageError, match="used for two things"):
        read(tmp_path, SOUND, covariates=["site"])
    with pytest.raises(UsageError, match="a time needs an event"):
        read(tmp_path, SOUND, time="time_days")


@pytest.mark.parametrize("rule", COVARIATES.values(), ids=lambda r: r.name)
def test_each_known_covariate_has_its_limits(tmp_path, rule):
    if rule.kind == "sex":
        good, bad = ["female", "M", ""], ["1", "0", "other"]
    else:
        good = [f"{rule.low:g}", f"{rule.high:g}", ""]
        bad = [f"{rule.low - 1:g}", f"{rule.high + 1:g}", "x"]
    cohort = read(tmp_path, rows(rule.name, *good))
    values = cohort.covariates[rule.name]
    assert values[:2].tolist() == [rule.low, rule.high]
    assert np.isnan(values[2])
    assert [line for line, _ in refused(tmp_path, rows(rule.name, *bad))] == [2, 3, 4]


def test_missing_values_are_counted(tmp_path):
    text = rows("gcs,wfns,fisher", "3,,", "4,2,", ",,", "5,,")
    cohort = read(tmp_path, text)
    assert sorted(cohort.covariates) == ["gcs", "wfns"]
    assert {(f.check, f.message) for f in cohort.findings} == {
        ("cohort.missing", "'wfns' is missing in 3 of 4 cases"),
        ("cohort.no_value", "'fisher' has no value and is left out"),
    }


def test_sites_that_are_not_known_are_told(tmp_path):
    cohort = read(tmp_path, rows("site", "north", "", "n/a"))
    assert cohort.sites == ("north", "", "")
    assert [f.message for f in cohort.findings] == ["the site of 2 cases is not known"]
    assert read(tmp_path, rows("site", "north", ""), site=None, covariates=[]).sites is None


def test_times_and_events_are_read(tmp_path):
    text = rows("time_days,event", "0.5,1", "90,0", "12,1")
    cohort = read(tmp_path, text, time="time_days", event="event")
    assert cohort.time_days.tolist() == [0.5, 90.0, 12.0]
    assert cohort.event.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "line"),
    [("", None), ("patient_id,outcome\np1,1\n", 1), ("case_id;outcome\nc1;1\n", 1)],
)
def test_a_file_that_is_no_table_is_refused_once(tmp_path, text, line):
    (found,) = refused(tmp_path, text)
    assert found[0] == line
    with pytest.raises(ManifestError, match="does not exist"):
        read_cohort(tmp_path / "none.csv")


def test_a_table_without_the_outcome_is_told_with_the_nearest_column(tmp_path):
    text = "case_id,patient_id,outcom\nc1,p1,1\n"
    found = refused(tmp_path, text, covariates=[])
    assert found == [
        (1, "there is no column 'outcome' | did you mean 'outcome' where it says 'outcom'?")
    ]


def test_parquet_is_read_like_csv(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    columns = {
        "case_id": ["c1", "c2"],
        "patient_id": ["p1", "p2"],
        "outcome": [1.0, 0.0],
        "age_years": [50.5, float("nan")],
    }
    pq.write_table(pa.table(columns), tmp_path / "cases.parquet")
    cohort = read_cohort(tmp_path / "cases.parquet", image=None)
    assert cohort.outcome.tolist() == [1, 0]
    np.testing.assert_array_equal(cohort.covariates["age_years"], [50.5, np.nan])


def test_a_cohort_shows_no_pseudonym_and_can_be_cut(tmp_path):
    cohort = read(tmp_path, SOUND)
    assert repr(cohort) == "Cohort(3 cases, 2 patients, 1 events)"
    part = cohort.select([2, 1])
    assert part.case_ids == ("c3", "c2")
    assert part.patients == ("p1", "p2")
    assert part.outcome.tolist() == [1, 0]
    assert part.sites == ("north", "south")
    np.testing.assert_array_equal(part.covariates["age_years"], [63.5, np.nan])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patients": ("p",)}, "differ in length"),
        ({"outcome": np.array([0, 2])}, "not 0 or 1"),
        ({"case_ids": ("a", "a")}, "there twice"),
        ({"patients": ("p", "p")}, "cases a and b: one patient has two outcomes"),
        ({"covariates": {"x": np.zeros(3)}}, "differ in length"),
    ],
)
def test_a_cohort_made_in_code_is_checked(change, told):
    given = {"case_ids": ("a", "b"), "patients": ("p", "q"), "outcome": np.array([0, 1])}
    Cohort(**given)
    with pytest.raises(UsageError, match=told):
        Cohort(**(given | change))


def test_numbers_and_names_of_covariates():
    assert parse_number(" -1.5e1 ") == -15.0
    assert parse_number("None") is None
    with pytest.raises(ValueError, match="not a number"):
        parse_number("0x10")
    assert meant_covariate("age_years") is None
    assert meant_covariate("hunthess") == "hunt_hess"
    assert meant_covariate("kernel") is None
    assert parse_covariate("0", COVARIATES["ivh"]) == 0.0
    assert covariate("age_years").expected == "a number from 0 to 120 years"
    assert covariate("lactate").expected == "a number"
    assert not LATER & set(COVARIATES)


def test_the_page_names_every_covariate_with_its_values_and_the_messages(tmp_path):
    page = (Path(__file__).resolve().parents[2] / "docs/reference/outcome-cohort.md").read_text()
    for rule in COVARIATES.values():
        assert f"| `{rule.name}` | {rule.meaning} | {rule.expected} |" in page
    said = [part.split("Next: ")[-1] for part in page.split("`") if "Next: " in part]
    assert len(said) == 16
    text = (
        "case_id,patient_id,outcome,age_years,gcs,ich_ml,sex,time_days,event\n"
        "c1,p1,,,,,,1,1\nc2,p2,2,,,,,1,1\nc3,p3,0,200,3.5,x,1,0,2\n"
        "c4,p4,0,,,,,1,0\nc5,p4,1,,,,,1,0\nc6,P4,0,,,,,1,0\nc7,,0,,,,,1,0\n"
    )
    hints = {w.split(" | ")[1] for _, w in refused(tmp_path, text, time="time_days", event="event")}
    text = rows("kernel,Age_Years", "1,50", "2,60")
    hints |= {w.split(" | ")[1] for _, w in refused(tmp_path, text)}
    hints |= {w.split(" | ")[1] for _, w in refused(tmp_path, text, covariates=["kernels"])}
    text = "case_id,patient_id,outcome\nc1,p1,0\n"
    hints |= {w.split(" | ")[1] for _, w in refused(tmp_path, text)}
    text += "".join(f"d{i},q{i},{int(i < 3)}\n" for i in range(9))
    hints |= {w.split(" | ")[1] for _, w in refused(tmp_path, text, folds=5)}
    assert set(said) == hints - {"None"}


def test_reading_a_cohort_imports_no_framework():
    code = (
        "import sys, medpipe.outcome.cohort, medpipe.outcome.folds, medpipe.outcome.leaks,"
        " medpipe.outcome.clinical;"
        "print({'torch', 'monai', 'sklearn', 'scipy', 'nibabel'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
