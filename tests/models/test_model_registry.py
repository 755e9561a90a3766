"""Packaged weights: only the pinned file is read, and nothing in it is run."""

from __future__ import annotations

import hashlib
import pickle

import pytest
import torch

from medpipe.errors import InputError, UsageError
from medpipe.models import MODELS, PackagedModel, load_weights, model_card, pack_weights, registry

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.float16)}
FACTS = {"channels": [8, 16], "text": "Größe"}


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    content = pack_weights(TENSORS, FACTS)
    (tmp_path / "one.safetensors").write_bytes(content)
    (tmp_path / "one.md").write_text("# One\n")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    pinned = PackagedModel("one.safetensors", hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(MODELS, "one", pinned)
    return tmp_path / "one.safetensors"


def test_what_was_packed_comes_back(packaged):
    for name in ("one", packaged, str(packaged)):
        tensors, facts = load_weights(name)
        assert facts == FACTS
        assert tensors.keys() == TENSORS.keys()
        for key, value in TENSORS.items():
            assert torch.equal(tensors[key], value)
            assert tensors[key].dtype == value.dtype
    assert model_card("one") == "# One\n"


def test_the_same_model_gives_the_same_bytes():
    turned = dict(reversed(TENSORS.items()))
    assert pack_weights(TENSORS, FACTS) == pack_weights(turned, dict(reversed(FACTS.items())))


def test_a_changed_byte_is_refused(packaged):
    content = bytearray(packaged.read_bytes())
    content[-1] ^= 1
    packaged.write_bytes(content)
    with pytest.raises(InputError, match="not the one that belongs to this version"):
        load_weights("one")
    assert load_weights(packaged)[1] == FACTS  # as a file of the user it is whole


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"a": 1}), b"", b"\x00" * 64, pack_weights(TENSORS, FACTS)[:-4]],
    ids=["pickle", "empty", "zeros", "cut"],
)
def test_other_files_are_refused(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not a model that can be used") as caught:
        load_weights(file)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    from safetensors.torch import save

    file = tmp_path / "x.safetensors"
    for header in (None, {"medpipe": "[]"}, {"medpipe": "{}"}, {"medpipe": "no"}):
        file.write_bytes(save(TENSORS, metadata=header))
        with pytest.raises(InputError, match="not a model"):
            load_weights(file)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no such model"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(UsageError, match="no such model"):
        model_card("absent")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_packaged_models_are_small_and_described(name):
    tensors, facts = load_weights(name)
    assert tensors
    generates = MODELS[name].task == "synthesis"
    assert facts["model"] == ("generator" if generates else name)
    most = 40_000_000 if generates else 2_000_000
    assert (registry.FOLDER / MODELS[name].file).stat().st_size <= most
    assert model_card(name).startswith("# ")
