"""A folder of simulated NIfTI files, some of them bad on purpose.

Written through nibabel and bytes, not through `medpipe.io`, whose writer
would refuse the bad ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medpipe.phantoms.brain_mr import brain_mr
from medpipe.phantoms.head_ct import head_ct
from medpipe.types import Affine, Volume

__all__ = ["NiftiTruth", "write_nifti_folder"]


@dataclass(frozen=True, slots=True)
class NiftiTruth:
    """One file of the folder.

    Attributes
    ----------
    file : str
        Name relative to the folder.
    outcome : {"ok", "warning", "error"}
        What a check with default options should say.
    reason : str
        Why: the name of a check of `medpipe.io`, or ``"truncated"``,
        ``"not_nifti"``, ``"empty"``.
    volume : Volume or None
        What a readable file holds.
    """

    file: str
    outcome: str
    reason: str = ""
    volume: Volume | None = None


def write_nifti_folder(
    root: Path, *, subjects: int = 3, seed: int = 0, matrix: int = 48, bad: bool = True
) -> list[NiftiTruth]:
    """Write T1-weighted brain MRs and one head CT, and bad copies of the first MR.

    Parameters
    ----------
    root : Path
        Made if it is missing.
    subjects : int
        Number of brain MRs.
    seed : int
        The same seed gives the same bytes.
    matrix : int
        Voxels along each axis of 240 mm (256 for real size).
    bad : bool
        Whether to write the bad ones.

    Returns
    -------
    list of NiftiTruth
    """
    root.mkdir(parents=True, exist_ok=True)
    shape, spacing = (matrix,) * 3, (240 / matrix,) * 3
    truth, volumes = [], []
    for subject in range(subjects):
        phantom = brain_mr(seed * 1000 + subject + 1, shape=shape, spacing_mm=spacing)
        data = np.rint(phantom.volume.data * 4).astype(np.int16)
        volumes.append((f"sub-{subject + 1:02d}_T1w.nii.gz", data, phantom.volume.affine))
    ct = head_ct(seed * 1000 + 1, shape=shape, spacing_mm=spacing).volume
    volumes.append(("sub-01_ct.nii.gz", np.rint(ct.data).astype(np.int16), ct.affine))
    for name, data, affine in volumes:
        nib.save(_image(data, affine), root / name)
        truth.append(NiftiTruth(name, "ok", "", Volume(data, affine)))
    if bad:
        _, data, affine = volumes[0]
        truth += [make(root, data, affine) for make in _BAD]
    return truth


def _image(data: NDArray[Any], affine: Affine) -> Any:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image


def _patched(
    root: Path, name: str, data: NDArray[Any], affine: Affine, offset: int, content: bytes
) -> None:
    """Write an uncompressed file and overwrite bytes of its header."""
    raw = bytearray(_image(data, affine).to_bytes())
    raw[offset : offset + len(content)] = content
    (root / name).write_bytes(raw)


def _truncated(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    name = "bad-truncated.nii.gz"
    nib.save(_image(data, affine), root / name)
    whole = (root / name).read_bytes()
    (root / name).write_bytes(whole[: len(whole) * 2 // 3])
    return NiftiTruth(name, "error", "truncated")


def _cut(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    raw = _image(data, affine).to_bytes()
    (root / "bad-short.nii").write_bytes(raw[: len(raw) // 2])
    return NiftiTruth("bad-short.nii", "error", "truncated")


def _empty(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    (root / "bad-empty.nii").touch()
    return NiftiTruth("bad-empty.nii", "error", "empty")


def _text(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    (root / "bad-text.nii").write_text("see the other disc\n" * 40)
    return NiftiTruth("bad-text.nii", "error", "not_nifti")


def _nan_affine(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    rows = affine[:3].astype("<f4")
    rows[0, 0] = np.nan
    # Both forms: srow_x at 280, and qoffset_x at 268.
    name = "bad-nan-affine.nii"
    tail = np.full(3, np.nan, "<f4").tobytes() + rows.tobytes()
    _patched(root, name, data, affine, 268, tail)
    return NiftiTruth(name, "error", "nifti.affine_finite")


def _no_codes(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    name = "bad-no-orientation.nii"
    _patched(root, name, data, affine, 252, b"\0\0\0\0")
    return NiftiTruth(name, "error", "nifti.orientation_unknown")


def _disagree(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    name = "bad-sform-qform.nii"
    image = _image(data, affine)
    moved = affine.copy()
    moved[:3, 3] += 20
    image.set_qform(moved, 1)
    nib.save(image, root / name)
    return NiftiTruth(name, "error", "nifti.sform_qform_disagree")


def _nan_voxels(root: Path, data: NDArray[Any], affine: Affine) -> NiftiTruth:
    name = "bad-nan-voxels.nii.gz"
    values = data.astype(np.float32)
    values[3:6, 4, 5] = np.nan
    nib.save(_image(values, affine), root / name)
    return NiftiTruth(name, "error", "nifti.voxels_finite")


_BAD: tuple[Callable[[Path, NDArray[Any], Affine], NiftiTruth], ...] = (
    _truncated,
    _cut,
    _empty,
    _text,
    _nan_affine,
    _no_codes,
    _disagree,
    _nan_voxels,
)
