"""Saved values: the smallest lossless dtype, and the same bits after a resume."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.engine.store import Store
from medpipe.engine.values import load_values, save_values
from medpipe.workflow.compiled import CompiledStep, SaveSpec

KEY = "ab" * 32


def _image(values: np.ndarray) -> MetaTensor:
    meta = {"medpipe": {"source": {"kind": "test", "kvp": 120}, "findings": []}}
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.from_numpy(values), affine=affine, meta=meta)


def _step(dtype: str | None = None) -> CompiledStep:
    save = (SaveSpec("ct", "ct.nii.gz", dtype),)
    return CompiledStep("load", "load", "m:C", "1", ("ct",), ("ct",), save=save)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-1024.0, 0.0, 3071.0], "int16"),
        ([-32768.0, 32767.0, 1.0], "int16"),
        ([0.0, 32768.0, 1.0], "float32"),
        ([0.5, 1.0, 2.0], "float32"),
    ],
)
def test_whole_numbers_are_saved_as_int16_and_nothing_is_lost(
    values: list[float], dtype: str, tmp_path: Path
) -> None:
    data = np.array(values, np.float32).reshape(1, 3, 1, 1)
    store = Store(tmp_path)
    again = save_values(store, KEY, _step(), {"ct": _image(data)}, reads={})["ct"]
    image = nib.load(store.file(KEY, "ct.nii.gz"))
    assert image.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(image.dataobj).ravel(), data.ravel())
    np.testing.assert_array_equal(again.numpy(), data)
    assert again.dtype == torch.float32


def test_what_travels_on_is_what_a_resume_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = _image(rng.normal(size=(1, 5, 6, 7)).astype(np.float32))
    store = Store(tmp_path)
    first = save_values(store, KEY, _step(), {"ct": image}, reads={})["ct"]
    second = load_values(store, KEY, ["ct"])["ct"]
    assert torch.equal(first.as_tensor(), second.as_tensor())
    assert torch.equal(first.affine, second.affine)
    assert first.meta["medpipe"] == second.meta["medpipe"] == image.meta["medpipe"]
