"""A trained model comes back from its file as it was, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from perk_problem import PRIORS, PROTOCOL, SIGMA, WHITE, voxels
from safetensors.torch import load_file, save_file

from medpipe.errors import InputError, StoreError
from medpipe.qmri.model_file import load_perk, save_perk
from medpipe.qmri.perk import Perk, train_perk
from medpipe.qmri.protocol import Acquisition, Protocol

KAPPA = torch.linspace(0.8, 1.1, 50, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> Perk:
    return train_perk(
        PROTOCOL, PRIORS, (SIGMA,) * 3 + (2 * SIGMA,), features=30, samples=500, length_scale=0.5
    )


@pytest.fixture
def file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_perk(model, path)
    return path


def header_of(path) -> dict:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["medpipe"])


def write(path, header: dict | str | None, tensors: dict[str, torch.Tensor]) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata=None if header is None else {"medpipe": text})


def test_a_model_comes_back_as_it_was(model, file):
    loaded = load_perk(file, PROTOCOL)
    y = voxels(WHITE, KAPPA, 1)
    before, after = (m.estimate(y, {"kappa": KAPPA}) for m in (model, loaded))
    for name in before.values:
        assert torch.equal(before.values[name], after.values[name])
        assert torch.equal(before.errors[name], after.errors[name])
    assert torch.equal(before.quality, after.quality)
    assert loaded.recipe == model.recipe
    kept = ("length_scale", "ridge", "samples", "score", "guard", "noise_sigma", "support")
    for name in kept:
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.score is not None


def test_the_header_is_text_that_says_all(file, model):
    header = header_of(file)
    assert header["protocol"]["acquisitions"][1]["model"] == "dess"
    assert header["priors"]["t1_s"] == {"kind": "log_uniform", "low": 0.4, "high": 2.0}
    assert header["units"] == {"m0": "arbitrary", "t1_s": "s", "t2_s": "s", "kappa": "1"}
    assert header["score"] == model.score
    assert header["noise_sigma"][3] == 2 * SIGMA
    assert file.stat().st_size < 10_000


def test_another_protocol_is_refused_by_what_differs(file):
    longer = Acquisition(
        "dess",
        {"flip_angle_deg": (30.0,), "repetition_time_s": (0.0185,), "echo_time_s": (0.00467,)},
    )
    other = Protocol((PROTOCOL.acquisitions[0], longer))
    with pytest.raises(InputError, match="another protocol") as caught:
        load_perk(file, other)
    text = str(caught.value)
    assert "acquisition 2 (dess): repetition_time_s" in text
    assert "0.0185" in text
    assert "0.0175" in text
    assert "\n" not in text


def refused(path) -> str:
    with pytest.raises(InputError) as caught:
        load_perk(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path.parent) not in text
    assert path.name in text
    return text


@pytest.mark.parametrize("part", [0, 7, 100, 1500, -1])
def test_a_file_cut_short_is_refused(file, part):
    raw = file.read_bytes()
    file.write_bytes(raw[:part])
    assert "damaged" in refused(file)


def test_bytes_that_changed_are_refused_or_change_nothing_of_the_header(file):
    raw = bytearray(file.read_bytes())
    raw[3] = 255  # the length of the header
    file.write_bytes(raw)
    assert "damaged" in refused(file)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "cannot be read" in refused(tmp_path / "none.safetensors")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    refused(folder)


def test_something_else_is_refused(file, tmp_path):
    tensors = load_file(file)
    header = header_of(file)
    other = tmp_path / "other.safetensors"
    write(other, None, tensors)
    assert "something else" in refused(other)
    write(other, header, {"weights": torch.zeros(3)})
    assert "something else" in refused(other)
    write(other, header | {"format": "network"}, tensors)
    assert "something else" in refused(other)
    write(other, "{", tensors)
    assert "no JSON" in refused(other)
    write(other, header | {"version": 2}, tensors)
    assert "another version" in refused(other)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"protocol": {"acquisitions": []}}, "header is wrong"),
        ({"protocol": 3}, "header is wrong"),
        ({"priors": {}}, "priors are not those"),
        ({"priors": {"t1_s": {"kind": "cauchy"}}}, "header is wrong"),
        ({"noise_sigma": [1.0]}, "noise is not that"),
        ({"noise_sigma": "x"}, "another form"),
        ({"noise_sigma": [0.0, 1.0, 1.0, 1.0]}, "no numbers above 0"),
        ({"ridge": -1.0}, "no numbers above 0"),
        ({"length_scale": None}, "another form"),
        ({"guard": {}}, "another form"),
        ({"normalize": False}, "another size"),
    ],
)
def test_a_header_that_cannot_be_is_refused(file, change, text):
    write(file, header_of(file) | change, load_file(file))
    assert text in refused(file)


@pytest.mark.parametrize("name", ["frequencies", "phases", "readout", "offset"])
def test_tensors_that_cannot_be_are_refused(file, name):
    header, tensors = header_of(file), load_file(file)
    write(file, header, tensors | {name: tensors[name].float()})
    assert "another size or type" in refused(file)
    write(file, header, tensors | {name: tensors[name].flatten()[:-1].contiguous()})
    assert "another size or type" in refused(file)
    bad = tensors[name].clone()
    bad.view(-1)[0] = torch.nan
    write(file, header, tensors | {name: bad})
    assert "not finite" in refused(file)


def test_a_model_without_a_score_has_none_in_its_file(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_perk(replace(model, score=None), path)
    assert load_perk(path).score is None


def test_a_folder_that_cannot_be_written_is_an_error(model, tmp_path):
    with pytest.raises(StoreError):
        save_perk(model, tmp_path / "none" / "model.safetensors")
