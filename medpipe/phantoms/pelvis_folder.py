"""A folder of simulated pelvic CTs with rough outlines of two organs, and the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medpipe.io.nifti import write_nifti
from medpipe.phantoms.pelvis_ct import PelvisLabel, pelvis_ct, rough_presegmentation
from medpipe.types import Volume

__all__ = ["ORGANS", "write_pelvis_folder"]

ORGANS: tuple[tuple[int, PelvisLabel], ...] = (
    (1, PelvisLabel.PROSTATE),
    (2, PelvisLabel.BLADDER),
)
"""Label of each organ in the outlines and in the truth."""

FIELD_OF_VIEW_MM = (256.0, 256.0, 108.0)


def write_pelvis_folder(
    root: Path, *, patients: int = 2, seed: int = 0, spacing_mm: float = 2.0
) -> list[tuple[str, Path, Path]]:
    """Write CT, rough outlines and true organs of each patient as NIfTI.

    Parameters
    ----------
    root : Path
        Made if it is missing.
    patients : int
        How many.
    seed : int
        The same seed gives the same bytes.
    spacing_mm : float
        Voxel size.

    Returns
    -------
    list of (name, image, rough)
        Name of each patient, its CT and its outlines; ``truth.nii.gz`` lies beside them.
    """
    spacing = (spacing_mm,) * 3
    shape = tuple(round(extent / spacing_mm) for extent in FIELD_OF_VIEW_MM)
    written = []
    for patient in range(patients):
        phantom = pelvis_ct(seed + patient, shape=shape, spacing_mm=spacing)  # type: ignore[arg-type]
        truth = np.zeros(shape, np.uint8)
        rough = np.zeros(shape, np.uint8)
        for label, organ in ORGANS:
            mask = phantom.mask(organ)
            truth[mask] = label
            outline = rough_presegmentation(mask, spacing, seed + 10 * patient + label)
            rough[outline & (rough == 0)] = label
        name = f"p{patient + 1:02d}"
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        ct = replace(phantom.volume, data=phantom.volume.data.round())
        write_nifti(folder / "image.nii.gz", ct, dtype="int16")
        for file, data in (("rough.nii.gz", rough), ("truth.nii.gz", truth)):
            write_nifti(folder / file, Volume(data, phantom.volume.affine), dtype="uint8")
        written.append((name, folder / "image.nii.gz", folder / "rough.nii.gz"))
    return written
