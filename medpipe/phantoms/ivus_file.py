"""A simulated intravascular ultrasound pullback as NIfTI, and its true label map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medpipe.io.nifti import write_nifti
from medpipe.phantoms.ivus import IVUSPhantom, ivus
from medpipe.types import Volume

__all__ = ["ivus_labels", "write_ivus"]


def ivus_labels(phantom: IVUSPhantom) -> NDArray[np.uint8]:
    """Return the truth on the grid of the frames (I, J, frames): 1 lumen, 2 wall, 0 elsewhere."""
    shape = phantom.volume.data.shape
    affine = phantom.volume.affine
    out = np.zeros(shape, np.uint8)
    for n, (lumen, media) in enumerate(zip(phantom.lumen_mm, phantom.media_mm, strict=True)):
        x, y = (
            np.arange(shape[a]) * affine[a, a] + affine[a, 3] - phantom.center_mm[n, a]
            for a in (0, 1)
        )
        radius = np.hypot(x[:, None], y)
        turn = np.arctan2(y, x[:, None]) % (2 * np.pi) * (len(lumen) / (2 * np.pi))
        inside = [
            radius <= np.interp(turn, np.arange(len(c) + 1), np.append(c, c[0]))
            for c in (lumen, media)
        ]
        out[..., n] = np.where(inside[0], 1, np.where(inside[1], 2, 0))
    return out


def write_ivus(
    target: Path, *, seed: int = 0, frames: int = 8, size: int = 400, field_mm: float = 10.0
) -> tuple[Path, Path]:
    """Write a pullback as uint8 NIfTI, and beside it the truth.

    Parameters
    ----------
    target : Path
        The .nii or .nii.gz file to write.
    seed : int
        The same seed gives the same bytes.
    frames, size : int
        Frames, 0.5 mm apart, and pixels along each side.
    field_mm : float
        Field of view.

    Returns
    -------
    (Path, Path)
        The frames, and the label map named after them with ``-truth``.
    """
    phantom = ivus(seed, frames=frames, size=size, spacing_mm=field_mm / size)
    stem, dot, ending = target.name.partition(".nii")
    truth = target.with_name(f"{stem}-truth{dot}{ending}")
    target.parent.mkdir(parents=True, exist_ok=True)
    grey = replace(phantom.volume, data=phantom.volume.data.round())
    write_nifti(target, grey, dtype="uint8")
    write_nifti(truth, Volume(ivus_labels(phantom), phantom.volume.affine), dtype="uint8")
    return target, truth
