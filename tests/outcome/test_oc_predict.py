"""Predictions against arithmetic by hand, and what every output must say."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from oc_toy_models import FACTS, SIZE, CornerNetwork, members, written
from PIL import Image
from scipy import special
from torch import nn

from medpipe.errors import InputError, StepError, UsageError
from medpipe.outcome.bundle import OutcomeBundle, OutcomeFacts, read_bundle
from medpipe.outcome.channels import ct_channels
from medpipe.outcome.predict import (
    OutcomePrediction,
    calibration_groups,
    outcome_logit,
    predict_outcome,
)
from medpipe.outcome.transforms.predict import (
    ModelGridd,
    PredictionTabled,
    PredictOutcome,
    PredictOutcomed,
)
from medpipe.outcome.transforms.prepare import HeadGridd
from medpipe.outcome.transforms.saliency import OutcomePage, OutcomeSaliency, OutcomeSaliencyd
from medpipe.steps._base import rewrap, with_facts
from medpipe.types import Finding, Severity

NOTICE = "demonstration, not for clinical use; trained on simulated patients"


def prepared(seed: int = 0, spacing: float = 8.0) -> MetaTensor:
    """A ball of brain in air with a bright spot."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in SIZE], indexing="ij")
    ball = sum(a * a for a in axes) < 100
    hu = torch.where(ball, 35 + 5 * torch.randn(SIZE, generator=generator), -1000.0)
    hu[4:8, 10:14, 10:14] = 70.0
    affine = torch.diag(torch.tensor([spacing, spacing, spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = -spacing * (torch.tensor(SIZE) - 1) / 2
    image = MetaTensor(hu.round()[None], affine=affine)
    return with_facts(image, {"modality": "CT"}, [Finding("ct", Severity.WARNING, "thick slices")])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> OutcomeBundle:
    return read_bundle(folder)


def odds_by_hand(networks: list[Any], hu: torch.Tensor) -> list[float]:
    out = []
    with torch.no_grad():
        for network in networks:
            two = network(ct_channels(hu, "windows")[None])[0].softmax(0)
            out.append(math.log(float(two[1]) / float(two[0])))
    return out


def test_the_probability_is_the_recalibrated_mean_of_log_odds(bundle: OutcomeBundle) -> None:
    hu = prepared().as_tensor()
    odds = odds_by_hand(members(), hu)
    found = predict_outcome(bundle, bundle.networks(), hu)
    mean = sum(odds) / 2
    assert found.logit == pytest.approx(mean, abs=1e-4)
    assert found.probability == pytest.approx(special.expit(-0.5 + 0.8 * mean), abs=1e-5)
    each = [special.expit(-0.5 + 0.8 * x) for x in odds]
    assert found.members == pytest.approx(each, abs=1e-5)
    assert (found.low, found.high) == (min(found.members), max(found.members))
    assert found.low < found.probability < found.high
    assert found.spread_text == "lowest and highest of 2 members of the ensemble, recalibrated"
    # the interval of the recalibration: variance of intercept + slope * logit
    half = 1.959963984540054 * math.sqrt(0.04 + 0.02 * mean**2)
    ends = special.expit(-0.5 + 0.8 * mean + np.array([-half, half]))
    assert (found.calibration_low, found.calibration_high) == pytest.approx(ends, abs=1e-5)
    assert found.above is (found.probability >= 0.3)
    assert found.model["digest"] == bundle.digest
    assert found.notice == NOTICE


def test_without_recalibration_or_a_second_member_there_is_no_interval() -> None:
    facts = replace(FACTS, recalibration=None, threshold=None, calibration=())
    one = OutcomeBundle(facts, (members(1)[0].state_dict(),), "0" * 64)
    hu = prepared().as_tensor()
    found = predict_outcome(one, one.networks(), hu)
    want = special.expit(odds_by_hand(members(1), hu)[0])
    assert found.probability == pytest.approx(want, abs=1e-5)
    assert found.low is found.high is found.calibration_low is found.above is None
    assert found.observed is None
    assert found.spread_text == "one member: no spread"


def test_mirrored_copies_are_averaged(bundle: OutcomeBundle) -> None:
    hu = prepared().as_tensor()
    networks = bundle.networks()
    own = replace(bundle, facts=replace(bundle.facts, tta=[[0]]))
    here, there = (predict_outcome(bundle, networks, side) for side in (hu, hu.flip(1)))
    both = predict_outcome(own, networks, hu)
    assert both.logit == pytest.approx((here.logit + there.logit) / 2, abs=1e-4)
    assert both.model["mirrored_copies"] is True


def test_hazards_give_the_odds_of_an_event_by_the_end() -> None:
    facts = replace(FACTS, interval_ends_days=(7.0, 30.0, 90.0))
    hazards = torch.tensor([[-1.0, 0.5, -2.0], [-30.0, -30.0, -30.0]])
    survival = np.prod(1 - special.expit(hazards.double().numpy()), 1)
    want = np.log((1 - survival[0]) / survival[0])
    found = outcome_logit(facts)(hazards)
    assert float(found[0]) == pytest.approx(want, rel=1e-5)
    assert float(found[1]) == pytest.approx(math.log(3) - 30, rel=1e-5)


def test_what_was_observed_belongs_to_the_probability(bundle: OutcomeBundle) -> None:
    found = predict_outcome(bundle, bundle.networks(), prepared().as_tensor())
    group = FACTS.calibration[0 if found.probability <= 0.4 else 1]
    assert found.observed == group
    assert f"of {group['n']} cases" in found.observed_text
    assert f"{group['events']} had the outcome" in found.observed_text


def test_groups_of_calibration_are_counted() -> None:
    probability = np.arange(20) / 20
    outcome = (np.arange(20) >= 15).astype(int)
    groups = calibration_groups(outcome, probability, groups=4)
    assert [g["n"] for g in groups] == [5, 5, 5, 5]
    assert [g["events"] for g in groups] == [0, 0, 0, 5]
    assert [(g["from"], g["to"]) for g in groups][1] == (0.25, 0.45)
    # Wilson, 0 of 5: z² / (n + z²)
    assert groups[0]["low"] == 0
    assert groups[0]["high"] == pytest.approx(1.9599639845**2 / (5 + 1.9599639845**2))
    same = calibration_groups([0, 1, 1], [0.5, 0.5, 0.5])
    assert [(g["n"], g["events"]) for g in same] == [(3, 2)]
    rng = np.random.default_rng(0)
    many = calibration_groups(rng.integers(0, 2, 219), rng.random(219))
    assert sum(g["n"] for g in many) == 219
    assert {g["n"] for g in many} <= {43, 44, 45}
    json.dumps(many)
    with pytest.raises(UsageError, match="do not fit"):
        calibration_groups([0, 1], [0.5])


def test_a_prediction_travels_as_a_document(folder: Path, bundle: OutcomeBundle) -> None:
    image = prepared()
    document = PredictOutcomed(["p"], model=str(folder))({"p": image})["p"]
    assert document == PredictOutcome(str(folder / "configs/metadata.json"))(image)
    record = json.loads(document)
    assert record["notice"] == NOTICE
    assert record["outcome"] == "death within 90 days"
    assert record["findings"] == [
        {"check": "ct", "severity": "warning", "message": "thick slices", "fix": None,
         "fixed": False}
    ]  # fmt: skip
    assert "lowest and highest" in record["spread"]
    assert "95 %" in record["calibration"]
    found = OutcomePrediction.from_json(document)
    assert found.to_json() == document
    row = PredictionTabled(["p"])({"p": document})["p"]
    assert row["probability"] == found.probability
    assert [row["member_1"], row["member_2"]] == list(found.members)
    assert row["side"] == ("above" if found.above else "below")
    assert row["notice"] == NOTICE
    assert row["findings"] == "thick slices"
    assert all(v is None or isinstance(v, bool | int | float | str) for v in row.values())


@pytest.mark.parametrize("wrong", [b"{}", b"no", b'{"format": "medpipe-prediction-1"}', b"[]"])
def test_other_documents_are_no_predictions(wrong: bytes) -> None:
    with pytest.raises(InputError, match="not a prediction"):
        OutcomePrediction.from_json(wrong)


def test_an_image_on_another_grid_is_refused_with_what_fits(folder: Path) -> None:
    for image in (prepared(spacing=7.9), prepared()[:, 1:]):
        with pytest.raises(StepError, match="not on the grid of the model") as caught:
            PredictOutcome(str(folder))(image)
        text = str(caught.value)
        assert "\n" not in text
        assert "24 × 28 × 24 voxels of 8 × 8 × 8 mm" in text
    image = with_facts(prepared(), {"head_grid": {"top_margin_mm": 20.0}})
    with pytest.raises(StepError, match=r"6 mm above, got .* 20 mm above"):
        OutcomeSaliency(str(folder))(image)
    with pytest.raises(StepError, match="no prepared CT"):
        PredictOutcome(str(folder))(MetaTensor(torch.zeros(2, *SIZE)))
    with pytest.raises(StepError, match="needs a prediction"):
        PredictionTabled(["p"])({"p": prepared()})


def test_the_default_model_that_is_not_here_is_said_in_one_line() -> None:
    from medpipe.models import MODELS

    step = PredictOutcome()
    assert step.model.model == OutcomeSaliency().model.model
    if step.model.model in MODELS:
        step.model.model = "absent-model"
    with pytest.raises(UsageError, match="no such model of outcomes") as caught:
        step(prepared())
    assert "\n" not in str(caught.value)
    assert "--set grid.model=" in str(caught.value)


def test_a_model_brings_its_grid(tmp_path: Path) -> None:
    facts = replace(FACTS, size_voxels=(26, 20, 22), spacing_mm=(7.0, 8.0, 9.0), top_margin_mm=12)
    folder = written(tmp_path / "model", facts)
    frame = np.eye(4)
    frame[:3, 3] = (4, 5, 6)
    image = with_facts(prepared(), {"head_frame": {"frame_to_input_ras_mm": frame.tolist()}})
    head = rewrap(image, (image > -300).to(torch.uint8))
    step = ModelGridd(["ct"], model=str(folder), mask="head", mask_out="out")
    found = step({"ct": image, "head": head})
    own = HeadGridd(["ct"], "paper", [7, 8, 9], [26, 20, 22], 12.0, mask="head", mask_out="out")
    want = own({"ct": image, "head": head})
    for key in ("ct", "out"):
        assert torch.equal(found[key], want[key])
        assert torch.equal(found[key].affine, want[key].affine)
    assert OutcomePrediction.from_json(PredictOutcome(str(folder))(found["ct"])).members


def planted(monkeypatch: pytest.MonkeyPatch, *networks: nn.Module) -> None:
    monkeypatch.setattr(OutcomeBundle, "networks", lambda self, device="cpu": list(networks))


def test_a_map_returns_to_the_space_of_the_scan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corner that is looked at lies in the scan where the frame of the head says."""
    torch.manual_seed(0)
    planted(monkeypatch, CornerNetwork(SIZE))
    angle = math.radians(20)
    frame = np.eye(4)
    frame[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    frame[:3, 3] = (5.0, -12.0, 30.0)
    image = with_facts(prepared(), {"head_frame": {"frame_to_input_ras_mm": frame.tolist()}})
    affine = torch.tensor(
        [[-3.0, 0, 0, 150], [0, 3, 0, -170], [0, 0, 5, -90], [0, 0, 0, 1]], dtype=torch.float64
    )
    scan = MetaTensor(torch.zeros(1, 100, 110, 50), affine=affine)
    out = OutcomeSaliencyd(["s"], model=str(folder), like="scan", sanity_stages=0)(
        {"s": image, "scan": scan}
    )["s"]
    assert out.shape == scan.shape
    assert torch.equal(out.affine, scan.affine)
    assert out.dtype == torch.float32
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    own = OutcomeSaliency(str(folder), sanity_stages=0)(image)
    assert torch.equal(own.affine, image.affine)

    def centre(volume: MetaTensor) -> np.ndarray:
        values = volume.as_tensor()[0].double().numpy()
        index = np.stack(np.meshgrid(*[np.arange(n) for n in values.shape], indexing="ij"), -1)
        middle = (index * values[..., None]).sum((0, 1, 2)) / values.sum()
        return volume.affine.numpy() @ np.append(middle, 1)

    assert np.abs(centre(out) - frame @ centre(own))[:3].max() < 1.0
    assert np.abs(centre(out) - centre(own))[:3].max() > 20  # the frame matters
    assert out.meta["medpipe"]["source"]["saliency"]["method"] == "Grad-CAM"
    assert "modality" not in out.meta["medpipe"]["source"]


def test_a_map_says_how_far_to_trust_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    good, bad = CornerNetwork(SIZE), CornerNetwork(SIZE)
    with torch.no_grad():
        bad.class_layers.out.weight.neg_()
    planted(monkeypatch, good, bad)
    out = OutcomeSaliency(str(folder))(prepared())
    facts = out.meta["medpipe"]["source"]["saliency"]
    assert facts["notice"] == NOTICE
    assert (facts["members"], facts["empty_members"], facts["empty"]) == (2, 1, False)
    rows = facts["randomised_weights"]
    assert [row["layers"] for row in rows] == [1, 1, 2]
    checks = {f["check"]: f["message"] for f in out.meta["medpipe"]["findings"]}
    assert checks["outcome.notice"] == NOTICE
    assert "empty in 1 of 2" in checks["outcome.empty_members"]
    # a mask before the last layer decides where this network looks, not its weights
    if rows[-1]["rank_correlation"] is not None and rows[-1]["rank_correlation"] > 0.5:
        assert "does not show what was learned" in checks["outcome.map_unchanged"]
    display = out.meta["medpipe"]["source"]["display"]
    assert "not for clinical use" in display["name"][:40]
    assert facts["blood"]["volume_share"] > 0
    json.dumps(facts, allow_nan=False)
    planted(monkeypatch, bad)
    out = OutcomeSaliency(str(folder), sanity_stages=0)(prepared())
    assert not bool(out.any())
    said = [f["message"] for f in out.meta["medpipe"]["findings"]]
    assert any(m.startswith("empty map") for m in said)
    assert out.meta["medpipe"]["source"]["saliency"]["blood"]["energy_share"] is None


class BloodNetwork(nn.Module):
    """Log odds that grow with the brightness of the brain window near the spot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (B, 2)."""
        odds = 40 * (x[:, 0, 4:8, 10:14, 10:14].mean((1, 2, 3)) - 0.5)
        return torch.stack([-odds / 2, odds / 2], 1)


def test_occlusion_finds_the_blood_that_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, BloodNetwork())
    step = OutcomeSaliency(str(folder), "occlusion", sanity_stages=0, box_mm=32)
    out = step(prepared())
    facts = out.meta["medpipe"]["source"]["saliency"]
    assert facts["method"] == "occlusion"
    assert float(out[0, 5, 11, 11]) == 1
    assert float(out[0, 14, 14, 14]) == 0
    assert facts["blood"]["ratio"] > 4
    before = special.expit(40 * (70 / 80 - 0.5))
    assert facts["largest"] < before
    with pytest.raises(UsageError, match="unknown method"):
        OutcomeSaliency(str(folder), "attention")  # type: ignore[arg-type]


def test_the_mask_of_the_head_must_fit(folder: Path) -> None:
    image = prepared()
    head = rewrap(image, (image > -300).to(torch.uint8))
    data = {"s": image, "head": head}
    out = OutcomeSaliencyd(["s"], model=str(folder), head="head", sanity_stages=0)(data)["s"]
    want = OutcomeSaliency(str(folder), sanity_stages=0)(image)
    assert torch.equal(out, want)
    with pytest.raises(StepError, match="mask of the head"):
        OutcomeSaliency(str(folder), sanity_stages=0)(image, None, head[:, 1:])


def page_of(folder: Path, image: MetaTensor, **parts: Any) -> tuple[str, bytes]:
    document = PredictOutcome(str(folder))(image)
    heat = OutcomeSaliency(str(folder), sanity_stages=1)(image)
    page = OutcomePage(**parts)(document, image, heat)
    return page.decode(), page


def test_the_page_shows_figures_and_slices_and_says_the_notice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    planted(monkeypatch, CornerNetwork(SIZE), CornerNetwork(SIZE))
    image = prepared()
    text, page = page_of(folder, image, slices=4)
    root = ET.fromstring(page)  # noqa: S314
    spoken = " ".join(e.text or "" for e in root.iter() if e.tag.endswith("text"))
    assert "Demonstration, not for clinical use; trained on simulated patients." in spoken
    found = OutcomePrediction.from_json(PredictOutcome(str(folder))(image))
    assert f"Probability of death within 90 days: {100 * found.probability:.0f} %" in spoken
    for part in ("lowest and highest of 2 members", "operating point 30 %", "thick slices",
                 "no evidence of a cause", "45 to 90 HU", "random weights"):  # fmt: skip
        assert part in spoken
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB")).astype(int)
        for content in re.findall(r"base64,([^\"]+)", text)
    ]
    assert len(pictures) == 8
    plain, mapped = pictures[:4], pictures[4:]
    assert all((p[..., 0] == p[..., 1]).all() for p in plain)
    changed = [np.abs(a - b).max() for a, b in zip(plain, mapped, strict=True)]
    assert max(changed) > 40
    assert page == page_of(folder, image, slices=4)[1]


def test_the_page_of_an_empty_map_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = CornerNetwork(SIZE)
    with torch.no_grad():
        bad.class_layers.out.weight.neg_()
    planted(monkeypatch, bad, copy.deepcopy(bad))
    text, _ = page_of(folder, prepared(), slices=2)
    assert "empty map. No voxel speaks for the outcome" in text
    pictures = re.findall(r"base64,([^\"]+)", text)
    assert pictures[:2] == pictures[2:]


def test_the_page_refuses_what_does_not_belong_together(folder: Path, tmp_path: Path) -> None:
    image = prepared()
    document = PredictOutcome(str(folder))(image)
    other = written(tmp_path / "other", replace(FACTS, name="other"))
    heat = OutcomeSaliency(str(other), sanity_stages=0)(image)
    with pytest.raises(StepError, match="different models"):
        OutcomePage()(document, image, heat)
    with pytest.raises(StepError, match="how it was made"):
        OutcomePage()(document, image, image)
    with pytest.raises(StepError, match="not on the grid"):
        OutcomePage()(document, image, heat[:, 1:])


def test_a_model_in_earnest_has_no_notice() -> None:
    assert replace(FACTS, simulated=False, demonstration=False).notice == ""
    assert replace(FACTS, demonstration=False).notice == "trained on simulated patients"
    assert OutcomeFacts.from_json(FACTS.to_json()) == FACTS
