"""The fits, maps, quality and tables of relaxation as transforms, against known truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import MedpipeError, StepError, UsageError
from medpipe.qmri import Flag, LogUniform, Protocol, save_perk, train_perk
from medpipe.qmri.transforms import estimators
from medpipe.qmri.transforms.estimators import make_ranges, relative_noise
from medpipe.qmri.transforms.maps import QUALITY_NAMES, channels_of
from medpipe.transforms import (
    STEPS,
    FitDictionary,
    FitLeastSquares,
    FitLeastSquaresd,
    FitPerk,
    FitRelaxation,
    FitRelaxationd,
    QualityMap,
    QualityMapd,
    RelaxationMap,
    RelaxationMapd,
    RelaxationTable,
    RelaxationTabled,
)
from medpipe.workflow.describe import describe_step

SPGR = {
    "model": "spgr",
    "flip_angle_deg": [3, 8, 20],
    "repetition_time_s": 0.015,
    "echo_time_s": 0.003,
}
IR = {"model": "inversion_recovery", "inversion_time_s": [0.05, 0.4, 1.1, 2.5]}
MESE = {"model": "spin_echo", "echo_time_s": [0.01 * i for i in range(1, 9)]}
DESS = {
    "model": "dess",
    "flip_angle_deg": 30,
    "repetition_time_s": 0.0175,
    "echo_time_s": 0.003,
}
SHAPE = (12, 10, 3)
SIGMA = 0.05
M0 = 100.0


def protocol_of(*acquisitions: dict[str, Any]) -> Protocol:
    return Protocol.from_dict({"acquisitions": list(acquisitions)})


def truth() -> dict[str, torch.Tensor]:
    """White matter, grey matter, fluid from low to high I."""
    place = torch.arange(SHAPE[0])[:, None, None].expand(SHAPE) // 4
    return {
        "m0": torch.tensor([0.77, 0.86, 1.0])[place] * M0,
        "t1_s": torch.tensor([0.832, 1.331, 3.0])[place],
        "t2_s": torch.tensor([0.0796, 0.110, 0.35])[place],
        "inversion_efficiency": torch.full(SHAPE, 0.95),
    }


def images(
    protocol: Protocol, values: dict[str, torch.Tensor] | None = None, sigma: float = SIGMA
) -> MetaTensor:
    """Return Rician images (D, I, J, K) of the truth."""
    signal = protocol.signal(truth() if values is None else values).movedim(-1, 0)
    generator = torch.Generator().manual_seed(1)
    noise = [sigma * torch.randn(signal.shape, generator=generator) for _ in range(2)]
    return meta(torch.hypot(signal + noise[0], noise[1]))


def meta(data: torch.Tensor, step_mm: float = 2.0, **source: Any) -> MetaTensor:
    affine = torch.diag(torch.tensor([step_mm, step_mm, step_mm, 1.0], dtype=torch.float64))
    facts = {"medpipe": {"source": source, "findings": []}} if source else {}
    return MetaTensor(data.float(), affine=affine, meta=facts)


def messages(image: MetaTensor, check: str = "") -> list[str]:
    found = image.meta["medpipe"]["findings"]
    return [f["message"] for f in found if f["check"].startswith(check)]


def relative(found: torch.Tensor, name: str) -> torch.Tensor:
    expected = truth()[name]
    return (found - expected) / expected


@pytest.fixture(scope="module")
def vfa() -> tuple[Protocol, MetaTensor]:
    protocol = protocol_of(SPGR)
    return protocol, images(protocol)


@pytest.fixture(scope="module")
def fitted(vfa: tuple[Protocol, MetaTensor]) -> MetaTensor:
    return FitLeastSquares(vfa[0], noise_sigma=SIGMA)(vfa[1])


@pytest.mark.parametrize(
    ("acquisitions", "times"),
    [
        ((SPGR,), ("t1_s",)),
        ((IR,), ("t1_s",)),
        ((MESE,), ("t2_s",)),
        ((SPGR, DESS), ("t1_s", "t2_s")),
    ],
)
@pytest.mark.parametrize("fit", [FitLeastSquares, FitDictionary])
def test_maps_are_the_truth(
    acquisitions: tuple[dict[str, Any], ...], times: tuple[str, ...], fit: type
) -> None:
    protocol = protocol_of(*acquisitions)
    found = channels_of(fit(protocol)(images(protocol)))
    for name in times:
        error = relative(found[name], name)
        assert float(error.abs().median()) < 0.02
        for tissue in error.split(4):  # no bias in any tissue
            assert abs(float(tissue.mean())) < 0.03
    spread = found[f"{times[0]}_error"]
    assert bool(spread.isnan().all()) if fit is FitDictionary else bool((spread > 0).all())


def test_standard_errors_are_those_of_the_noise(fitted: MetaTensor) -> None:
    found = channels_of(fitted)
    z = (found["t1_s"] - truth()["t1_s"]) / found["t1_s_error"]
    assert 0.85 < float(z.std()) < 1.15


def test_a_trained_model_serves_every_scan_of_its_protocol(
    vfa: tuple[Protocol, MetaTensor], tmp_path: Path
) -> None:
    protocol, scan = vfa
    # noise of 0.05 at an M0 of about 90
    perk = train_perk(
        protocol, {"t1_s": LogUniform(0.5, 4.0)}, 6e-4,
        features=300, samples=4000, length_scale=2**-0.5, ridge=2.0**-41,
    )  # fmt: skip
    save_perk(perk, tmp_path / "vfa.safetensors")
    path = str(tmp_path / "vfa.safetensors")
    by_perk = FitPerk(protocol, trained=path)(scan)
    assert float(relative(channels_of(by_perk)["t1_s"], "t1_s").abs().median()) < 0.03
    # images 100 times as bright
    brighter = FitPerk(protocol, trained=path)(meta(scan.as_tensor() * 100))
    torch.testing.assert_close(
        channels_of(brighter)["t1_s"], channels_of(by_perk)["t1_s"], rtol=1e-3, atol=0
    )
    hybrid = FitRelaxation(protocol, trained=path)(scan)
    assert hybrid.meta["medpipe"]["source"]["relaxometry"]["estimator"] == "hybrid"
    exact = channels_of(FitLeastSquares(protocol)(scan))["t1_s"]
    torch.testing.assert_close(channels_of(hybrid)["t1_s"], exact, rtol=2e-3, atol=0)
    other = protocol_of({**SPGR, "repetition_time_s": 0.02})
    with pytest.raises(MedpipeError, match=r"repetition_time_s.*0\.0(15|2)"):
        FitPerk(other, trained=path)(scan)
    with pytest.raises(UsageError, match="uses no trained model"):
        FitRelaxation(protocol, estimator="dictionary", trained=path)


def test_a_batch_trains_once_for_each_level_of_noise(
    vfa: tuple[Protocol, MetaTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, scan = vfa
    levels = []

    def quick(one: Protocol, priors: Any, level: float, **how: Any) -> Any:
        levels.append(level)
        assert how["seed"] == 3
        how |= {"features": 50, "samples": 500, "length_scale": 0.7, "ridge": 1e-9}
        return train_perk(one, priors, level, **how)

    monkeypatch.setattr(estimators, "train_perk", quick)
    monkeypatch.setattr(estimators, "_TRAINED", {})
    for sigma in (0.04, 0.042, 0.16):  # nearly the same, and two octaves more
        FitPerk(protocol, noise_sigma=sigma, seed=3)(scan)
    assert levels[1] / levels[0] == 4
    assert len(levels) == 2
    monkeypatch.setattr(estimators, "FEWEST_TO_TRAIN", 10)
    again = FitRelaxation(protocol, noise_sigma=0.04, seed=3)(scan)
    assert len(levels) == 3  # as a start for least squares it is trained otherwise
    assert again.meta["medpipe"]["source"]["relaxometry"]["estimator"] == "hybrid"


def test_the_level_of_noise_is_that_of_the_scan(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    signal = scan.as_tensor().flatten(1).T
    priors = {"m0": LogUniform(0.7, 1.0), "t1_s": LogUniform(0.8, 3.0)}
    level = relative_noise(protocol, priors, signal, SIGMA)
    assert SIGMA / 90 / 2**0.5 < level < SIGMA / 90 * 2**0.5
    assert relative_noise(protocol, priors, signal * 7, SIGMA * 7) == level
    assert relative_noise(protocol, priors, signal * 0, SIGMA) == pytest.approx(1e-5)


def test_few_voxels_are_fitted_without_training(fitted: MetaTensor, vfa: Any) -> None:
    few = FitRelaxation(vfa[0], noise_sigma=SIGMA)(vfa[1])
    torch.testing.assert_close(few.as_tensor(), fitted.as_tensor(), equal_nan=True)
    assert few.meta["medpipe"]["source"]["relaxometry"]["estimator"] == "least_squares"


def test_where_is_fitted(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    inside = torch.zeros(SHAPE)
    inside[2:10, 2:8] = 1
    values = truth()
    values["m0"] = values["m0"] * inside
    air = images(protocol, values)
    maps = FitLeastSquares(protocol)(air)
    quality = channels_of(maps)["quality"]
    assert float(((quality >= 0) != (inside > 0)).float().mean()) < 0.02
    assert bool((maps.as_tensor()[:-1, quality < 0] == 0).all())
    assert "with a signal" in messages(maps, "qmri.region")[0]
    mask = torch.zeros(1, *SHAPE)
    mask[0, 1:5] = 2
    masked = FitLeastSquares(protocol)(scan, meta(mask))
    assert bool(((channels_of(masked)["quality"] >= 0) == (mask[0] > 0)).all())
    assert "120 voxels (33.3 %), those within the mask" in messages(masked, "qmri.region")[0]


def test_voxels_without_an_answer_are_told_apart(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    broken = scan.as_tensor().clone()
    broken[1, 3, 3, 1] = torch.nan
    broken[:, 4, 4, 1] = 0
    mask = torch.ones(1, *SHAPE)
    mask[0, :, 0] = 0
    maps = FitLeastSquares(protocol)(meta(broken), meta(mask))
    found = channels_of(maps)
    assert float(found["quality"][3, 3, 1]) == Flag.NOT_FINITE
    assert float(found["quality"][4, 4, 1]) == Flag.NO_SIGNAL
    assert bool(found["t1_s"][3, 3, 1].isnan())
    labels = QualityMap()(maps)
    assert labels.dtype == torch.uint8
    names = ["not fitted", *QUALITY_NAMES]
    assert names[int(labels[0, 3, 3, 1])] == "not_finite"
    assert names[int(labels[0, 4, 4, 1])] == "no_signal"
    assert names[int(labels[0, 5, 5, 1])] == "good"
    assert names[int(labels[0, 5, 0, 1])] == "not fitted"
    t1 = RelaxationMap("t1_s")(maps)
    assert bool(t1.isfinite().all())  # files hold no NaN
    assert float(t1[0, 3, 3, 1]) == float(t1[0, 5, 0, 1]) == 0
    assert any("a measured value is NaN" in m for m in messages(maps))
    assert any("2 have no answer" in m for m in messages(maps, "qmri.quality"))


def test_the_most_serious_reason_is_shown() -> None:
    bits = torch.tensor([-1.0, 0, Flag.KAPPA_MISSING, Flag.POOR_FIT | Flag.KAPPA_MISSING,
                         Flag.AT_BOUND | Flag.OUTSIDE_SUPPORT | Flag.NOT_CONVERGED])  # fmt: skip
    maps = meta(torch.stack([bits, bits])[:, :, None, None], maps=["t1_s", "quality"])
    labels = QualityMap()(maps).flatten().tolist()
    assert [(["not fitted", *QUALITY_NAMES])[int(v)] for v in labels] == [
        "not fitted", "good", "kappa_missing", "poor_fit", "outside_support",
    ]  # fmt: skip


def scaled(kappa: torch.Tensor) -> tuple[Protocol, MetaTensor]:
    """Return images whose flip angles are scaled by `kappa` (I, J, K)."""
    protocol = protocol_of(SPGR)
    return protocol, images(protocol, truth() | {"kappa": kappa}, sigma=0.01)


def test_flip_angles_are_scaled_by_the_map() -> None:
    kappa = torch.linspace(0.8, 1.2, SHAPE[0])[:, None, None].expand(SHAPE)
    protocol, scan = scaled(kappa)
    without = channels_of(FitLeastSquares(protocol)(scan))["t1_s"]
    assert float(relative(without, "t1_s").abs().median()) > 0.1
    maps = FitLeastSquares(protocol)(scan, None, meta(kappa[None]))
    assert float(relative(channels_of(maps)["t1_s"], "t1_s").abs().median()) < 0.005
    assert messages(maps, "qmri.b1") == ["flip angles scaled by the B1 map in 100 % of the voxels"]
    assert "taken as nominal" in messages(FitLeastSquares(protocol)(scan), "qmri.b1")[0]


def test_zeros_of_a_coarse_map_do_not_bleed() -> None:
    kappa = torch.full(SHAPE, 0.9)
    protocol, scan = scaled(kappa)
    coarse = torch.full((1, 7, 6, 3), 0.9)
    coarse[:, 4:] = 0  # from 8 mm x 3.5 on nothing is known
    coarse[:, 0, 0, 0] = torch.nan
    maps = FitLeastSquares(protocol)(scan, None, meta(coarse, step_mm=4.0))
    found = channels_of(maps)
    missing = (found["quality"].int() & int(Flag.KAPPA_MISSING)) != 0
    assert bool(missing[8:].all())
    assert not bool(missing[2:7].any())
    # where it is known it is 0.9 and nothing between 0 and 0.9
    assert float(relative(found["t1_s"], "t1_s")[2:7].abs().median()) < 0.005
    (text,) = messages(maps, "qmri.b1")
    assert f"in {int(missing.sum())} it has no value" in text


def test_the_map_and_its_sidecar(fitted: MetaTensor) -> None:
    t1 = RelaxationMap("t1_s")(fitted)
    assert t1.shape == (1, *SHAPE)
    source = t1.meta["medpipe"]["source"]
    assert source["sidecar"]["Units"] == "s"
    assert "Levenberg-Marquardt" in source["sidecar"]["EstimationAlgorithm"]
    assert "https://doi.org/10.1137/0710036" in source["sidecar"]["EstimationReference"]
    assert source["display"] == {"name": "T1", "unit": "ms", "factor": 1000.0}
    assert source["relaxometry"]["protocol"] == protocol_of(SPGR).to_dict()
    json.dumps(source)
    m0 = RelaxationMap("m0")(fitted).meta["medpipe"]["source"]
    assert (m0["sidecar"]["Units"], "display" in m0) == ("arbitrary", False)
    error = RelaxationMap("t1_s_error")(fitted).meta["medpipe"]["source"]
    assert error["display"]["name"] == "T1 standard error"
    with pytest.raises(StepError, match=r"no such map; expected t1_s \| m0 \| t1_s_error"):
        RelaxationMap("t2_s")(fitted)
    with pytest.raises(StepError, match="holds no maps of relaxation"):
        RelaxationMap("t1_s")(meta(torch.zeros(1, *SHAPE)))


def test_the_table_has_a_row_for_each_label(fitted: MetaTensor) -> None:
    labels = (torch.arange(SHAPE[0]) // 4)[:, None, None].expand(SHAPE)[None] + 1
    table = RelaxationTable()(fitted, meta(labels))
    assert list(table) == ["all", "1", "2", "3"]
    t1 = channels_of(fitted)["t1_s"].numpy()
    row: dict[str, Any] = table["2"]  # type: ignore[assignment]
    expected = np.percentile(t1[4:8], [25, 50, 75])
    got = [row[f"t1_s_{name}"] for name in ("p25", "median", "p75")]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert row["voxels"] == 4 * 10 * 3
    assert row["voxels_without_answer"] == row["voxels_not_finite"] == 0
    assert list(RelaxationTable()(fitted)) == ["all"]
    whole = meta(torch.ones(1, *SHAPE))
    assert list(RelaxationTable()(fitted, whole)) == ["all"]  # one label is the region
    with pytest.raises(StepError, match="not on the grid"):
        RelaxationTable()(fitted, meta(labels, step_mm=3.0))
    with pytest.raises(StepError, match="holds no labels"):
        RelaxationTable()(fitted, meta(labels + 0.5))


def test_a_region_without_an_answer_is_null(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    broken = scan.as_tensor().clone()
    broken[0, :4] = torch.nan
    labels = (torch.arange(SHAPE[0]) // 4)[:, None, None].expand(SHAPE)[None] + 1
    maps = FitLeastSquares(protocol)(meta(broken), meta(labels))
    row: dict[str, Any] = RelaxationTable()(maps, meta(labels))["1"]  # type: ignore[assignment]
    assert row["t1_s_median"] is None
    assert row["voxels_without_answer"] == row["voxels_not_finite"] == row["voxels"] == 120


def test_settings_come_from_the_headers(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    settings = [
        {"flip_angle_deg": a, "repetition_time_s": 0.015, "echo_time_s": 0.003, "suffix": "VFA"}
        for a in (3, 8, 20)
    ]
    given = FitLeastSquares(protocol)(scan)
    for model in ("spgr", None):  # None: by the suffix
        own = meta(scan.as_tensor(), acquisitions=settings)
        found = FitLeastSquares(model=model)(own)
        torch.testing.assert_close(found.as_tensor(), given.as_tensor())
    wrong = meta(scan.as_tensor(), acquisitions=[s | {"repetition_time_s": 0.02} for s in settings])
    (text,) = [m for m in messages(FitLeastSquares(protocol)(wrong)) if "headers" in m]
    assert "repetition_time_s is 0.015 in the protocol file and 0.02" in text
    last = [*settings[:2], settings[2] | {"repetition_time_s": 0.02}]
    (text,) = messages(FitLeastSquares(protocol)(meta(scan.as_tensor(), acquisitions=last)))[:1]
    assert "0.015, 0.015, 0.02 in the headers" in text
    both = protocol_of(SPGR, DESS)
    dess = {"flip_angle_deg": 30, "repetition_time_s": 0.0175, "echo_time_s": 0.003}
    more = meta(
        images(both).as_tensor(),
        acquisitions=[*settings, *[dess | {"suffix": "DESS"}] * 2],
    )
    by_suffix = FitLeastSquares()(more)
    assert by_suffix.meta["medpipe"]["source"]["relaxometry"]["protocol"] == both.to_dict()


def refused(call: Any) -> str:
    with pytest.raises(MedpipeError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_images_that_do_not_fit(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    fit = FitLeastSquares(protocol)
    data = scan.as_tensor()
    said = refused(lambda: fit(meta(data[:2])))
    assert "does not fit the protocol; expected 3: SPGR 3°, SPGR 8°, SPGR 20°, got 2" in said
    assert "move it to the front" in refused(lambda: fit(meta(data.permute(1, 2, 3, 0))))
    assert "nothing but zeros" in refused(lambda: fit(meta(data * 0)))
    one = data.clone()
    one[1] = 0
    assert "image 2 (SPGR 8°): an image holds nothing but zeros" in refused(lambda: fit(meta(one)))
    assert "no voxel has a finite signal" in refused(
        lambda: fit(meta(data.masked_fill(data > -1, torch.inf)))
    )
    complex_scan = MetaTensor(torch.polar(data, torch.full_like(data, 0.7)), affine=scan.affine)
    found = fit(complex_scan)
    torch.testing.assert_close(found.as_tensor(), fit(scan).as_tensor(), rtol=1e-4, atol=1e-4)
    assert "magnitude was fitted" in messages(found)[0]


def test_masks_and_b1_maps_that_do_not_fit(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    fit = FitLeastSquares(protocol)
    ones = torch.ones(1, *SHAPE)
    assert "mask is not on the grid" in refused(lambda: fit(scan, meta(ones, step_mm=1.0)))
    assert "mask is empty" in refused(lambda: fit(scan, meta(ones * 0)))
    said = refused(lambda: fit(scan, None, meta(ones * 100)))
    assert "kappa is no fraction" in said
    assert "in percent by 100" in said
    assert "not scalar" in refused(lambda: fit(scan, None, meta(ones.expand(2, *SHAPE))))
    decay = protocol_of(MESE)
    said = refused(lambda: FitLeastSquares(decay)(images(decay), None, meta(ones)))
    assert "no signal of the protocol depends on it" in said


def test_settings_that_are_missing_or_of_another_kind(vfa: tuple[Protocol, MetaTensor]) -> None:
    data = vfa[1].as_tensor()
    full = {"flip_angle_deg": 3, "repetition_time_s": 0.015, "suffix": "VFA"}

    def fit(model: str | None, settings: list[dict[str, Any]]) -> Any:
        return lambda: FitLeastSquares(model=model)(meta(data, acquisitions=settings))

    lacks = [full, {"flip_angle_deg": 8, "suffix": "VFA"}, full]
    said = refused(fit("spgr", lacks))
    assert said.startswith("image 2: repetition_time_s is missing")
    assert "RepetitionTimeExcitation" in said
    assert "in ms?" in refused(fit("spgr", [full | {"repetition_time_s": 15.0}] * 3))
    said = refused(fit("spin_echo", [full] * 3))
    assert "image 1: the images are no images of spin_echo; expected MESE, got VFA" in said
    assert "does not say what it is" in refused(fit(None, [{"flip_angle_deg": 3}] * 3))
    assert "carry no settings" in refused(lambda: FitLeastSquares(model="spgr")(meta(data)))
    both = {
        "inversion_time_s": 0.7, "flip_angle_deg": 4, "repetition_time_s": 0.007,
        "repetition_time_preparation_s": 5.0, "number_shots": 160, "suffix": "MP2RAGE",
    }  # fmt: skip
    pair = [both, both | {"inversion_time_s": 2.5, "flip_angle_deg": 5}]
    magnitudes = meta(data[:2], acquisitions=pair)
    assert "alike for two T1" in refused(lambda: FitLeastSquares(model="mp2rage")(magnitudes))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: FitRelaxation(model="sgpr"), "unknown signal model"),
        (lambda: FitRelaxation(model="spgr", estimator="best"), "unknown estimator"),  # type: ignore[arg-type]
        (lambda: FitRelaxation(model="spgr", noise_sigma=0.0), "noise_sigma is wrong"),
        (lambda: make_ranges(t1_s=(3.0, 0.3)), "does not rise"),
        (lambda: make_ranges(t1_s=(300.0, 3000.0)), "in ms?"),
        (lambda: make_ranges(t1_s=(0.1, 0.2, 0.3)), "two numbers"),
    ],
)
def test_parameters_that_cannot_be(call: Any, text: str) -> None:
    assert text in refused(call)


def test_a_range_of_something_else_is_refused(vfa: tuple[Protocol, MetaTensor]) -> None:
    protocol, scan = vfa
    with pytest.raises(UsageError, match=r"range of t2_s is given.*expected t1_s"):
        FitLeastSquares(protocol, t2_range_s=(0.01, 1.0))(scan)
    near = FitLeastSquares(protocol, t1_range_s=(0.5, 2.0))(scan)
    found = channels_of(near)
    assert float(found["t1_s"].max()) <= 2.0 + 1e-6
    bound = (found["quality"].int() & int(Flag.AT_BOUND)) != 0
    assert bool(bound[8:].all())  # fluid of 3 s
    assert any("ended at the bound" in m for m in messages(near))


def test_a_protocol_file(vfa: tuple[Protocol, MetaTensor], tmp_path: Path) -> None:
    protocol, scan = vfa
    path = tmp_path / "protocol.json"
    path.write_text(json.dumps({"acquisitions": [SPGR]}))
    found = FitRelaxation(str(path), model="gradient_echo")(scan)  # the file comes first
    torch.testing.assert_close(found.as_tensor(), FitRelaxation(protocol)(scan).as_tensor())
    path.write_text(json.dumps({"acquisitions": [SPGR | {"repetition_time_s": 15}]}))
    said = refused(lambda: FitRelaxation(str(path))(scan))
    assert said.startswith("protocol.json · acquisition 1 (spgr)")
    with pytest.raises(UsageError, match="cannot be read"):
        FitRelaxation(str(tmp_path / "none.json"))(scan)


def test_the_dictionary_classes(vfa: tuple[Protocol, MetaTensor], tmp_path: Path) -> None:
    protocol, scan = vfa
    path = tmp_path / "protocol.json"
    path.write_text(json.dumps(protocol.to_dict()))
    labels = (torch.arange(SHAPE[0]) // 6)[:, None, None].expand(SHAPE)[None] + 1
    kappa = torch.full((1, *SHAPE), 1.0)
    data: dict[Any, Any] = {"i": scan, "m": meta(labels), "b": meta(kappa)}
    out = FitRelaxationd("i", protocol=str(path), mask="m", b1="b")(data)
    expected = FitRelaxation(protocol)(scan, data["m"], data["b"])
    torch.testing.assert_close(out["i"].as_tensor(), expected.as_tensor())
    alone = FitLeastSquaresd("i", protocol=str(path), mask="m", b1="b")({"i": scan})["i"]
    torch.testing.assert_close(alone.as_tensor(), FitLeastSquares(protocol)(scan).as_tensor())
    t1 = RelaxationMapd("i", "t1_s")(out)["i"]
    torch.testing.assert_close(t1.as_tensor()[0], channels_of(expected)["t1_s"])
    assert int(QualityMapd("i")(out)["i"].max()) >= 1
    assert list(RelaxationTabled("i", labels="m")(out)["i"]) == ["all", "1", "2"]
    assert list(RelaxationTabled("i", labels="x")(out)["i"]) == ["all"]


@pytest.mark.parametrize("name", [n for n, where in STEPS.items() if "qmri.transforms" in where])
def test_steps_are_described_from_their_source(name: str) -> None:
    step = describe_step(name)
    assert step.summary
    assert all(p.help for p in step.parameters)


def test_images_are_left_out_by_number() -> None:
    protocol = protocol_of(MESE)
    scan = images(protocol)
    settings = [{"echo_time_s": 0.01 * i, "suffix": "MESE"} for i in range(1, 9)]
    spoilt = scan.as_tensor().clone()
    spoilt[0] *= 0.5
    whole = meta(spoilt, acquisitions=settings)
    found = FitRelaxation(model="spin_echo", leave_out=[1])(whole)
    later = protocol_of({**MESE, "echo_time_s": MESE["echo_time_s"][1:]})
    expected = FitRelaxation(later)(meta(spoilt[1:]))
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    assert "of 8 images 1 was left out: number 1" in messages(found)
    given = FitRelaxation(later, leave_out=[1])(whole)  # the protocol describes the others
    torch.testing.assert_close(given.as_tensor(), expected.as_tensor())
    assert "expected some of 1 to 8, got 9" in refused(
        lambda: FitRelaxation(model="spin_echo", leave_out=[9])(whole)
    )
    assert "from 1" in refused(lambda: FitRelaxation(model="spin_echo", leave_out=[0]))
