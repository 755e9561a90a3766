"""Tables of NIfTI files become sets; a case that does not fit is named."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from sy_labelled_sets import eggs

from medpipe.errors import InputError, MedpipeError
from medpipe.synthesis.evaluation_files import read_cases


def table(folder, n=3, columns="case_id,image,labels,patient_id,volume", change=None):
    images, labels = eggs(n, 0)
    rows = [columns]
    for i in range(n):
        image = images[i].numpy() * 10.0 ** (i + 1)
        label, affine = labels[i].numpy(), np.diag([-1.0, 1.0, 2.0, 1.0])
        if change:
            image, label, affine = change(i, image, label, affine)
        nib.save(nib.Nifti1Image(image, affine), folder / f"i{i}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / f"l{i}.nii.gz")
        cells = {
            "case_id": f"c{i}", "image": f"i{i}.nii.gz", "labels": f"l{i}.nii.gz",
            "patient_id": f"p{i // 2}", "volume": "" if i == 9 else f"{100 + i}",
        }  # fmt: skip
        rows.append(",".join(cells[c] for c in columns.split(",")))
    path = folder / "cases.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_scales_of_the_files_are_brought_together(tmp_path):
    found = read_cases(table(tmp_path), values=["volume"], need_labels=True)
    images, labels = eggs(3, 0)
    assert found.spacing_mm == (1.0, 1.0, 2.0)
    assert found.patients == ("p0", "p0", "p1")
    assert found.values["volume"].tolist() == [100, 101, 102]
    assert torch.equal(found.cases.labels, labels.to(torch.int16))
    assert found.cases.images.dtype == torch.float32
    for own, original in zip(found.cases.images, images, strict=True):
        low, high = np.percentile(original.numpy(), (0.5, 99.5))
        torch.testing.assert_close(own, (original - low) / (high - low), atol=1e-4, rtol=0)


def test_labels_are_a_choice(tmp_path):
    path = table(tmp_path, columns="case_id,image")
    found = read_cases(path)
    assert found.cases.labels is None
    assert found.patients == ("c0", "c1", "c2")
    with pytest.raises(MedpipeError, match="labels"):
        read_cases(path, need_labels=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i, a, b, m: (a[i // 2 :], b[i // 2 :], m), "c2: the case has another grid"),
        (lambda i, a, b, m: (a, b, m @ np.diag([1, 1, 1 + i // 2, 1])), "c2: .*another grid"),
        (lambda i, a, b, m: (a, b, m @ np.diag([1 - 2 * (i // 2), 1, 1, 1])), "c2: .*another"),
        (lambda i, a, b, m: (a * (i < 1), b, m), "c1: the image is constant"),
        (lambda i, a, b, m: (a, b + np.float32(0.5), m), "c0: the labels are no whole"),
    ],
)
def test_a_case_that_does_not_fit_is_named(tmp_path, change, says):
    with pytest.raises(InputError, match=says) as raised:
        read_cases(table(tmp_path, change=change))
    assert str(tmp_path) not in str(raised.value)


def test_a_value_that_is_absent_is_named(tmp_path):
    with pytest.raises(InputError, match="c0: age is no number"):
        read_cases(table(tmp_path), values=["age"])
