"""Model files: what was written comes back, nothing else is taken, nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import DenseNet
from monai.transforms import Activationsd
from oc_toy_models import FACTS, members

from medpipe.errors import InputError, MedpipeError, UsageError
from medpipe.models import MODELS, PackagedModel, pack_weights, registry
from medpipe.outcome.bundle import (
    OutcomeFacts,
    pack_bundle,
    read_bundle,
    write_bundle,
)
from medpipe.outcome.bundle_config import bundle_inference, bundle_metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "model", members(), FACTS)
    return tmp_path / "model"


def refused(what: str | Path, text: str, kind: type[MedpipeError] = InputError) -> str:
    with pytest.raises(kind, match=text) as caught:
        read_bundle(what)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_comes_back_with_the_same_answers(folder: Path) -> None:
    found = read_bundle(folder)
    assert found.facts == FACTS
    assert (
        found.digest == hashlib.sha256((folder / "configs/metadata.json").read_bytes()).hexdigest()
    )
    x = torch.rand(1, 3, 24, 28, 24)
    with torch.no_grad():
        for was, now in zip(members(), found.networks(), strict=True):
            assert not now.training
            assert torch.equal(was(x), now(x))


def test_a_bundle_of_times_says_hazards_and_applies_a_sigmoid() -> None:
    facts = replace(
        FACTS, network=FACTS.network | {"outputs": 3}, interval_ends_days=(3.0, 7.0, 90.0)
    )
    after = bundle_inference(facts, [])["postprocessing"]
    assert "softmax" not in after
    put = Activationsd(**{k: v for k, v in after.items() if k != "_target_"})
    hazards = put({"pred": torch.tensor([0.0, 1.0, -1.0])})["pred"]
    assert torch.allclose(hazards, torch.sigmoid(torch.tensor([0.0, 1.0, -1.0])))
    output = bundle_metadata(facts, [])["network_data_format"]["outputs"]["pred"]
    assert output["num_channels"] == len(output["channel_def"]) == 3
    assert output["channel_def"]["1"].endswith("from day 3 to 7")
    assert bundle_inference(FACTS, [])["postprocessing"]["softmax"] is True


def test_the_folder_is_a_bundle_of_monai(folder: Path) -> None:
    """MONAI's parser makes the network from inference.json, and its weights fit it."""
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert files == {
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md",
        "models/fold0.safetensors", "models/fold1.safetensors",
    }  # fmt: skip
    text = (folder / "configs/inference.json").read_text()
    assert "$" not in text
    parser = ConfigParser()
    parser.read_config(str(folder / "configs/inference.json"))
    parser.read_meta(str(folder / "configs/metadata.json"))
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, DenseNet)
    network.load_state_dict(read_bundle(folder).members[1])
    meta = parser.get("_meta_")
    for name in ("version", "changelog", "monai_version", "pytorch_version", "numpy_version",
                 "task", "description", "authors", "copyright", "network_data_format"):  # fmt: skip
        assert meta[name], name
    assert meta["network_data_format"]["inputs"]["image"]["spatial_shape"] == [24, 28, 24]
    assert "not for clinical use" in (folder / "docs/README.md").read_text()
    assert (
        meta["intended_use"]
        == FACTS.notice
        == ("demonstration, not for clinical use; trained on simulated patients")
    )


def test_a_model_has_one_digest_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "elsewhere", members(), FACTS)
    assert (
        again == read_bundle(folder).digest == read_bundle(folder / "configs/metadata.json").digest
    )
    other = write_bundle(tmp_path / "other", [*members()[:1], members(3)[2]], FACTS)
    assert other != again
    assert write_bundle(tmp_path / "other", members(), replace(FACTS, threshold=0.4)) != again


def test_fewer_members_leave_no_old_weights(folder: Path) -> None:
    write_bundle(folder, members(1), FACTS)
    assert [f.name for f in (folder / "models").iterdir()] == ["fold0.safetensors"]
    assert len(read_bundle(folder).members) == 1
    with pytest.raises(UsageError, match="needs members"):
        write_bundle(folder, [], FACTS)


def test_one_file_holds_the_same_model_and_can_be_packaged(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pack_bundle(members(), FACTS)
    file = tmp_path / "tiny.safetensors"
    file.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    monkeypatch.setitem(MODELS, "tiny", PackagedModel(file.name, digest))
    for given in (file, str(file), "tiny"):
        found = read_bundle(given)
        assert (found.facts, found.digest) == (FACTS, digest)
        for a, b in zip(found.members, read_bundle(folder).members, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[n], b[n]) for n in a)
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused("tiny", "not the one that belongs to this version")


