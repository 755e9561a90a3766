"""Populations of brains: volumes by counting, wanted against measured, files."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.geometry import affine_from_parts
from medpipe.io.manifest import load_manifest
from medpipe.io.nifti import read_nifti, write_nifti
from medpipe.phantoms.brain_ageing import Ageing
from medpipe.phantoms.brain_population import (
    BrainScan,
    Person,
    PopulationModel,
    draw_person,
    simulate_brain,
)
from medpipe.phantoms.brain_population_folder import BrainCohort, write_brain_population
from medpipe.phantoms.brain_population_labels import (
    BRAIN,
    BrainRegion,
    drawn_head,
    label_head,
    label_head_files,
    read_label_head,
)
from medpipe.types import Volume

SCAN = BrainScan((48, 48, 48), 4.0, samples=2)
VENTRICLE_MM, WHITE_MM, BRAIN_MM, CSF_MM, HEAD_MM = 16.0, 55.0, 66.0, 74.0, 84.0


def ball_ml(radius_mm: float) -> float:
    return 4 / 3 * np.pi * radius_mm**3 / 1000


@pytest.fixture(scope="module")
def balls() -> Volume:
    """A head of concentric balls, off the middle of its grid and with flipped axes."""
    spacing = np.array([2.0, 2.0, 2.0])
    affine = affine_from_parts(np.diag([-1.0, 1, 1]), spacing, np.array([101.0, -90, -94]))
    index = np.moveaxis(np.indices((96, 96, 96)), 0, -1)
    at = index @ affine[:3, :3].T + affine[:3, 3] - np.array([3.0, 4.0, -1.0])
    r = np.sqrt((at**2).sum(-1))
    labels = np.zeros(r.shape, np.int32)
    for radius, number in ((HEAD_MM, 511), (CSF_MM, 24), (BRAIN_MM, 3), (WHITE_MM, 2)):
        labels[r < radius] = number
    labels[(r < WHITE_MM) & (at[..., 0] > 0)] = 41
    labels[r < VENTRICLE_MM] = 43
    return Volume(labels, affine)


@pytest.fixture(scope="module")
def ageing(balls) -> Ageing:
    return Ageing(label_head(balls))


def test_regions_have_the_volumes_of_balls(ageing):
    volumes = ageing.head.volumes_ml()
    assert volumes["lateral_ventricle"] == pytest.approx(ball_ml(VENTRICLE_MM), rel=0.02)
    white = ball_ml(WHITE_MM) - ball_ml(VENTRICLE_MM)
    assert volumes["white"] == pytest.approx(white, rel=0.01)  # both sides
    assert ageing.head.at([0.0, 0, 0]) == ageing.head.at([VENTRICLE_MM - 3, 0, 0])  # the middle


@pytest.mark.parametrize(("share", "ventricle_ml"), [(1.0, 10.0), (0.95, 35.0)])
def test_counted_volumes_are_those_asked_for(ageing, share, ventricle_ml):
    made = simulate_brain(ageing, 4, Person(70.0, "F", ventricle_ml, share, 1.03), SCAN)
    known = made.facts["conditions"]
    assert known["ventricle_ml"] == pytest.approx(ventricle_ml, rel=0.05)
    assert known["brain_ml"] == pytest.approx(made.facts["expected"]["brain_ml"], rel=0.02)
    own = sum(ageing.head.volumes_ml()[r.name.lower()] for r in BRAIN)
    assert known["brain_ml"] == pytest.approx(share * own * 1.03**3, rel=0.02)
    counted = (made.labels == BrainRegion.LATERAL_VENTRICLE).sum() * 4.0**3 / 1000
    assert counted == pytest.approx(known["ventricle_ml"], rel=0.12)


def test_less_brain_is_left_where_less_is_asked_for(ageing):
    own = sum(ageing.head.volumes_ml()[r.name.lower()] for r in BRAIN)
    still = BrainScan((48,) * 3, 4.0, deform_mm=0.0)
    made = simulate_brain(ageing, 4, Person(70.0, "F", 20.0, 0.95, 1.03), still)
    assert made.facts["conditions"]["brain_ml"] == pytest.approx(0.95 * own * 1.03**3, rel=0.015)


def test_growth_adds_up_to_the_volume_in_the_label_map(ageing):
    made = simulate_brain(ageing, 9, Person(70.0, "M", 25.0, 1.0, 1.0), SCAN)
    whole = made.labels > 0  # what is in the image, taken back to the label map
    back = (1 / made.growth[whole]).sum() * 4.0**3 / 1000
    assert back == pytest.approx(ball_ml(HEAD_MM), rel=0.02)
    assert made.growth.min() > 0


def test_tissues_have_their_contrast(ageing):
    person = Person(60.0, "F", 17.0, 1.0, 1.0)
    made = simulate_brain(ageing, 2, person, BrainScan((48,) * 3, 4.0, bias=0.0))

    def middle(region):
        return np.median(made.volume.data[made.labels == region])

    ventricle, grey, white = (
        middle(r) for r in (BrainRegion.LATERAL_VENTRICLE, BrainRegion.GREY, BrainRegion.WHITE)
    )
    assert ventricle < grey < white
    assert white == pytest.approx(100, rel=0.15)


def test_ages_go_with_ventricles():
    people = [draw_person(np.random.default_rng(i), PopulationModel()) for i in range(800)]
    age = np.array([p.age_years for p in people])
    log_ml = np.log([p.ventricle_ml for p in people])
    male = np.array([p.sex == "M" for p in people])
    design = np.column_stack([np.ones(800), age - 65, male])
    fitted = np.linalg.lstsq(design, log_ml, rcond=None)[0]
    np.testing.assert_allclose(fitted, [np.log(22.0), 0.025, 0.15], atol=0.06)


def test_ventricles_are_drawn_within_what_the_head_reaches(ageing):
    low, high = ageing.reach_ml
    own = ball_ml(VENTRICLE_MM)
    assert low < 0.5 * own
    assert high == pytest.approx(2.5 * own, rel=0.02)
    wide = PopulationModel(ventricle_ml=40.0, ventricle_spread=1.5)
    people = [draw_person(np.random.default_rng(i), wide, (low, high)) for i in range(300)]
    wanted = np.array([p.ventricle_ml / p.size**3 for p in people])
    assert low <= wanted.min() < 2 * low
    assert 0.9 * high < wanted.max() <= high * (1 + 1e-9)
    assert len(np.unique(wanted)) == 300  # drawn anew, not moved to the ends


@pytest.mark.parametrize("end", [0, 1])
def test_both_ends_of_the_reach_are_met(ageing, end):
    wanted = ageing.reach_ml[end]
    share = (1.02, 0.93)[end]
    velocity, reached = ageing.solve(share, wanted)
    assert reached["ventricles_ml"] == pytest.approx(wanted, rel=0.003)
    own = sum(ageing.head.volumes_ml()[r.name.lower()] for r in BRAIN)
    assert reached["brain_ml"] == pytest.approx(share * own, rel=0.003)
    assert velocity.warp(-1.0).jacobian().min() > 0


def test_one_label_map_of_a_folder_is_read(tmp_path, balls):
    write_nifti(tmp_path / "b.nii.gz", balls)
    write_nifti(tmp_path / "a.nii.gz", Volume(np.zeros((4, 4, 4), np.int32), np.eye(4)))
    assert read_label_head(tmp_path, 1).volumes_ml()["white"] > 500
    with pytest.raises(InputError, match=r"label map 1.*no whole head"):
        read_label_head(tmp_path, 0)


def test_a_folder_holds_what_its_truth_says(tmp_path, balls):
    maps = tmp_path / "maps"
    maps.mkdir()
    write_nifti(maps / "a.nii.gz", balls)
    cohort = BrainCohort(2, seed=1, scan=replace(SCAN, samples=1), label_maps=maps, growth=True)
    cases = write_brain_population(tmp_path / "out", cohort)
    assert [c.case_id for c in load_manifest(tmp_path / "out" / "cases.csv").cases] == [
        "brain0001",
        "brain0002",
    ]
    # both are made from one head: no split takes them apart
    assert [c.patient_id for c in cases] == ["P1-0001", "P1-0001"]
    truth = json.loads((tmp_path / "out" / "truth.json").read_text())
    assert str(tmp_path) not in json.dumps(truth)
    facts = truth["cases"]["brain0002"]
    folder = tmp_path / "out" / "images" / "brain0002"
    labels = read_nifti(folder / "labels.nii.gz")
    counted = (labels.data == truth["regions"]["white"]).sum() * 4.0**3 / 1000
    assert counted == pytest.approx(facts["volumes_ml"]["white"], rel=0.03)
    assert cases[1].covariates["ventricle_ml"] == round(facts["conditions"]["ventricle_ml"], 3)
    assert read_nifti(folder / "growth.nii.gz").data.min() > 0
    again = write_brain_population(tmp_path / "again", replace(cohort, subjects=1))
    assert again[0].covariates == cases[0].covariates
    name = "images/brain0001/mr.nii.gz"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_drawn_head_has_the_regions_of_a_head():
    volumes = drawn_head(1, 4.0).volumes_ml()
    assert 900 < sum(volumes[r.name.lower()] for r in BRAIN) < 1900
    assert 5 < volumes["lateral_ventricle"] < 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: np.where(d == 24, 99, d), "no regions of the brain"),
        (lambda d: np.where(d == 43, 2, d), "no whole head"),
        (lambda d: d + 0.5, "fractions"),
    ],
)
def test_a_wrong_label_map_is_named(balls, change, words):
    with pytest.raises(InputError, match=words):
        label_head(Volume(change(balls.data), balls.affine))


def test_settings_that_make_no_sense_are_refused(tmp_path):
    with pytest.raises(UsageError, match="cuts the brain"):
        BrainScan((32, 64, 64), 3.0)
    with pytest.raises(UsageError, match="unknown contrast"):
        BrainScan(contrast="ct")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such population"):
        BrainCohort(0)
    with pytest.raises(InputError, match="no label map"):
        label_head_files(tmp_path)


@pytest.mark.real_data
def test_a_real_head_is_met_to_some_percent(real_data):
    head = label_head(read_nifti(real_data / "brain_labels" / "training_seg_03.nii.gz"))
    made = simulate_brain(Ageing(head), 5, Person(75.0, "M", 24.0, 0.97, 1.0))
    known = made.facts["conditions"]
    assert known["ventricle_ml"] == pytest.approx(24.0, rel=0.08)
    assert made.facts["jacobian"]["least"] > 0
