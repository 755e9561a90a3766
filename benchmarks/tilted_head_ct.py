"""A real tilted head CT with an uneven step, against its tags and a reference volume.

    python benchmarks/tilted_head_ct.py FOLDER REFERENCE.nii.gz

FOLDER holds the DICOM series. Two questions: does each slice lie where its own
header says, and does the volume resampled to 1 mm agree with one that was made
by other software at the same world coordinates? The reference is read with
nibabel, the tags with pydicom, neither through medpipe.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from common import versions, write_results
from scipy import ndimage

from medpipe.io.dicom_series import read_dicom_series


def tagged_origins_ras(folder: Path) -> np.ndarray:
    """Return ImagePositionPatient of every slice as RAS mm, sorted along z, shape (n, 3)."""
    positions = []
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in (".gz", ".md"):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            positions.append([float(v) for v in header.ImagePositionPatient])
    out = np.array(positions) * (-1, -1, 1)
    return out[np.argsort(out[:, 2])]


def main(folder: Path, reference: Path) -> None:
    """Compare, print, write the results."""
    start = time.perf_counter()
    volume = read_dicom_series(folder, variable_step="resample", resample_spacing_mm=1.0)
    seconds = time.perf_counter() - start

    ours = np.array(volume.source["slice_origins_ras_mm"])
    tags = tagged_origins_ras(folder)
    position_error = float(np.abs(ours[np.argsort(ours[:, 2])] - tags).max())

    image = nib.load(reference)
    truth = np.asarray(image.dataobj, np.float32)
    to_ours = np.linalg.inv(volume.affine) @ image.affine
    index = np.indices(truth.shape).reshape(3, -1)
    at = to_ours[:3, :3] @ index + to_ours[:3, 3:]
    sampled = ndimage.map_coordinates(
        volume.data.astype(np.float32), at, order=1, cval=-1024
    ).reshape(truth.shape)
    head = ndimage.binary_erosion((truth > -200) & (truth < 2000) & (sampled > -1000), iterations=2)
    difference = np.abs(sampled - truth)[head]
    results = {
        "slices": len(tags),
        "largest_position_error_mm": round(position_error, 6),
        "median_abs_difference_hu": round(float(np.median(difference)), 2),
        "p95_abs_difference_hu": round(float(np.percentile(difference, 95)), 1),
        "voxels_compared": int(head.sum()),
        "seconds_to_read_and_resample": round(seconds, 1),
        "repairs": volume.source["repairs"],
    }
    for name, value in results.items():
        print(f"{name:30s} {value}")
    print(
        write_results(
            "tilted_head_ct",
            {"n": 1, "versions": versions("pydicom", "nibabel", "scipy"), "results": results},
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