def test_half_precision_is_read_as_single() -> None:
    network = members(1)[0]
    half = {n: v.half() if v.is_floating_point() else v for n, v in network.state_dict().items()}
    found = read_bundle_of([half])
    assert {p.dtype for p in found.networks()[0].parameters()} == {torch.float32}


def read_bundle_of(models: list[Any], facts: OutcomeFacts = FACTS) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        write_bundle(place, models, facts)
        return read_bundle(place)


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    line = refused(tmp_path / "absent", "no such model", UsageError)
    assert "--set grid.model=" in line
    assert str(tmp_path) not in line
    refused("sah-mortality-absent", "no such model", UsageError)
    (folder / "models/fold1.safetensors").unlink()
    assert "models/fold1.safetensors" in refused(folder, "a file of it is missing")
    (folder / "configs/metadata.json").unlink()
    assert "configs/metadata.json" in refused(folder, "a file of it is missing")


def test_what_is_damaged_is_said(folder: Path) -> None:
    file = folder / "models/fold0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused(folder, "not those that its metadata name")
    for text in ("", "[]", "{", '{"medpipe": 1}', '{"medpipe": {"weights": []}}', "[" * 100_000):
        (folder / "configs/metadata.json").write_text(text)
        refused(folder, "not a model of outcomes")


def changed(folder: Path, **parts: Any) -> None:
    path = folder / "configs/metadata.json"
    record = json.loads(path.read_text())
    record["medpipe"].update(parts)
    path.write_text(json.dumps(record))


def test_another_version_is_said(folder: Path) -> None:
    changed(folder, format="medpipe-outcome-99")
    refused(folder, "another version")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 3}, {"network": []}, {"spacing_mm": [1, 2]}, {"size_voxels": [1.5, 2, 3]},
        {"threshold": 2}, {"tta": [["x"]]}, {"calibration": [{}]}, {"recalibration": 1},
        {"spacing_mm": [1, 2, float("nan")]}, {"demonstration": "yes"},
    ],
    ids=lambda w: next(iter(w)),
)  # fmt: skip
def test_facts_of_another_kind_are_refused(folder: Path, wrong: dict[str, Any]) -> None:
    changed(folder, facts=FACTS.to_json() | wrong)
    refused(folder, "not a model of outcomes")


def test_facts_that_are_absent_are_named(folder: Path) -> None:
    facts = FACTS.to_json()
    facts.pop("preset")
    changed(folder, facts=facts)
    refused(folder, "does not say preset")


def test_weights_of_another_network_are_refused() -> None:
    found = read_bundle_of(members(1), replace(FACTS, network={**FACTS.network, "channels": 1}))
    with pytest.raises(InputError, match="another network"):
        found.networks()
    found = read_bundle_of(members(1), replace(FACTS, network={"unknown": 1}))
    with pytest.raises(InputError, match="another network"):
        found.networks()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").write_text, ("",))


def listed(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    changed(folder, weights=[{"file": file, "sha256": hashlib.sha256(content).hexdigest()}])


def test_a_state_dict_is_read_as_weights_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = members(1)[0]
    torch.save(network.state_dict(), tmp_path / "model.pt")
    listed(folder, "models/model.pt", (tmp_path / "model.pt").read_bytes())
    found = read_bundle(folder).networks()[0]
    assert all(torch.equal(v, found.state_dict()[n]) for n, v in network.state_dict().items())
    torch.save({"w": Bomb()}, tmp_path / "bomb.pt")
    bombs = [(tmp_path / "bomb.pt").read_bytes(), pickle.dumps(Bomb())]
    for content in (*bombs, b"", b"PK\x03\x04"):
        listed(folder, "models/model.pt", content)
        refused(folder, "damaged, or more than tensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    listed(folder, "models/model.pt", (tmp_path / "list.pt").read_bytes())
    refused(folder, "no state dict")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/hostname"])
def test_weights_outside_the_folder_are_refused(folder: Path, file: str) -> None:
    changed(folder, weights=[{"file": file, "sha256": "0" * 64}])
    refused(folder, "outside its folder")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(pack_weights({"w": torch.zeros(2)}, {"model": "centerline"}))
    refused(file, "not one of outcomes")
    file.write_bytes(b"nothing")
    refused(file, "not a model that can be used")
    facts = {"kind": "medpipe-outcome-1", "folds": 1, "facts": FACTS.to_json()}
    file.write_bytes(pack_weights({"7/w": torch.zeros(2)}, facts))
    refused(file, "belong to no member")
