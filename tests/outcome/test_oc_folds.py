"""Folds by patient and by site, and the file that keeps them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.outcome.cohort import Cohort
from medpipe.outcome.folds import make_folds, read_folds, write_folds


def make(outcomes: list[int], repeats: list[int] | None = None, sites=None) -> Cohort:
    """A cohort of patients with one or more cases each."""
    repeats = repeats or [1] * len(outcomes)
    patients = [f"p{i}" for i, r in enumerate(repeats) for _ in range(r)]
    outcome = [outcomes[i] for i, r in enumerate(repeats) for _ in range(r)]
    ids = tuple(f"c{i:03d}" for i in range(len(patients)))
    return Cohort(ids, tuple(patients), np.array(outcome, np.int64), sites=sites)


def shuffled(cohort: Cohort) -> Cohort:
    return cohort.select(np.random.default_rng(5).permutation(len(cohort)))


PAPER = make([1] * 63 + [0] * 156)


def test_every_case_is_tested_once_and_no_patient_twice():
    rng = np.random.default_rng(1)
    cohort = shuffled(make(rng.integers(0, 2, 80).tolist(), rng.integers(1, 4, 80).tolist()))
    folds = make_folds(cohort, folds=5, seed=3)
    assert sorted(np.concatenate(folds.test).tolist()) == list(range(len(cohort)))
    where: dict[str, set[int]] = {}
    for k, test in enumerate(folds.test):
        assert (np.diff(test) > 0).all()
        for i in test:
            assert folds.fold_of[i] == k
            where.setdefault(cohort.patients[i], set()).add(k)
        train = folds.train(k)
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(cohort)
    assert all(len(k) == 1 for k in where.values())


def test_outcomes_are_shared_out_evenly():
    folds = make_folds(PAPER, folds=5, seed=0)
    events = [int(PAPER.outcome[t].sum()) for t in folds.test]
    assert sorted(events) == [12, 12, 13, 13, 13]
    assert all(43 <= len(t) <= 44 for t in folds.test)


def test_the_seed_alone_decides():
    a, b, c = (make_folds(PAPER, folds=5, seed=s) for s in (7, 7, 8))
    assert all(np.array_equal(x, y) for x, y in zip(a.test, b.test, strict=True))
    assert a.digest == b.digest != c.digest


@pytest.mark.parametrize(("ones", "kind"), [(4, "with"), (16, "without")])
def test_fewer_patients_of_an_outcome_than_folds_are_refused(ones, kind):
    # two cases for each patient: five folds could be filled with cases, not with patients
    cohort = make([1] * ones + [0] * (20 - ones), [2] * 20)
    with pytest.raises(UsageError, match=f"patients {kind} the event are fewer") as caught:
        make_folds(cohort, folds=5)
    assert caught.value.got == "4"
    assert len(make_folds(cohort, folds=4)) == 4


def test_one_fold_is_refused():
    with pytest.raises(UsageError, match="too few folds"):
        make_folds(PAPER, folds=1)


def test_each_site_is_left_out_once():
    sites = ("b", "a", "b", "c", "a", "c", "a")
    cohort = make([1, 0, 0, 1, 1, 1, 0], sites=sites)
    folds = make_folds(cohort, by_site=True)
    assert folds.kind == "leave-one-site-out"
    assert folds.names == ("a", "b", "c")
    assert [t.tolist() for t in folds.test] == [[1, 4, 6], [0, 2], [3, 5]]
    (finding,) = folds.findings
    assert finding.message == "fold 3 (a site of 2 cases) has one outcome only"


@pytest.mark.parametrize(
    ("sites", "told"),
    [
        (None, "a table without sites"),
        (("a", "", "b", "b"), "none for case c001"),
        (("a", "a", "a", "a"), "need two sites"),
        (("a", "a", "a", "b"), "only one outcome is left"),
    ],
)
def test_sites_that_give_no_folds_are_refused(sites, told):
    with pytest.raises(UsageError, match=told):
        make_folds(make([1, 0, 0, 1], sites=sites), by_site=True)


def test_a_patient_at_two_sites_is_refused_by_case():
    cohort = make([1, 0, 1, 0], [1, 2, 1, 1], sites=("a", "a", "b", "a", "b"))
    with pytest.raises(UsageError, match="case c002: a patient has cases at two sites"):
        make_folds(cohort, by_site=True)


def test_the_file_gives_the_folds_back_for_rows_in_any_order(tmp_path):
    cohort = make([1, 0] * 12, [1, 2] * 12)
    folds = make_folds(cohort, folds=4, seed=2)
    path = tmp_path / "folds.json"
    write_folds(path, folds, cohort)
    back = read_folds(path, cohort)
    assert all(np.array_equal(x, y) for x, y in zip(folds.test, back.test, strict=True))
    assert (back.digest, back.kind, back.names, back.seed) == (
        folds.digest,
        folds.kind,
        folds.names,
        folds.seed,
    )
    other = shuffled(cohort)
    moved = read_folds(path, other)
    for before, after in zip(folds.test, moved.test, strict=True):
        assert {cohort.case_ids[i] for i in before} == {other.case_ids[i] for i in after}
    assert "p1" not in path.read_text()


def test_the_hash_is_the_one_of_the_format(tmp_path):
    cohort = make([1, 1, 0, 0])
    folds = make_folds(cohort, folds=2)
    rows = sorted([f"c00{i}", f"p{i}", int(folds.fold_of[i])] for i in range(4))
    text = json.dumps(rows, separators=(",", ":"))
    assert folds.digest == hashlib.sha256(text.encode()).hexdigest()


def test_a_file_of_another_cohort_is_refused(tmp_path):
    cohort = make([1, 0] * 12)
    path = tmp_path / "folds.json"
    write_folds(path, make_folds(cohort, folds=4), cohort)
    with pytest.raises(UsageError, match=r"another cohort.*got 1 cases that are not in it, and 0"):
        read_folds(path, cohort.select(range(23)))
    renamed = replace(cohort, case_ids=("x", *cohort.case_ids[1:]))
    with pytest.raises(UsageError, match="1 cases that are not in it, and 1 of it are missing"):
        read_folds(path, renamed)
    # two patients turn out to be one: the same cases, other groups
    regrouped = replace(cohort, patients=("p2", *cohort.patients[1:]))
    with pytest.raises(UsageError, match="grouped otherwise"):
        read_folds(path, regrouped)


def test_a_file_that_was_changed_is_refused(tmp_path):
    cohort = make([1, 0] * 12)
    path = tmp_path / "folds.json"
    write_folds(path, make_folds(cohort, folds=4), cohort)
    record = json.loads(path.read_text())
    first, second = record["folds"][0]["test"], record["folds"][1]["test"]
    second.append(first.pop())
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="were changed"):
        read_folds(path, cohort)
    second.append(first[0])  # in two test sets
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="were changed"):
        read_folds(path, cohort)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}', '{"schema": 2, "folds": []}'])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "folds.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no file of folds"):
        read_folds(path, PAPER)
    with pytest.raises(InputError, match="cannot be read"):
        read_folds(tmp_path / "none.json", PAPER)


def test_folds_of_another_cohort_are_not_written(tmp_path):
    folds = make_folds(PAPER, folds=5)
    with pytest.raises(UsageError, match="not of this cohort"):
        write_folds(tmp_path / "folds.json", folds, make([1, 0] * 12))
    assert not list(tmp_path.iterdir())
