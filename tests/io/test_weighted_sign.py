"""Magnitudes get their sign from phase images or from the uniform image of MP2RAGE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medpipe.errors import InputError
from medpipe.io.weighted import LoadWeighted
from medpipe.phantoms.qmri import PROTOCOLS, QmriPhantom, measure, qmri_phantom
from medpipe.phantoms.qmri_folder import write_qmri_folder

SHAPE = (4, 5, 6)
TIMES = (0.1, 0.5, 2.0)


def write(path: Path, data: np.ndarray, fields: dict[str, Any] | None = None) -> None:
    if data.dtype.kind == "f":
        data = data.astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.eye(4)), path)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    if fields is not None:
        path.with_name(f"{stem}.json").write_text(json.dumps(fields))


def recovery() -> tuple[np.ndarray, np.ndarray]:
    """Return the signed signals (3, I, J, K) and the phase they have in common."""
    rng = np.random.default_rng(5)
    t1 = rng.uniform(0.3, 2.0, SHAPE)
    signed = np.stack([100 * (1 - 2 * np.exp(-t / t1)) for t in TIMES])
    return signed, rng.uniform(-np.pi, np.pi, SHAPE)


def write_recovery(folder: Path, scale: float | None, offset: float = 0.0) -> np.ndarray:
    signed, common = recovery()
    phase = np.angle(signed * np.exp(1j * common))
    for n, time in enumerate(TIMES):
        fields = {"InversionTime": time}
        write(folder / f"sub-01_inv-{n + 1}_part-mag_IRT1.nii", np.abs(signed[n]), fields)
        values, unit = phase[n], {"Units": "rad"}
        if scale is not None:
            values, unit = np.round(phase[n] * scale + offset), {}
        name = f"sub-01_inv-{n + 1}_part-phase_IRT1.nii"
        write(folder / name, values.astype(np.float64), fields | unit)
    return signed * np.sign(signed[-1])  # the last is taken as positive


def note(image) -> tuple[str, str]:
    return next(
        (f["severity"], f["message"])
        for f in image.meta["medpipe"]["findings"]
        if f["check"] == "weighted.sign"
    )


@pytest.mark.parametrize(("scale", "offset"), [(None, 0), (4096 / np.pi, 0), (2048 / np.pi, 2048)])
def test_phase_in_radians_or_bits_gives_the_sign(tmp_path: Path, scale, offset):
    expected = write_recovery(tmp_path, scale, offset)
    image = LoadWeighted(part="signed")(tmp_path)
    assert (expected < 0).any()
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-4, atol=1e-3)
    parts = {a["complex_part"] for a in image.meta["medpipe"]["source"]["acquisitions"]}
    assert parts == {"real"}
    assert note(image)[0] == "info"
    assert (LoadWeighted(part="mag")(tmp_path) >= 0).all()


def test_a_phase_of_unknown_unit_is_refused(tmp_path: Path):
    write_recovery(tmp_path, 30000.0)
    with pytest.raises(InputError, match=r"phase of image 1 of 3: the unit of a phase image"):
        LoadWeighted(part="signed")(tmp_path)


def test_complex_images_give_the_sign_themselves(tmp_path: Path):
    signed, common = recovery()
    for n, time in enumerate(TIMES):
        data = (signed[n] * np.exp(1j * common)).astype(np.complex64)
        write(tmp_path / f"sub-01_inv-{n + 1}_IRT1.nii", data, {"InversionTime": time})
    image = LoadWeighted(part="signed")(tmp_path)
    np.testing.assert_allclose(image.numpy(), signed * np.sign(signed[-1]), atol=1e-3)


def test_without_a_phase_the_magnitudes_stay_with_a_warning(tmp_path: Path):
    write_recovery(tmp_path, None)
    (tmp_path / "sub-01_inv-2_part-phase_IRT1.nii").unlink()
    image = LoadWeighted(part="signed")(tmp_path)
    assert (image >= 0).all()
    assert note(image)[0] == "warning"
    parts = {a["complex_part"] for a in image.meta["medpipe"]["source"]["acquisitions"]}
    assert parts == {"magnitude"}


@pytest.fixture(scope="module")
def phantom() -> QmriPhantom:
    return qmri_phantom(3, shape=(40, 44, 3), spacing_mm=(6.0, 5.0, 8.0))


@pytest.fixture
def mp2rage(phantom: QmriPhantom, tmp_path: Path) -> Path:
    (case,) = write_qmri_folder(tmp_path / "data", phantom, ["mp2rage"])
    return case.images


def true_signals(phantom: QmriPhantom) -> np.ndarray:
    sequences = PROTOCOLS["mp2rage"].sequences
    return np.stack([s.signal(phantom, **s.settings) for s in sequences])


def test_mp2rage_is_signed_by_phase_and_by_the_uniform_image(phantom: QmriPhantom, mp2rage: Path):
    truth, head = true_signals(phantom), phantom.tissue > 0
    assert (truth[0][head] < 0).mean() > 0.2
    assert (truth[1][head] > 0).all()
    by_phase = LoadWeighted(part="signed", suffix="MP2RAGE")(mp2rage).numpy()
    # 5 standard deviations of the noise
    assert np.abs(by_phase - truth)[:, head].max() < 5 * PROTOCOLS["mp2rage"].noise
    for path in mp2rage.glob("*part-phase*"):
        path.unlink()
    image = LoadWeighted(part="signed")(mp2rage)
    clear = head & (np.abs(truth[0]) > 4 * PROTOCOLS["mp2rage"].noise)
    np.testing.assert_array_equal(np.sign(image.numpy()[0][clear]), np.sign(truth[0][clear]))
    assert "uniform image" in note(image)[1]
    assert (image[1] >= 0).all()


def test_a_uniform_image_of_twelve_bits_or_of_another_scale(phantom: QmriPhantom, mp2rage: Path):
    for path in mp2rage.glob("*part-phase*"):
        path.unlink()
    first, second = measure(phantom, "mp2rage")
    power = np.abs(first) ** 2 + np.abs(second) ** 2
    uniform = (first.conj() * second).real / power
    before = LoadWeighted(part="signed")(mp2rage)
    affine = before.affine.numpy()
    for scaled in (np.round((uniform + 0.5) * 4095), uniform * 50):
        image = nib.Nifti1Image(scaled.astype(np.float32), affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, mp2rage / "sub-01_UNIT1.nii.gz")
        if scaled.min() >= 0:
            assert (LoadWeighted(part="signed")(mp2rage) == before).float().mean() > 0.999
        else:
            with pytest.raises(InputError, match="scale of the uniform image"):
                LoadWeighted(part="signed")(mp2rage)
    (mp2rage / "sub-01_UNIT1.nii.gz").unlink()
    assert note(LoadWeighted(part="signed")(mp2rage))[0] == "warning"
