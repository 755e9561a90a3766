"""The quantitative head: its truth, its signals against other derivations, its files."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medpipe.cli.main import invoke
from medpipe.errors import UsageError
from medpipe.io.nifti import read_nifti
from medpipe.io.weighted import LoadWeighted
from medpipe.phantoms.qmri import (
    PROTOCOLS,
    TISSUES_3T,
    QmriPhantom,
    dess,
    measure,
    mp2rage,
    qmri_phantom,
)
from medpipe.qmri.protocol import protocol_from_settings, read_protocol

MODELS = {
    "VFA": "spgr",
    "DESS": "dess",
    "IRT1": "inversion_recovery",
    "MESE": "spin_echo",
    "MP2RAGE": "mp2rage",
}


@pytest.fixture(scope="module")
def phantom() -> QmriPhantom:
    return qmri_phantom(3, shape=(40, 44, 3), spacing_mm=(6.0, 5.0, 8.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "qmri"
    assert invoke(["data", "qmri", str(target), "--seed", "3"]) == 0
    return target


def uniform(t1: float, t2: float, kappa: float = 1.0) -> QmriPhantom:
    """Return one voxel of M0 = 1."""
    values = [np.full((1, 1, 1), v) for v in (t1, t2, 1.0, kappa)]
    return QmriPhantom(np.eye(4), np.ones((1, 1, 1), np.uint8), *values, seed=0)


def test_every_voxel_is_one_tissue_with_the_published_values(phantom: QmriPhantom):
    for rank, tissue in enumerate(TISSUES_3T.values(), start=1):
        at = phantom.tissue == rank
        assert at.sum() > 20
        values = np.stack([phantom.t1_s[at], phantom.t2_s[at], phantom.m0[at]], 1)
        assert np.unique(values, axis=0).tolist() == [list(tissue)]
    nothing = phantom.tissue == 0
    assert not phantom.t1_s[nothing].any()
    assert phantom.kappa[0, 0, 0] == pytest.approx(0.7)
    assert phantom.kappa.max() == pytest.approx(1.1, abs=1e-3)
    assert set(np.unique(phantom.tissue[phantom.brain > 0])) == {1, 2, 3}


def test_dess_has_the_published_spot_values():
    at = {"flip_angle_deg": 30.0, "repetition_time_s": 0.0175, "echo_time_s": 0.00467}
    white = uniform(0.832, 0.0796)
    assert dess(white, **at, echo=1).item() == pytest.approx(0.112746855, abs=5e-10)
    assert dess(white, **at, echo=2).item() == pytest.approx(0.072775256, abs=5e-10)


def test_mp2rage_followed_pulse_by_pulse_equals_the_published_closed_form():
    """Marques 2010, equations 1 to 3 of the appendix."""
    t1, eff, shots = 1.331, 0.96, 88
    (ti1, ti2), (f1, f2), tr, cycle = (0.7, 2.5), (4.0, 5.0), 0.0071, 5.0
    c1, c2 = np.cos(np.radians([f1, f2]))
    e1 = np.exp(-tr / t1)
    ea, eb, ec = np.exp(
        -np.array([ti1 - shots * tr, ti2 - ti1 - 2 * shots * tr, cycle - ti2 - shots * tr]) / t1
    )
    n = 2 * shots
    train = [(1 - e1) * (1 - (c * e1) ** n) / (1 - c * e1) for c in (c1, c2)]
    steady = ((1 - ea) * (c1 * e1) ** n + train[0]) * eb + (1 - eb)
    steady = (steady * (c2 * e1) ** n + train[1]) * ec + (1 - ec)
    steady /= 1 + eff * (c1 * c2) ** n * np.exp(-cycle / t1)
    first = (-eff * steady * ea + 1 - ea) * (c1 * e1) ** shots
    first += (1 - e1) * (1 - (c1 * e1) ** shots) / (1 - c1 * e1)
    second = (steady - (1 - ec)) / (ec * (c2 * e1) ** shots)
    second -= (1 - e1) * ((c2 * e1) ** -shots - 1) / (1 - c2 * e1)
    expected = [np.sin(np.radians(f1)) * first, np.sin(np.radians(f2)) * second]
    settings = PROTOCOLS["mp2rage"].sequences[0].settings
    for readout, value in enumerate(expected, start=1):
        found = mp2rage(uniform(t1, 0.1), **{**settings, "readout": readout}).item()
        assert found == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_signals_agree_with_the_signal_models_through_the_sidecars(
    folder: Path, name: str, phantom: QmriPhantom
):
    """Names, sidecars, loader, protocol and models lead to what the phantom computed."""
    suffixes = list(dict.fromkeys(s.suffix for s in PROTOCOLS[name].sequences))
    image = LoadWeighted(suffix=suffixes)(folder / name / "sub-01" / "anat")
    settings = image.meta["medpipe"]["source"]["acquisitions"]
    clean = measure(phantom, name, noise=0.0)
    at = phantom.tissue > 0
    values = {
        "t1_s": phantom.t1_s[at],
        "t2_s": phantom.t2_s[at],
        "kappa": phantom.kappa[at],
        "inversion_efficiency": np.ones(at.sum()),
        "m0": phantom.m0[at],
    }
    # what the models leave to M0
    if name in ("irt1", "vfa"):
        echo = PROTOCOLS[name].sequences[0].settings["echo_time_s"]
        values["m0"] = values["m0"] * np.exp(-echo / phantom.t2_s[at])
    if name == "mese":
        values["m0"] = values["m0"] * -np.expm1(-2.5 / phantom.t1_s[at])
    tensors = {key: torch.from_numpy(np.asarray(v)) for key, v in values.items()}
    if name == "spgr-dess":
        protocol = read_protocol(folder / name / "protocol.json")
    else:
        protocol = protocol_from_settings(settings, MODELS[suffixes[0]])
    expected = protocol.signal(tensors, magnitude=True).abs().numpy().T
    np.testing.assert_allclose(np.abs(clean[:, at]), expected, rtol=1e-9, atol=1e-12)


def test_noise_is_complex_with_the_given_spread(phantom: QmriPhantom):
    sigma = PROTOCOLS["spgr-dess"].noise
    noise = measure(phantom, "spgr-dess") - measure(phantom, "spgr-dess", noise=0.0)
    for channel in (noise.real, noise.imag):
        assert channel.std() == pytest.approx(sigma, rel=0.02)
        assert abs(channel.mean()) < 5 * sigma / channel.size**0.5
    assert sigma == 3.8607e-4
    other = measure(replace(phantom, seed=4), "spgr-dess")
    assert not np.allclose(other, measure(phantom, "spgr-dess"), atol=sigma / 100)


def test_wrong_arguments_are_refused(phantom: QmriPhantom):
    with pytest.raises(UsageError, match="no such protocol"):
        measure(phantom, "flair")
    with pytest.raises(UsageError, match="empty"):
        qmri_phantom(shape=(0, 4, 4))


def test_a_single_column_is_a_grid():
    assert qmri_phantom(shape=(1, 1, 1)).kappa.item() == pytest.approx(1.1)


def test_the_command_writes_datasets_manifests_and_truth(folder: Path):
    assert {p.name for p in folder.iterdir()} == {"truth", *PROTOCOLS}
    t1 = read_nifti(folder / "truth" / "T1map.nii.gz")
    assert t1.data.shape == (128, 128, 8)
    # what float32 holds of the published value
    assert np.float32(0.832) in np.unique(t1.data)
    assert json.loads((folder / "truth" / "T1map.json").read_text())["Units"] == "s"
    for name in PROTOCOLS:
        rows = list(csv.DictReader((folder / name / "cases.csv").read_text().splitlines()))
        assert [row["case_id"] for row in rows] == ["sub-01"]
        for column in ("images", "b1", "mask"):
            assert (folder / name / rows[0][column]).exists()
    sidecar = json.loads(
        (folder / "mp2rage/sub-01/anat/sub-01_inv-2_part-mag_MP2RAGE.json").read_text()
    )
    assert sidecar["InversionTime"] == 2.5
    assert sidecar["FlipAngle"] == 5.0
    assert sidecar["NumberShots"] == [88, 88]


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path):
    target = tmp_path / "again"
    words = ["data", "qmri", str(target), "--seed", "3", "--protocol", "vfa"]
    assert invoke(words) == 0
    assert {p.name for p in target.iterdir()} == {"truth", "vfa"}
    for path in target.rglob("*"):
        if path.is_file():
            other = folder / path.relative_to(target)
            digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (path, other)}
            assert len(digests) == 1
    assert invoke(words) == 2  # the folder is not empty


def test_an_unknown_protocol_writes_nothing(tmp_path: Path):
    assert invoke(["data", "qmri", str(tmp_path / "x"), "--protocol", "nmr"]) == 2
    assert not (tmp_path / "x").exists()
