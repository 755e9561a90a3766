"""From a packed model to the page, and maps of a planted thing in millimetres of the scan."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray
from oc_toy_models import FACTS, members, written
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from medpipe.engine.case import CaseRunner
from medpipe.engine.protocol import Job, RunSpec
from medpipe.errors import StepError
from medpipe.geometry import affine_from_parts, to_mm
from medpipe.models import MODELS, PackagedModel, registry
from medpipe.outcome.bundle import OutcomeBundle, pack_bundle, read_bundle
from medpipe.outcome.predict import OutcomePrediction, predict_outcome
from medpipe.outcome.transforms.predict import DEFAULT_MODEL, ModelGridd, PredictOutcome
from medpipe.outcome.transforms.prepare import CtCheckd, HeadFramed
from medpipe.outcome.transforms.saliency import OutcomePage, OutcomeSaliency, OutcomeSaliencyd
from medpipe.phantoms.anatomy import Subject
from medpipe.phantoms.head_ct import HeadCT
from medpipe.workflow.plan import compile_workflow

TILT = (8.0, -5.0, 14.0)
SHAPE = (64, 70, 34)
SPACING = np.array([3.6, 3.6, 5.6])
LEAN = 0.3  # mm along y for each mm along z: a gantry tilted by 17°
PLACE = np.array([28.0, 30.0, 22.0])
"""Middle of the planted ball: in the right frontal lobe, RAS mm of the scan."""
RADIUS_MM = 15.0
FINE = replace(FACTS, spacing_mm=(4.0, 4.0, 4.0), size_voxels=(48, 60, 48))


@cache
def scan() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A turned head in a tilted gantry, left, posterior and superior first, with a metal ball."""
    subject = replace(Subject.from_seed(5), tilt_deg=TILT)
    affine = affine_from_parts(np.diag([-1.0, -1.0, 1.0]), SPACING, np.zeros(3))
    affine[1, 2] = LEAN * SPACING[2]
    affine[:3, 3] = (0, 0, -8) - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    hu = HeadCT(5, subject=subject, edge_mm=2.0).sample(affine, SHAPE)[1]
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    distance = np.linalg.norm(to_mm(affine, index) - PLACE, axis=-1)
    share = np.clip((RADIUS_MM - distance) / 3 + 0.5, 0, 1)
    return (hu * (1 - share) + 3000 * share).astype(np.float32), affine


def as_it_is() -> MetaTensor:
    hu, affine = scan()
    return MetaTensor(torch.from_numpy(hu.copy())[None], affine=torch.from_numpy(affine))


def otherwise() -> MetaTensor:
    """The same scan in memory the other way: slices first and upside down, right first."""
    hu, affine = scan()
    turn = np.zeros((4, 4))
    turn[2, 0], turn[0, 1], turn[1, 2], turn[3, 3] = -1, -1, 1, 1
    turn[:3, 3] = (SHAPE[0] - 1, 0, SHAPE[2] - 1)
    values = hu.transpose(2, 0, 1)[::-1, ::-1].copy()
    return MetaTensor(torch.from_numpy(values)[None], affine=torch.from_numpy(affine @ turn))


