"""A folder with a manifest as a training set: conditions, grids, what cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from medpipe.errors import InputError, UsageError
from medpipe.io.nifti import write_nifti
from medpipe.synthesis.training_files import read_training_set
from medpipe.types import Volume

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def write_folder(folder, count=4, labels=True, **columns):
    """Balls of growing size in noise; the manifest says their radius."""
    made = np.random.default_rng(0)
    index = np.indices((12, 10, 8)) - np.array([6, 5, 4])[:, None, None, None]
    rows = ["case_id,patient_id,image,labels,radius_mm,sex" + "".join(f",{n}" for n in columns)]
    for n in range(count):
        inside = np.linalg.norm(index, axis=0) < 2 + 0.4 * n
        image = 1000.0 * (n + 1) * (inside + 0.1 * made.random(inside.shape))
        write_nifti(folder / f"i{n}.nii.gz", Volume(image.astype(np.float32), AFFINE))
        write_nifti(folder / f"l{n}.nii.gz", Volume(inside.astype(np.uint8), AFFINE))
        extra = "".join(f",{values[n]}" for values in columns.values())
        seg = f"l{n}.nii.gz" if labels else ""
        rows.append(f"c{n},p{n // 2},i{n}.nii.gz,{seg},{2 + 0.4 * n:.1f},{'FM'[n % 2]}{extra}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_conditions_subjects_and_volumes(tmp_path):
    site = ["a", "b", "", "c"]
    made = read_training_set(write_folder(tmp_path, site=site))
    assert made.kinds == {"radius_mm": "continuous", "sex": "binary", "site": "category"}
    assert made.table["radius_mm"] == [2.0, 2.4, 2.8, 3.2]
    assert made.table["site"] == ["a", "b", None, "c"]
    assert made.subjects == [0, 0, 1, 1]
    assert made.label_classes == 2
    assert len(made.volumes) == 4
    for image, labels in made.volumes:
        assert (image.dtype, image.shape) == (np.float32, (1, 12, 10, 8))
        assert (image.min(), image.max()) == (0, 1)  # scales that differ fourfold are alike
        assert image[labels > 0].mean() > 0.8
    assert np.allclose(made.volumes.affine, AFFINE)
    few = read_training_set(tmp_path, ["sex"])
    assert list(few.table) == ["sex"]


def test_percentiles_are_those_of_numpy(tmp_path):
    folder = write_folder(tmp_path, labels=False)
    made = read_training_set(folder, [], percentiles=(10, 60))
    assert made.label_classes == 0
    from medpipe.io.nifti import read_nifti

    raw = read_nifti(folder / "i0.nii.gz").data
    low, high = np.percentile(raw, (10, 60))
    want = np.clip((raw - low) / (high - low), 0, 1)
    assert np.allclose(made.volumes[0][0], want, atol=1e-6)


def test_what_cannot_be_used_is_named_without_its_file(tmp_path):
    with pytest.raises(InputError, match=r"no manifest; expected cases.csv"):
        read_training_set(tmp_path)
    folder = write_folder(tmp_path)
    with pytest.raises(UsageError, match=r"no column of the manifest; .*got height"):
        read_training_set(folder, ["height"])
    small = Volume(np.ones((3, 3, 3), np.float32), AFFINE)
    write_nifti(folder / "i2.nii.gz", small)
    with pytest.raises(InputError, match="volume 3 of 4: the image is not like the first") as told:
        read_training_set(folder)
    assert "i2" not in str(told.value)
    write_folder(folder)
    seg = Volume(np.full((12, 10, 8), 1, np.uint8), np.diag([1.0, 1.0, 2.0, 1.0]))
    write_nifti(folder / "l1.nii.gz", seg)
    with pytest.raises(InputError, match="volume 2 of 4: the labels are not on the grid"):
        read_training_set(folder)
    write_folder(folder)
    write_nifti(folder / "i1.nii.gz", Volume(np.full((12, 10, 8), 7, np.float32), AFFINE))
    with pytest.raises(InputError, match="one value everywhere"):
        read_training_set(folder)
    write_folder(folder, count=3)
    (folder / "cases.csv").write_text((folder / "cases.csv").read_text().replace("l1.nii.gz", ""))
    with pytest.raises(InputError, match=r"some of the volumes have no labels.*got 1 of 3 without"):
        read_training_set(folder)
