"""SampleVolume as a step: the conditions of a case, its seed, what it refuses by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sy_tiny_models import AFFINE, SHAPE, prior, tokeniser

from medpipe.errors import InputError, StepError, UsageError
from medpipe.steps._base import affine_of, facts_of
from medpipe.synthesis.generator import Generator
from medpipe.synthesis.routes import TokenRoute
from medpipe.transforms import SampleVolume, SampleVolumed
from medpipe.workflow.describe import describe_step

ROW = {"age_years": 47, "sex": "M"}


def write(path, classes=3):
    coder = tokeniser(classes)
    made = Generator(TokenRoute(coder, prior(coder)), AFFINE, SHAPE)
    path.write_bytes(made.to_bytes())
    return str(path), made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sy") / "model.safetensors")


def test_a_row_becomes_a_volume_with_labels_in_the_place_of_the_model(model, tmp_path):
    path, generator = model
    row = tmp_path / "p1.json"
    row.write_text(json.dumps({"age_years": 47, "sex": None}))
    step = SampleVolumed(
        "mr", path, conditions={"sex": "M", "age_years": 30}, temperature=0.9, guidance=1.3,
        labels_out="seg",
    )  # fmt: skip
    step.set_random_state(seed=4)
    made = step({"mr": str(row), "other": 1})
    facts = facts_of(made["mr"])["generated"]
    assert facts["conditions"] == ROW  # the row counts more, what it leaves open is filled in
    assert facts["model"] == generator.digest
    want = generator.sample([ROW], [facts["seed"]], temperature=0.9, guidance=1.3)[0]
    assert torch.equal(made["mr"].as_tensor(), want.image.as_tensor())
    assert torch.equal(made["seg"].as_tensor(), want.labels.as_tensor())
    assert np.allclose(affine_of(made["seg"]), AFFINE)
    assert made["mr"].meta["medpipe"]["findings"] == []
    json.dumps(made["seg"].meta["medpipe"])
    assert made["other"] == 1


def test_the_seed_decides_and_is_said(model):
    step = SampleVolume(model[0])
    first = step.set_random_state(seed=1)(ROW)
    assert torch.equal(step.set_random_state(seed=1)(ROW).as_tensor(), first.as_tensor())
    second = step.set_random_state(seed=2)(ROW)
    assert facts_of(second)["generated"]["seed"] != facts_of(first)["generated"]["seed"]
    assert not torch.equal(second.as_tensor(), first.as_tensor())


def test_conditions_that_cannot_be_are_named(model, tmp_path):
    step = SampleVolume(model[0])
    with pytest.raises(
        UsageError, match=r"2 of the conditions .* missing: age_years, sex; expected age_years: "
        "20 to 90 years",
    ):  # fmt: skip
        step({})
    with pytest.raises(UsageError, match="missing: sex; expected sex: F or M"):
        step({"age_years": 40})
    with pytest.raises(UsageError, match=r"condition age_years: .*expected 20 to 90 years, got 7"):
        step(ROW | {"age_years": 7})
    with pytest.raises(UsageError, match=r"condition sex: .*expected F or M"):
        step(ROW | {"sex": "X"})
    with pytest.raises(UsageError, match=r"no such condition; expected age_years.*got weight"):
        step(ROW | {"weight": 7})
    loose = SampleVolume(model[0], missing="unknown").set_random_state(seed=0)({"sex": "F"})
    (finding,) = loose.meta["medpipe"]["findings"]
    assert finding["message"] == "conditions that were not said: age_years"
    bad = tmp_path / "anna.json"
    for text in ("[1, 2]", "{", '{"age_years": [1]}', " " * 200_000):
        bad.write_text(text)
        with pytest.raises(InputError, match="conditions of the case cannot be read") as caught:
            step(str(bad))
        assert "anna" not in str(caught.value)
    with pytest.raises(StepError, match="the step needs conditions"):
        step(torch.zeros(1, 2, 2, 2))
    with pytest.raises(UsageError, match="temperature of the sampler"):
        SampleVolume(model[0], temperature=0.0)(ROW)


def test_a_generator_without_labels_gives_an_empty_map_and_says_so(tmp_path):
    path, _ = write(tmp_path / "plain.safetensors", classes=0)
    made = SampleVolumed("mr", path, labels_out="seg")({"mr": ROW})
    assert not made["seg"].any()
    assert made["seg"].shape == (1, *SHAPE)
    (finding,) = made["seg"].meta["medpipe"]["findings"]
    assert "draws no labels" in finding["message"]


def test_workflows_know_the_step():
    known = describe_step("sample_volume")
    assert (known.makes, known.random, tuple(known.files)) == ("volume", True, ("model",))
    assert tuple(known.writes) == ("labels_out",)