class MetalNetwork(nn.Module):
    """Sees metal, brighter than any bone, wherever it is; nothing else is a feature."""

    def __init__(self) -> None:
        super().__init__()
        self.class_layers = nn.Sequential()
        self.class_layers.add_module("relu", nn.ReLU(inplace=True))
        self.class_layers.add_module("pool", nn.AdaptiveAvgPool3d(1))
        self.class_layers.add_module("flatten", nn.Flatten(1))
        self.class_layers.add_module("out", nn.Linear(1, 2))
        with torch.no_grad():
            self.class_layers.out.weight.copy_(torch.tensor([[-50.0], [50.0]]))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, 2)."""
        return self.class_layers(functional.avg_pool3d(x[:, 2:3], 2) - 0.9)


def planted(monkeypatch: pytest.MonkeyPatch, *networks: nn.Module) -> None:
    monkeypatch.setattr(OutcomeBundle, "networks", lambda self, device="cpu": list(networks))


def prepared(image: MetaTensor, model: Path) -> dict[str, Any]:
    data: dict[str, Any] = {"ct": image, "scan": image.clone()}
    data = CtCheckd("ct", small_out="small", mask_out="mask")(data)
    data = HeadFramed("ct", small="small", mask="mask")(data)
    return ModelGridd("ct", model=str(model), mask="mask", mask_out="head")(data)


@pytest.mark.parametrize("lying", [as_it_is, otherwise], ids=["tilted", "slices-first"])
def test_a_map_lies_where_the_thing_lies_in_the_scan(
    lying: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ball is put at millimetres of the scan; neither frame nor grid is asked for them."""
    model = written(tmp_path / "model", FINE)
    planted(monkeypatch, MetalNetwork(), MetalNetwork())
    image = lying()
    data = prepared(image, model)
    assert abs(data["ct"].meta["medpipe"]["source"]["head_frame"]["rotation_deg"]["yaw"]) > 10
    heat = OutcomeSaliencyd("ct", str(model), "scan", "head", sanity_stages=0)(data)["ct"]
    assert heat.shape == image.shape
    assert torch.equal(heat.affine, image.affine)
    values = heat.as_tensor()[0].double().numpy()
    index = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), -1)
    world = to_mm(np.array(image.affine.tolist()), index)
    middle = (world * values[..., None]).sum((0, 1, 2)) / values.sum()
    assert np.abs(middle - PLACE).max() < 3
    distance = np.linalg.norm(world - PLACE, axis=-1)
    assert values[distance < 2 * RADIUS_MM].sum() > 0.99 * values.sum()
    top = world[np.unravel_index(values.argmax(), values.shape)]
    assert np.linalg.norm(top - PLACE) < RADIUS_MM

    # on the page it lies on the side of the letter R, in the slice of its height
    document = PredictOutcome(str(model))(data["ct"])
    page = OutcomePage(slices=4)(document, data["scan"], heat).decode()
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)
        for content in re.findall(r"base64,([^\"]+)", page)
    ]
    heights = [float(z) for z in re.findall(r">z ([+-][\d.]+) mm<", page)]
    added = [np.abs(b - a).sum(-1) for a, b in zip(pictures[:4], pictures[4:], strict=True)]
    best = int(np.argmax([picture.sum() for picture in added]))
    # of a leaning slice the height of its middle is told
    assert abs(heights[best] - PLACE[2]) < RADIUS_MM
    columns = added[best].sum(0)
    assert columns[: len(columns) // 2].sum() > 0.95 * columns.sum()
    rows = added[best].sum(1)
    assert rows[: len(rows) // 2].sum() > 0.95 * rows.sum()  # in front


def test_steps_with_different_models_are_refused_although_their_grids_are_alike(
    tmp_path: Path,
) -> None:
    one = written(tmp_path / "one", FINE)
    other = written(tmp_path / "other", replace(FINE, name="other"))
    made = ModelGridd("ct", model=str(one))(prepared_frame(as_it_is()))["ct"]
    assert made.meta["medpipe"]["source"]["head_grid"]["model"] == "tiny"
    assert OutcomePrediction.from_json(PredictOutcome(str(one))(made)).members
    for step in (PredictOutcome(str(other)), OutcomeSaliency(str(other), sanity_stages=0)):
        with pytest.raises(StepError, match="prepared for another model") as caught:
            step(made)
        assert "\n" not in str(caught.value)
        assert "the same model" in str(caught.value)


def prepared_frame(image: MetaTensor) -> dict[str, Any]:
    return HeadFramed("ct", method="none")({"ct": image})


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model under the name that the workflow asks for; returns its digest."""
    content = pack_bundle(members(), replace(FACTS, name=DEFAULT_MODEL))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "models")
    monkeypatch.setitem(MODELS, DEFAULT_MODEL, PackagedModel("demo.safetensors", digest))
    return digest


def run(folder: Path, *sets: str) -> tuple[Path, dict[str, Any]]:
    """Run outcome-predict on one scan and return the folder and the record of the case."""
    file = folder / "head.nii.gz"
    hu, affine = scan()
    nib.save(nib.Nifti1Image(np.round(hu).astype(np.int16), affine), file)
    compiled = compile_workflow("outcome-predict", ["frame.method=none", *sets])
    spec = RunSpec(str(folder / "out"), compiled.to_dict(), "r", device="cpu")
    CaseRunner(spec, lambda _: None).run(Job("one", {"image": str(file)}))
    case = folder / "out" / "cases" / "one"
    return case, json.loads((case / "case.json").read_text())


def test_a_packaged_model_goes_from_pack_to_page(tmp_path: Path, packaged: str) -> None:
    """No path and no --set: the name alone leads to the file that was packed."""
    case, record = run(tmp_path, "saliency.sanity_stages=0")
    assert record["status"] == "done", record["error"]
    document = (case / "prediction.json").read_bytes()
    found = OutcomePrediction.from_json(document)
    assert found.model["name"] == DEFAULT_MODEL
    assert found.model["digest"] == packaged
    # the same from the saved volume and the packed file, without the workflow
    bundle = read_bundle(DEFAULT_MODEL)
    hu = np.asarray(nib.load(case / "prepared.nii.gz").dataobj, np.float32)
    again = predict_outcome(bundle, bundle.networks(), torch.from_numpy(hu)[None])
    assert again.probability == pytest.approx(found.probability, rel=1e-5)
    page = (case / "page.svg").read_text()
    assert f"Model: {DEFAULT_MODEL}, version" in page
    assert packaged[:12] in page
    assert f"{100 * found.probability:.0f} %" in page
    assert "Demonstration, not for clinical use" in page
    facts = json.loads((case / "saliency.nii.gz.json").read_text())
    assert packaged in json.dumps(facts)


def test_a_model_that_is_not_here_is_said_at_the_first_step_that_asks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(MODELS, DEFAULT_MODEL, raising=False)
    _, record = run(tmp_path)
    assert record["status"] == "failed"
    error = record["error"]
    assert error["step"] == "grid"
    assert error["what"] == "no such model of outcomes"
    assert "--set grid.model=" in error["hint"]
    assert str(tmp_path) not in json.dumps(record)
