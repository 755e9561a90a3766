"""An honest set passes every gate, planted sets fail theirs, and the record is JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from sy_labelled_sets import REGIONS, by_intensity, eggs, moments
from sy_labelled_sets import egg_set as drawn_set

from medpipe.errors import InputError, StepError, UsageError
from medpipe.synthesis.evaluation import evaluate_synthesis
from medpipe.synthesis.evaluation_conditions import conditions_of
from medpipe.synthesis.evaluation_controls import gates_of, require_controls
from medpipe.synthesis.evaluation_sets import (
    EvaluationSettings,
    Measured,
    SynthesisSet,
    UtilityPlan,
)
from medpipe.synthesis.metrics import label_volumes

SETTINGS = EvaluationSettings(
    REGIONS, alignment="centre", resamples=200, splits=20, pairs=60, permutations=39, shown=4
)


egg_set = cache(drawn_set)


@dataclass
class Thresholds:
    """Stands for a segmenter: exact, without training."""

    name: str = "moments of eight blocks"

    def labels(self, images):
        return by_intensity(images)

    def features(self, images):
        return moments(images)


def asked(n, seed):
    """Return a synthetic set that follows its conditions, and the conditions."""
    made = egg_set(n, seed)
    volumes = label_volumes(made.labels, (1, 1, 1), REGIONS)
    rng = np.random.default_rng(seed)
    return made, {k: v * rng.normal(1, 0.02, n) for k, v in volumes.items()}


def evaluated(synthetic, conditions=None, **more):
    train, test = egg_set(36, 0), egg_set(24, 1)
    return evaluate_synthesis(
        train, test, synthetic, conditions, segmenter=Thresholds(), settings=SETTINGS, **more
    )


BRIGHT = Measured(
    lambda images: images.flatten(1).double().mean(1), np.linspace(0.1, 0.3, 24), "a.u."
)


@pytest.fixture(scope="module")
def trainings():
    """Which trainings the honest set was evaluated with."""
    return []


@pytest.fixture(scope="module")
def honest(trainings):
    made, conditions = asked(30, 2)
    test = egg_set(24, 1)

    def train(samples, seed):
        trainings.append((len(samples), seed))
        # more cases, better thresholds
        off = 1.0 / len(samples) + 0.01 * seed
        return lambda images: (images > 0.3 + off).long() + (images > 0.7 + off).long()

    in_ml = {"core_ml": conditions["core"] / 1000}
    return evaluated(
        made, conditions | in_ml | {"brightness": BRIGHT.measure(made.images)}, controls=True,
        measures={"brightness": BRIGHT, "core_ml": Measured(region="core", unit="ml")},
        reconstruction=test.images * 0.98, utility=UtilityPlan(train, 5, (0, 1, 2)),
        likelihoods={"held_out": (np.linspace(4.4, 4.6, 9), np.linspace(4.3, 4.4, 9))},
        cost={"seconds_per_sample": 0.5, "peak_bytes": 10**9, "device": "cpu"}, simulated=True,
    )  # fmt: skip


def test_an_honest_set_passes_every_gate(honest):
    assert {g["name"]: g["passed"] for g in honest["gates"]} == dict.fromkeys(
        ("copies", "diversity", "conditions", "place", "anatomy"), True
    )
    assert not any(g["void"] for g in honest["gates"])


def test_every_planted_set_is_caught(honest):
    assert [(c["name"], c["caught"]) for c in honest["controls"]] == [
        ("copier", True), ("collapsed", True), ("shuffled", True), ("shifted", True),
    ]  # fmt: skip
    require_controls(honest)


def test_the_record_is_json_and_names_its_features(honest):
    again = json.loads(json.dumps(honest, allow_nan=False))
    assert again == honest
    assert honest["features"] == {"name": "moments of eight blocks", "width": 16}
    assert honest["n"] == {"train": 36, "test": 24, "synthetic": 30}
    assert len(honest["pictures"]) == 4
    assert honest["privacy"]["copied"] == 0


def test_every_figure_of_the_distribution_has_its_floor(honest):
    for name in ("kid", "frechet", "ms_ssim", "nearest_other", "precision", "recall", "density",
                 "coverage"):  # fmt: skip
        found = honest["distribution"][name]
        assert found["figure"]["value"] is not None, name
        assert found["floor"]["low"] <= found["floor"]["high"], name


def test_ceilings_stand_beside_the_conditions(honest):
    core = next(c for c in honest["conditions"] if c["name"] == "core")
    assert set(core["rows"]) == {"synthetic", "measurement", "reconstruction"}
    assert core["rows"]["synthetic"]["pearson"]["value"] > 0.9
    # the thresholds are exact
    assert core["rows"]["measurement"]["pearson"]["value"] > 0.999
    assert core["unit"] == "mm³"
    assert honest["segmenter"]["dice"]["core"]["value"] > 0.98
    gap = honest["privacy"]["likelihoods"]["held_out"]
    assert gap["difference"] == pytest.approx(0.15)


def test_a_copier_fails_and_looks_perfect_otherwise():
    train = egg_set(36, 0)
    found = evaluated(SynthesisSet(train.images[:30] * 1.001, train.labels[:30]))
    gates = {g["name"]: g["passed"] for g in found["gates"]}
    assert gates["copies"] is False
    assert gates["diversity"]
    assert gates["anatomy"]
    kid = found["distribution"]["kid"]
    assert kid["figure"]["low"] < kid["floor"]["high"]
    assert found["privacy"]["copied"] == 30
    assert found["pictures"][0]["distance"] < 0.01


def test_larger_anatomies_fail_the_t_map_and_the_volumes():
    images, labels = eggs(30, 4, sizes=np.random.default_rng(0).normal(1.12, 0.05, (30, 2)))
    found = evaluated(SynthesisSet(images, labels))
    gates = {g["name"]: g["passed"] for g in found["gates"]}
    assert gates["anatomy"] is False
    row = found["volumes"]["rows"][0]
    assert row["region"] == "shell"
    assert row["p_bonferroni"] < 1e-4
    assert 25 < row["percent"]["value"] < 60


def test_a_shifted_set_fails_its_place_alone():
    found = evaluated(egg_set(30, 5, offset=2.0))
    gates = {g["name"]: g["passed"] for g in found["gates"]}
    assert gates["place"] is False
    assert gates["anatomy"] is True


def test_a_gate_that_is_blind_here_is_void():
    # smooth shapes of nearly one size: copies with noise are as far away as other cases
    def alike(n, seed):
        sizes = np.random.default_rng(seed).normal(1, 0.01, (n, 2))
        return SynthesisSet(*eggs(n, seed, sizes=sizes, texture=0.0))

    found = evaluate_synthesis(
        alike(20, 0), alike(16, 1), alike(16, 2), segmenter=Thresholds(), settings=SETTINGS,
        controls=True,
    )  # fmt: skip
    (copier,) = (c for c in found["controls"] if c["name"] == "copier")
    (gate,) = (g for g in found["gates"] if g["name"] == "copies")
    assert not copier["caught"]
    assert (gate["passed"], gate["void"]) == (None, True)
    with pytest.raises(StepError, match=r"does not see planted faults: .*copier"):
        require_controls(found)
    with pytest.raises(StepError, match="no controls were planted"):
        require_controls({"controls": []})


def test_conditions_that_are_no_regions_have_their_own_measurement(honest):
    found = next(c for c in honest["conditions"] if c["name"] == "brightness")
    assert found["unit"] == "a.u."
    assert found["rows"]["synthetic"]["slope"]["value"] == pytest.approx(1)
    # measured in the reconstructions too: 2 % darker
    assert set(found["rows"]) == {"synthetic", "measurement", "reconstruction"}
    points = found["points"]
    assert points["reconstruction"]["measured"] == pytest.approx(
        [0.98 * v for v in points["measurement"]["measured"]]
    )


def test_two_unlike_cases_repeated_are_no_diversity():
    # one bright and full, one all but empty: pairs are less alike than real ones
    made = egg_set(30, 2).images
    unlike = torch.stack([1 - made[0], made[1]])
    noise = torch.randn((30, *made.shape[1:]), generator=torch.manual_seed(0))
    found = evaluated(SynthesisSet((unlike.repeat(15, 1, 1, 1) + 0.002 * noise).clamp(0, 1)))
    alike = found["distribution"]["ms_ssim"]
    assert alike["figure"]["high"] < alike["floor"]["low"]
    gates = {g["name"]: g for g in found["gates"]}
    assert gates["diversity"]["passed"] is False
    assert "distance to the nearest other" in gates["diversity"]["found"]


def test_volumes_may_be_asked_for_in_ml(honest):
    mm3, ml = (
        next(c for c in honest["conditions"] if c["name"] == name) for name in ("core", "core_ml")
    )
    assert ml["unit"] == "ml"
    for key in ("requested", "measured"):
        assert ml["points"]["synthetic"][key] == pytest.approx(
            [v / 1000 for v in mm3["points"]["synthetic"][key]]
        )
    assert ml["rows"]["measurement"]["bias"]["value"] == pytest.approx(0, abs=1e-9)


def agreements(requested, measures, **more):
    """Compare conditions alone."""
    made, test = egg_set(30, 2), egg_set(24, 1)
    seen, seen_test = (by_intensity(s.images) for s in (made, test))
    return conditions_of(
        requested, made, seen, test, seen_test, SETTINGS, measures=measures, reconstruction=None,
        segment=by_intensity, **more,
    )  # fmt: skip


def test_what_was_measured_before_is_taken_as_it_is(honest):
    age, guess = np.linspace(20, 80, 30), np.linspace(22, 82, 30)
    known = Measured(
        values={"synthetic": guess, "real": np.linspace(30, 53, 24)}, unit="years",
        truth=np.linspace(30, 53, 24),
    )  # fmt: skip
    (found,) = agreements({"age": age}, {"age": known})
    assert found["rows"]["synthetic"]["bias"]["value"] == pytest.approx(2)
    assert found["rows"]["measurement"]["error"]["value"] == pytest.approx(0)
    # without the real cases there is no ceiling
    (found,) = agreements({"age": age}, {"age": Measured(values={"synthetic": guess})})
    assert set(found["rows"]) == {"synthetic"}
    with pytest.raises(InputError, match="condition age was not measured in the synthetic"):
        agreements({"age": age}, {"age": Measured(values={"real": np.ones(24)})})


def test_a_measurement_that_tells_nothing_passes_no_gate(honest):
    constant = Measured(lambda images: torch.ones(len(images)))
    core = asked(30, 2)[1]["core"]
    told_nothing = honest | {"conditions": agreements({"core": core}, {"core": constant})}
    gates = gates_of(told_nothing, SETTINGS.limit)
    assert gates[2]["name"] == "conditions"
    assert gates[2]["passed"] is False
    assert "not determined" in gates[2]["found"]


def test_utility_trains_each_way_with_each_seed(honest, trainings):
    found = honest["utility"]
    assert sorted(set(trainings)) == sorted((n, s) for n in (5, 30, 60, 36) for s in (0, 1, 2))
    assert len(trainings) == 12
    assert set(found["regions"]) == set(REGIONS)
    rows = {r["name"]: r for r in found["regions"]["shell"]}
    assert set(rows) == {"synthetic", "real 5", "real 5 + synthetic", "real 36"}
    assert rows["real 5"]["difference"] is None
    assert rows["real 5 + synthetic"]["difference"]["value"] > 0
    assert found["tested"] == {"shell": 24, "core": 24}


def test_what_the_utility_needs_is_asked_for_before_anything_is_measured():
    def train(samples, seed):
        raise AssertionError

    made = egg_set(30, 2)
    with pytest.raises(UsageError, match="too few seeds"):
        UtilityPlan(train, 5, (0, 0, 1))
    with pytest.raises(UsageError, match="not so many real cases"):
        evaluated(made, utility=UtilityPlan(train, 99))
    with pytest.raises(InputError, match="the synthetic cases have no labels"):
        evaluated(SynthesisSet(made.images), utility=UtilityPlan(train, 5))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda m: (SynthesisSet(m.images[:3]), None), InputError, "too few synthetic cases"),
        (lambda m: (SynthesisSet(m.images[:, 1:]), None), InputError, "synthetic cases .*grid"),
        (lambda m: (SynthesisSet(m.images / 0), None), InputError, "synthetic .*missing"),
        (lambda m: (m, {"age": np.arange(30.0)}), UsageError, "age cannot be measured"),
        (lambda m: (m, {"core": np.arange(7.0)}), InputError, "condition core has another count"),
        (lambda m: (m, {"core": np.ones(30)}), InputError, "core: all requests are the same"),
    ],
)
def test_what_is_wrong_is_said(change, error, says):
    with pytest.raises(error) as raised:
        evaluated(*change(egg_set(30, 2)))
    assert re.search(says, str(raised.value))


def test_sets_and_settings_are_checked():
    images, labels = eggs(4, 0)
    with pytest.raises(InputError, match="images and labels of a set do not fit"):
        SynthesisSet(images, labels[:3])
    with pytest.raises(InputError, match="wrong shape"):
        SynthesisSet(images[0])
    with pytest.raises(UsageError, match="no regions"):
        EvaluationSettings()
    with pytest.raises(InputError, match="no labels"):
        SynthesisSet(images).pairs()
    with pytest.raises(UsageError, match="one of measure, region and values"):
        Measured()
    with pytest.raises(UsageError, match="unit of condition core is none of volumes"):
        agreements({"core": np.arange(30.0)}, {"core": Measured(region="core", unit="cups")})
    with pytest.raises(UsageError, match="condition wall cannot be measured"):
        agreements({"wall": np.arange(30.0)}, {"wall": Measured(region="wall", unit="ml")})
