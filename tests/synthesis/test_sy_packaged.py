"""The packaged generators draw what they are asked for, and their cards say what they are."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medpipe.errors import UsageError
from medpipe.models import MODELS, model_card
from medpipe.synthesis import Generator

GENERATORS = [name for name, model in MODELS.items() if model.task == "synthesis"]
PERSON = {"age_years": 68, "sex": "F", "brain_ml": 1100}


@pytest.fixture(scope="module")
def heads():
    asked = [{"ventricle_ml": v} | PERSON for v in (15, 45)]
    return Generator.read("synthesis-brain").sample(asked, seeds=[3, 3])


@pytest.mark.parametrize("name", GENERATORS)
def test_a_card_says_what_a_generator_is_asked_for_and_that_it_is_a_demonstration(name):
    generator, card = Generator.read(name), model_card(name)
    assert "demonstration" in card
    units = {"ml": "in ml", "years": "in years"}
    for condition in generator.conditions.items:
        if condition.unit:
            assert units.get(condition.unit, "") in card
    assert "× ".join(f"{n} " for n in generator.shape).strip() in card


def test_ventricles_are_as_large_as_was_asked(heads):
    ml = abs(np.linalg.det(Generator.read("synthesis-brain").affine[:3, :3])) / 1000
    for wanted, head in zip((15, 45), heads, strict=True):
        drawn = float((np.asarray(head.labels) == 3).sum()) * ml
        assert drawn == pytest.approx(wanted, rel=0.2)


def test_the_image_shows_it_too(heads):
    # of one head: where the larger ventricles are, so much more is as dark as fluid
    ml = abs(np.linalg.det(heads[0].image.affine.numpy()[:3, :3])) / 1000
    there = ndimage.binary_dilation(np.asarray(heads[1].labels)[0] == 3)
    dark = [float((np.asarray(h.image)[0][there] < 0.25).sum()) * ml for h in heads]
    assert dark[1] - dark[0] == pytest.approx(45 - 15, rel=0.35)


def test_what_nobody_was_like_is_refused():
    generator = Generator.read("synthesis-brain")
    with pytest.raises(UsageError, match=r"ventricle_ml.*expected .* to .* ml, got 900"):
        generator.sample([PERSON | {"ventricle_ml": 900}], seeds=[0])
