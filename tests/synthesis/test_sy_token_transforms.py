"""Tokenize and Detokenize as steps: places in mm, sizes, labels, the right model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medpipe.errors import InputError, StepError
from medpipe.steps._base import affine_of, facts_of
from medpipe.synthesis.tokeniser import Tokeniser, TokeniserSettings
from medpipe.synthesis.tokeniser_training import TokeniserModel, TokeniserTraining
from medpipe.transforms import Detokenize, Detokenized, Tokenize, Tokenized
from medpipe.workflow.describe import describe_step

AFFINE = np.array([[0, -1.5, 0.2, 10], [1.2, 0, 0, -20], [0, 0.1, 2.0, 5], [0, 0, 0, 1.0]])


def write(path, classes=0, seed=0):
    torch.manual_seed(seed)
    settings = TokeniserSettings(
        label_classes=classes, widths=(4, 6), residual_units=1, codes=300, code_width=5
    )
    net = Tokeniser(settings)
    with torch.no_grad():
        net(torch.rand(2, settings.channels, 16, 16, 16))  # codes begin at its features
    net.eval()
    model = TokeniserModel(net, TokeniserTraining(), [], 1, 1, (8, 8, 8))
    path.write_bytes(model.to_bytes())
    return str(path), model


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sy") / "plain.safetensors")


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sy") / "joint.safetensors", classes=3)


def image(shape=(9, 12, 7)):
    values = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    made = MetaTensor(values, affine=torch.from_numpy(AFFINE))
    made.meta["medpipe"] = {"source": {"modality": "MR"}, "findings": []}
    return made


def test_a_volume_survives_as_its_tokeniser_shows_it(plain):
    path, model = plain
    x = image()
    codes = Tokenize(path)(x)
    assert codes.dtype == torch.int32
    assert tuple(codes.shape) == (1, 3, 3, 2)
    assert torch.equal(codes.as_tensor().long(), model.tokeniser.encode(x.as_tensor()[None]))
    assert len(codes.unique()) > 5
    facts = facts_of(codes)
    assert facts["modality"] == "MR"
    assert facts["tokens"]["shape"] == [9, 12, 7]
    back = Detokenize(path)(codes)
    with torch.no_grad():
        truth = model.tokeniser(x.as_tensor()[None]).values[0]
    assert torch.equal(back.as_tensor(), truth)
    assert np.allclose(affine_of(back), AFFINE)
    back += 1  # an ordinary tensor


def test_a_code_lies_in_the_middle_of_its_voxels(plain):
    codes = Tokenize(plain[0])(image((8, 12, 8)))
    for code in ((0, 0, 0), (1, 2, 1)):
        voxels = np.stack(
            np.meshgrid(*(4 * c + np.arange(4) for c in code), indexing="ij"), -1
        ).reshape(-1, 3)
        middle = (voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]).mean(0)
        assert np.allclose((affine_of(codes) @ [*code, 1])[:3], middle)


def test_labels_travel_along(joint):
    path, model = joint
    data = {"mr": image(), "seg": MetaTensor(
        torch.randint(0, 3, (1, 9, 12, 7)).byte(), affine=torch.from_numpy(AFFINE)
    )}  # fmt: skip
    codes = Tokenized("mr", path, labels="seg")(data)
    assert codes["seg"] is data["seg"]
    made = Detokenized("mr", path, labels_out="found")(codes)
    values = model.tokeniser.decode(codes["mr"].as_tensor().long(), (9, 12, 7))[0]
    assert torch.equal(made["mr"].as_tensor(), values[:1])
    assert torch.equal(made["found"].as_tensor()[0].long(), values[1:].argmax(0))
    assert made["found"].dtype == torch.uint8
    assert np.allclose(affine_of(made["found"]), AFFINE)
    shifted = dict(data, seg=MetaTensor(data["seg"].as_tensor(), affine=torch.eye(4)))
    with pytest.raises(StepError, match="label map is not on the grid"):
        Tokenized("mr", path, labels="seg")(shifted)
    with pytest.raises(StepError, match="expected labels of 3 classes"):
        Tokenized("mr", path)(data)


def test_what_does_not_fit_is_named(plain, joint, tmp_path):
    path, _ = plain
    other, _ = write(tmp_path / "other.safetensors", seed=5)
    codes = Tokenize(path)(image())
    with pytest.raises(StepError, match="the codes are of another tokeniser"):
        Detokenize(other)(codes)
    loose = MetaTensor(codes.as_tensor().float(), affine=codes.affine)  # from another program
    assert Detokenize(other)(loose).shape == (1, 12, 12, 8)
    with pytest.raises(StepError, match="not in the codebook; expected 0 to 299, got 300"):
        Detokenize(path)(MetaTensor(torch.full((1, 2, 2, 2), 300)))
    with pytest.raises(StepError, match="these are no codes"):
        Detokenize(path)(MetaTensor(torch.full((1, 2, 2, 2), 0.5)))
    cut = MetaTensor(codes.as_tensor()[:, 1:], meta=codes.meta)
    with pytest.raises(StepError, match="grid of the codes is wrong"):
        Detokenize(path)(cut)
    with pytest.raises(StepError, match="expected no labels"):
        Tokenize(path)(image(), image())
    with pytest.raises(StepError, match="expected 1 channels of real values"):
        Tokenize(path)(torch.zeros(2, 8, 8, 8))
    with pytest.raises(InputError, match="not brought to a common scale; expected about 0 to 1"):
        Tokenize(path)(image() * 4000)
    with pytest.raises(StepError, match="has no labels"):
        Detokenized("x", path, labels_out="seg")({"x": codes})
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad.safetensors"):
        Tokenize(str(bad))(image())


def test_workflows_know_the_steps():
    known = describe_step("tokenize")
    assert (known.makes, tuple(known.files), tuple(known.reads)) == (
        "labels",
        ("model",),
        ("labels",),
    )
    assert tuple(describe_step("detokenize").writes) == ("labels_out",)
