"""Sets of weighted images from NIfTI files and their sidecars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.io.weighted import LoadWeighted, LoadWeightedd

SHAPE = (5, 4, 3)


def write(path: Path, value: float | np.ndarray, sidecar: dict[str, Any] | None = None, **more):
    """Write an image of one value (or an array) and its sidecar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = value if isinstance(value, np.ndarray) else np.full(SHAPE, value, np.float32)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 3] = more.get("shift", 0.0)
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    nib.save(image, path)
    if sidecar is not None:
        stem = path.name.removesuffix(".gz").removesuffix(".nii")
        (path.parent / f"{stem}.json").write_text(json.dumps(sidecar))


def vfa(folder: Path, angles=(3, 20), **more: Any) -> Path:
    for number, angle in enumerate(angles, start=1):
        sidecar = {"FlipAngle": angle, "RepetitionTimeExcitation": 0.015} | more
        write(folder / f"sub-01_flip-{number}_VFA.nii.gz", 10.0 * number, sidecar)
    return folder


def settings(image) -> list[dict[str, Any]]:
    return image.meta["medpipe"]["source"]["acquisitions"]


def checks(image) -> set[str]:
    return {finding["check"] for finding in image.meta["medpipe"]["findings"]}


def test_a_folder_of_bids_names_becomes_one_tensor_in_the_order_of_its_entities(tmp_path: Path):
    # ten images, so that flip-10 comes after flip-9 and not after flip-1
    folder = vfa(tmp_path, angles=range(1, 11))
    image = LoadWeighted()(folder)
    assert image.shape == (10, *SHAPE)
    assert image.dtype.is_floating_point
    assert image[:, 0, 0, 0].tolist() == [10.0 * n for n in range(1, 11)]
    assert settings(image)[9] == {
        "flip_angle_deg": 10.0,
        "repetition_time_s": 0.015,
        "suffix": "VFA",
    }
    np.testing.assert_allclose(image.affine, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert image.meta["medpipe"]["source"]["images"] == 10
    json.dumps(image.meta["medpipe"])


def test_the_dictionary_form_replaces_the_path(tmp_path: Path):
    data = {"images": str(vfa(tmp_path)), "other": 1}
    out = LoadWeightedd(keys="images")(data)
    assert out["images"].shape == (2, *SHAPE)
    assert out["other"] == 1
    assert isinstance(data["images"], str)


def test_a_file_of_four_axes_takes_the_lists_of_its_sidecar(tmp_path: Path):
    data = np.arange(np.prod(SHAPE) * 3, dtype=np.float32).reshape(*SHAPE, 3)
    sidecar = {"EchoTime": ["0.01", "0.02", 0.03], "RepetitionTime": "2.5", "FlipAngle": [90]}
    write(tmp_path / "train.nii.gz", data, sidecar)
    image = LoadWeighted()(tmp_path / "train.nii.gz")
    np.testing.assert_array_equal(image.numpy(), data.transpose(3, 0, 1, 2))
    assert [s["echo_time_s"] for s in settings(image)] == [0.01, 0.02, 0.03]
    assert {s["repetition_time_s"] for s in settings(image)} == {2.5}
    assert {s["flip_angle_deg"] for s in settings(image)} == {90.0}


def test_a_list_of_the_wrong_length_is_refused_with_its_field(tmp_path: Path):
    data = np.zeros((*SHAPE, 3), np.float32) + 1
    write(tmp_path / "train.nii", data, {"EchoTime": [0.01, 0.02]})
    with pytest.raises(InputError, match=r"EchoTime .* expected one number, or 3, got 2"):
        LoadWeighted()(tmp_path / "train.nii")


def test_lists_with_one_number_per_image_of_the_set_are_shared_out(tmp_path: Path):
    vfa(tmp_path, FlipAngle=["3", "20"], RepetitionTimeExcitation="0.015")
    assert [s["flip_angle_deg"] for s in settings(LoadWeighted()(tmp_path))] == [3.0, 20.0]
    vfa(tmp_path, FlipAngle=[1, 2, 3])
    with pytest.raises(InputError, match=r"image 1 of 2.*FlipAngle.*got 3"):
        LoadWeighted()(tmp_path)


@pytest.mark.parametrize("bad", ["twelve", None, True, {}, [], [1, "x"]])
def test_a_field_that_is_no_number_is_named(tmp_path: Path, bad: Any):
    vfa(tmp_path, FlipAngle=bad)
    with pytest.raises(InputError, match=r"image 1 of 2: .*FlipAngle of the sidecar is no number"):
        LoadWeighted()(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"FlipAngle": NaN}', "\x00", "[" * 100_000])
def test_a_damaged_sidecar_is_refused_without_its_text(tmp_path: Path, text: str):
    vfa(tmp_path)
    (tmp_path / "sub-01_flip-2_VFA.json").write_text(text)
    with pytest.raises(InputError, match=r"image|JSON") as caught:
        LoadWeighted()(tmp_path)
    assert "sub-01" not in str(caught.value)


def test_a_missing_field_and_a_missing_sidecar_name_the_image(tmp_path: Path):
    vfa(tmp_path)
    (tmp_path / "sub-01_flip-2_VFA.json").write_text('{"FlipAngle": 20}')
    with pytest.raises(InputError, match=r"image 2 of 2 \(VFA\): RepetitionTimeExcitation is mis"):
        LoadWeighted()(tmp_path)
    (tmp_path / "sub-01_flip-2_VFA.json").unlink()
    with pytest.raises(InputError, match="image 2 of 2: the image has no JSON sidecar") as caught:
        LoadWeighted()(tmp_path)
    assert "sub-01" not in str(caught.value)
    image = LoadWeighted(settings="optional")(tmp_path)
    assert settings(image)[1] == {"suffix": "VFA"}


def test_sidecars_are_inherited_within_the_folder_and_the_nearest_counts(tmp_path: Path):
    root = tmp_path / "case"
    write(root / "anat" / "sub-01_inv-1_IRT1.nii", 1.0, {"InversionTime": 0.05})
    write(root / "anat" / "sub-01_inv-2_IRT1.nii", 2.0, {"InversionTime": 0.4})
    (root / "IRT1.json").write_text('{"RepetitionTime": 2.5, "InversionTime": 9}')
    (root / "MESE.json").write_text('{"RepetitionTime": 77}')
    (root / "anat" / "sub-01_IRT1.json").write_text('{"EchoTime": 0.012}')
    # above the case: no part of the input, so no part of what is read
    (tmp_path / "IRT1.json").write_text('{"FlipAngle": 90}')
    found = settings(LoadWeighted()(root))
    common = {"repetition_time_s": 2.5, "echo_time_s": 0.012, "suffix": "IRT1"}
    assert found == [common | {"inversion_time_s": 0.05}, common | {"inversion_time_s": 0.4}]


def test_mp2rage_reads_shots_and_both_repetition_times(tmp_path: Path):
    for number in (1, 2):
        sidecar = {
            "InversionTime": [0.0, 0.7, 2.5][number],
            "FlipAngle": "4",
            "RepetitionTime": 5.0,  # of the whole cycle: no excitation
            "RepetitionTimeExcitation": 0.0062,
            "RepetitionTimePreparation": 5,
            "NumberShots": [35, 72],
            "MagneticFieldStrength": 3,
        }
        write(tmp_path / f"sub-01_inv-{number}_part-mag_MP2RAGE.nii.gz", 1.0 * number, sidecar)
        write(tmp_path / f"sub-01_inv-{number}_part-phase_MP2RAGE.nii.gz", -1.0, sidecar)
    image = LoadWeighted()(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert settings(image)[1] == {
        "inversion_time_s": 2.5,
        "flip_angle_deg": 4.0,
        "repetition_time_s": 0.0062,
        "repetition_time_preparation_s": 5.0,
        "number_shots": 107.0,
        "number_shots_before": 35.0,
        "suffix": "MP2RAGE",
        "complex_part": "magnitude",
    }
    assert "weighted.part" in checks(image)
    with pytest.raises(InputError, match="holds no real images"):
        LoadWeighted(part="real")(tmp_path)


def test_an_excitation_time_is_not_taken_from_the_whole_cycle(tmp_path: Path):
    sidecar = {"InversionTime": 0.7, "FlipAngle": 4, "RepetitionTime": 5.0, "NumberShots": 107}
    sidecar["RepetitionTimePreparation"] = 5.0
    write(tmp_path / "sub-01_inv-1_MP2RAGE.nii.gz", 1.0, sidecar)
    with pytest.raises(InputError, match="RepetitionTimeExcitation is missing"):
        LoadWeighted()(tmp_path)


def test_complex_images_give_their_magnitude_or_real_part(tmp_path: Path):
    data = np.full(SHAPE, 3 - 4j, np.complex64)
    write(tmp_path / "a.nii", data, {"InversionTime": 0.1})
    image = LoadWeighted()(tmp_path / "a.nii")
    assert image.unique().tolist() == [5.0]
    assert settings(image)[0]["complex_part"] == "magnitude"
    assert "weighted.complex" in checks(image)
    real = LoadWeighted(part="real")(tmp_path / "a.nii")
    assert real.unique().tolist() == [3.0]
    assert settings(real)[0]["complex_part"] == "real"
    assert LoadWeighted(part="real")(tmp_path).unique().tolist() == [3.0]
    write(tmp_path / "a.nii", 5.0)
    with pytest.raises(InputError, match="image 1 of 1: the image does not say that it is a real"):
        LoadWeighted(part="real")(tmp_path / "a.nii")


def test_phase_images_of_plain_names_are_known_by_their_image_type(tmp_path: Path):
    for name, kind in (("a", "M"), ("b", "P")):
        sidecar = {"EchoTime": 0.1, "ImageType": ["ORIGINAL", "PRIMARY", kind]}
        write(tmp_path / f"{name}.nii", 7.0, sidecar)
    image = LoadWeighted()(tmp_path)
    assert len(image) == 1
    assert {"weighted.part", "weighted.order"} <= checks(image)


def test_images_on_several_grids_are_refused_by_number(tmp_path: Path):
    vfa(tmp_path, angles=(3, 10, 20))
    sidecar = {"FlipAngle": 20, "RepetitionTimeExcitation": 0.015}
    write(tmp_path / "sub-01_flip-3_VFA.nii.gz", 1.0, sidecar, shift=0.5)
    with pytest.raises(InputError, match=r"image 3 of 3: .* got another place"):
        LoadWeighted()(tmp_path)
    write(tmp_path / "sub-01_flip-2_VFA.nii.gz", np.ones((5, 4, 2), np.float32), sidecar)
    with pytest.raises(InputError, match=r"image 2 of 3: .*5 × 4 × 3 voxels.* got 5 × 4 × 2"):
        LoadWeighted()(tmp_path)


def test_several_kinds_of_images_have_to_be_told_apart(tmp_path: Path):
    vfa(tmp_path)
    for echo in (1, 2):
        sidecar = {"EchoTime": 0.01 * echo}
        write(tmp_path / f"sub-01_echo-{echo}_MESE.nii.gz", 5.0 * echo, sidecar)
    write(tmp_path / "sub-01_T1w.nii.gz", 99.0)
    with pytest.raises(InputError, match=r"several kinds .* got VFA, MESE"):
        LoadWeighted()(tmp_path)
    assert LoadWeighted(suffix="MESE")(tmp_path)[:, 0, 0, 0].tolist() == [5.0, 10.0]
    both = LoadWeighted(suffix=["MESE", "VFA"])(tmp_path)
    assert both[:, 0, 0, 0].tolist() == [5.0, 10.0, 10.0, 20.0]
    assert [s["suffix"] for s in settings(both)] == ["MESE", "MESE", "VFA", "VFA"]
    with pytest.raises(InputError, match="no image of the set; expected IRT1"):
        LoadWeighted(suffix="IRT1")(tmp_path)


def test_several_runs_have_to_be_told_apart(tmp_path: Path):
    for run in (1, 2):
        for flip in (1, 2):
            sidecar = {"FlipAngle": flip, "RepetitionTimeExcitation": 0.01}
            name = f"sub-01_run-{run}_flip-{flip}_VFA.nii"
            write(tmp_path / name, 10.0 * run + flip, sidecar)
    with pytest.raises(InputError, match=r"names that differ in run.*entities"):
        LoadWeighted()(tmp_path)
    chosen = LoadWeighted(entities={"run": "2"})(tmp_path)
    assert chosen[:, 0, 0, 0].tolist() == [21.0, 22.0]


def test_a_name_that_looks_like_an_entity_is_never_quoted(tmp_path: Path):
    for number in (1, 2):
        name = f"mustermann-{number}_flip-{number}_VFA.nii"
        write(tmp_path / name, 1.0, {"FlipAngle": number, "RepetitionTime": 0.01})
    image = LoadWeighted(suffix="VFA")(tmp_path)  # taken as plain names
    assert "weighted.order" in checks(image)
    assert "mustermann" not in json.dumps(image.meta["medpipe"])


def test_two_subjects_are_no_set(tmp_path: Path):
    for subject in ("01", "02"):
        write(tmp_path / f"sub-{subject}_echo-1_MESE.nii", 1.0, {"EchoTime": 0.1})
    with pytest.raises(InputError, match=r"differ in sub.* folder of one session"):
        LoadWeighted()(tmp_path)


def test_plain_names_are_taken_in_natural_order_and_said_so(tmp_path: Path):
    for number in (10, 9, 1):
        write(tmp_path / f"echo{number}.nii.gz", float(number), {"EchoTime": number / 1000})
    write(tmp_path / ".hidden.nii.gz", 99.0, {"EchoTime": 9})
    image = LoadWeighted()(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [1.0, 9.0, 10.0]
    assert settings(image)[1] == {"echo_time_s": 0.009}
    assert "weighted.order" in checks(image)
    (tmp_path / "echo9.json").write_text('{"Manufacturer": "none"}')
    with pytest.raises(InputError, match="image 2 of 3: no setting is given"):
        LoadWeighted()(tmp_path)


def test_a_folder_of_both_formats_or_of_neither_is_refused(tmp_path: Path):
    vfa(tmp_path / "both")
    (tmp_path / "both" / "x.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InputError, match="both NIfTI and DICOM"):
        LoadWeighted()(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no MR series"):
        LoadWeighted()(tmp_path / "empty")


def test_memory_is_limited(tmp_path: Path):
    with pytest.raises(InputError, match="max_gb"):
        LoadWeighted(max_gb=3e-7)(vfa(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [{"part": "phase"}, {"settings": "none"}, {"max_gb": 0}, {"suffix": "a/b"}, {"fixes": ["x"]}],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        LoadWeighted(**wrong)


def test_plain_names_count_as_what_was_asked_for(tmp_path: Path):
    for number in (2, 12):
        sidecar = {"FlipAngle": number, "RepetitionTime": 0.0054}
        write(tmp_path / f"FA{number}.nii.gz", float(number), sidecar)
    image = LoadWeighted(suffix="VFA")(tmp_path)
    assert image[:, 0, 0, 0].tolist() == [2.0, 12.0]
    assert {s["suffix"] for s in settings(image)} == {"VFA"}
    (tmp_path / "FA12.json").write_text('{"FlipAngle": 12}')
    with pytest.raises(InputError, match=r"image 2 of 2 \(VFA\): RepetitionTimeExcitation"):
        LoadWeighted(suffix="VFA")(tmp_path)
    # one name of BIDS, and names decide
    write(tmp_path / "sub-01_T1w.nii.gz", 1.0)
    with pytest.raises(InputError, match="no image of the set; expected VFA, got 3"):
        LoadWeighted(suffix="VFA")(tmp_path)


def test_a_file_of_any_name_is_what_was_asked_for(tmp_path: Path):
    data = np.ones((*SHAPE, 2), np.float32)
    fields = {"InversionTime": [0.1, 0.2], "RepetitionTimeExcitation": 0.01, "RepetitionTime": 2.5}
    write(tmp_path / "patient.nii", data, fields)
    image = LoadWeighted(suffix="IRT1")(tmp_path / "patient.nii")
    # of an inversion recovery the time of the whole cycle
    assert {s["repetition_time_s"] for s in settings(image)} == {2.5}
    assert {s["repetition_time_s"] for s in settings(LoadWeighted()(tmp_path / "patient.nii"))} == {
        0.01
    }


@pytest.mark.real_data
def test_a_real_head_without_sidecars_is_taken_in_natural_order(real_data: Path, tmp_path: Path):
    for angle in (2, 5, 12):
        name = f"FA{angle}.nii.gz"
        (tmp_path / name).symlink_to(real_data / "qmri" / "vfa_ir_head" / name)
    with pytest.raises(InputError, match="image 1 of 3: the image has no JSON sidecar"):
        LoadWeighted(suffix="VFA")(tmp_path)
    image = LoadWeighted(suffix="VFA", settings="optional")(tmp_path)
    assert image.shape == (3, 160, 200, 160)
    assert settings(image) == [{"suffix": "VFA"}] * 3
    raw = [nib.load(tmp_path / f"FA{n}.nii.gz").get_fdata().sum() for n in (2, 5, 12)]
    sums = image.numpy().astype(np.float64).sum((1, 2, 3))
    np.testing.assert_allclose(sums, raw, rtol=1e-6)
