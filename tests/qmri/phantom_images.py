"""Images of the relaxation phantom, read apart from medpipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
import torch

__all__ = ["means", "phantom"]


def phantom(folder: Path, kind: str) -> tuple[list[float], list[float], np.ndarray]:
    """Return inversion or echo times, repetition times (s) and images (D, rows, columns)."""
    slices = []
    for file in sorted(folder.iterdir()):
        ds = pydicom.dcmread(file)
        image = ds.pixel_array.astype(float)
        if ds.Manufacturer.startswith("Philips"):  # each image has a scale of its own
            image = (image - float(ds["2005100d"].value)) / float(ds["2005100e"].value)
        time = float(ds.InversionTime if kind == "T1" else ds.EchoTime) / 1e3
        slices.append((time, float(ds.RepetitionTime) / 1e3, image))
    slices.sort(key=lambda s: s[0])
    times, repetitions, images = zip(*slices, strict=True)
    return list(times), list(repetitions), np.stack(images)


def means(
    images: np.ndarray, centres: Sequence[Sequence[int]], shift: tuple[int, int] = (0, 0)
) -> torch.Tensor:
    """Return (spheres, D) means of 5 × 5 pixels."""
    out = []
    for row, column in centres:
        i, j = row + shift[0], column + shift[1]
        out.append(images[:, i - 2 : i + 3, j - 2 : j + 3].mean((1, 2)))
    return torch.tensor(np.stack(out))
