"""Preparing head CT: accuracy of the frame on simulated heads, HU of a real one, seconds.

    python benchmarks/outcome_prepare.py [FOLDER REFERENCE.nii.gz]

The heads are turned by known angles; a third of them bleed. FOLDER holds a DICOM series
of a head, REFERENCE the same head as a volume that was made by other software; by default
the tilted series among the real images. Both are brought to the same points, and the
medians of the differences are those of HU inside the head.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import real_folder, spread, versions, write_results
from monai.data.meta_tensor import MetaTensor

from medpipe.geometry import affine_from_parts
from medpipe.io.transforms import LoadVolume
from medpipe.outcome.frame import find_pose
from medpipe.outcome.prepare import GRIDS, Prepared, prepare_volume, small_copy
from medpipe.phantoms.anatomy import Lesion, Subject
from medpipe.phantoms.head_ct import HeadCT, ct_noise
from medpipe.steps.head_ct import HeadMask
from medpipe.steps.spatial import Resample

HEADS = 12
SHAPE = (96, 104, 46)
SPACING = np.array([2.5, 2.5, 5.0])


def frame_errors(seed: int, rng: np.random.Generator) -> dict[str, float]:
    """Return how far the frame of one simulated head is off."""
    tilt = tuple(float(v) for v in rng.uniform((-20, -12, -25), (20, 12, 25)))
    subject = replace(Subject.from_seed(seed), tilt_deg=tilt)
    lesion = Lesion("ich", 50.0) if seed % 3 == 0 else None
    affine = affine_from_parts(
        np.eye(3), SPACING, (0, 0, -10) - (np.array(SHAPE) - 1) / 2 * SPACING
    )
    hu = HeadCT(seed, subject=subject, lesion=lesion).sample(affine, SHAPE)[1]
    for k in range(SHAPE[2]):
        hu[:, :, k] += ct_noise(hu[:, :, k], 4.0, (seed, k))
    small = small_copy(MetaTensor(torch.from_numpy(hu)[None], affine=torch.from_numpy(affine)))
    pose = find_pose(small, HeadMask()(small).as_tensor()[0] > 0, "symmetry", (affine, SHAPE))
    axes = np.linalg.inv(subject.to_template())
    normal = axes[:, 0] / np.linalg.norm(axes[:, 0])
    shift = np.array(subject.shift_mm)
    return {
        "plane_deg": float(np.degrees(np.arccos(min(1.0, pose.matrix[:3, 0] @ normal)))),
        "plane_mm": abs(float(pose.matrix[:3, 0] @ (shift - pose.matrix[:3, 3]))),
        "pitch_deg": pose.rotation_deg["pitch"] - tilt[0],
        "aligned": float(pose.aligned and pose.level),
    }


def hu_errors(made: Prepared, reference: MetaTensor) -> dict[str, float]:
    """Return differences to a reference that is brought to the same points."""
    place = torch.from_numpy(made.matrix @ made.affine)
    target = MetaTensor(made.hu, affine=place)
    truth = Resample(fill=-1000.0)(reference, target)[0]
    inside = (truth > -200) & (made.hu[0] > -1000)
    brain = inside & (truth > 0) & (truth < 80)
    difference = (made.hu[0] - truth).as_tensor()
    return {
        "median_abs_difference_hu": round(float(difference[inside].abs().median()), 2),
        "median_abs_difference_soft_tissue_hu": round(float(difference[brain].abs().median()), 2),
        "median_difference_soft_tissue_hu": round(float(difference[brain].median()), 2),
        "voxels_compared": int(inside.sum()),
    }


def main(folder: Path, reference_file: Path) -> None:
    """Measure, print, write the results."""
    rng = np.random.default_rng(0)
    errors = [frame_errors(100 + n, rng) for n in range(HEADS)]
    pitch = np.array([e["pitch_deg"] for e in errors])
    results: dict[str, object] = {
        "simulated_heads": {
            "n": HEADS,
            "aligned_and_level": int(sum(e["aligned"] for e in errors)),
            "midsagittal_plane_error_deg": spread([e["plane_deg"] for e in errors], 2),
            "midsagittal_plane_error_mm": spread([e["plane_mm"] for e in errors], 2),
            "pitch_difference_deg": {
                "mean": round(float(pitch.mean()), 2),
                "sd": round(float(pitch.std(ddof=1)), 2),
                "largest": round(float(np.abs(pitch).max()), 2),
            },
        }
    }
    load = LoadVolume(variable_step="resample", gantry_tilt="keep", resample_grid="slices")
    scan, reference = load(folder), LoadVolume()(reference_file)
    affine = np.array(scan.affine.tolist())
    source = scan.meta["medpipe"]["source"]
    for name, settings in GRIDS.items():
        start = time.perf_counter()
        made = prepare_volume(scan.as_tensor(), affine, settings, source)
        seconds = time.perf_counter() - start
        results[f"real_head_{name}"] = {
            **hu_errors(made, reference),
            "rotation_deg": made.facts["head_frame"]["rotation_deg"],
            "symmetry": made.facts["head_frame"]["symmetry"],
            "findings": [f.message for f in made.findings],
            "seconds": round(seconds, 1),
            "voxels_in": int(scan.numel()),
            "threads": torch.get_num_threads(),
        }
    for name, value in results.items():
        print(name, value)
    record = {"versions": versions("torch", "monai", "numpy"), "results": results}
    print(write_results("outcome_prepare", record))


if __name__ == "__main__":
    given = [Path(a) for a in sys.argv[1:]]
    home = real_folder() / "head_ct_ge_tilt_dicom"
    main(*(given or (home, home / "derived_GE_head_tilt_corrected_1mm_HU.nii.gz")))
