"""Learned maps of a mask: where its centerline runs, where branches end and start.

The mask is brought to cubic voxels of its smallest spacing, the network looks at windows
that hold foreground, and the maps return to the grid of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional

from medpipe.centerline.cubes import cubic_mask
from medpipe.centerline.distance import distance_transform
from medpipe.centerline.network import CenterlineNetwork, network_from, network_input
from medpipe.errors import StepError
from medpipe.geometry import spacing_mm
from medpipe.models import load_weights

__all__ = ["CenterlineMaps", "learned_maps", "predict_maps"]

WINDOW = 64
MARGIN = 16
"""Voxels around the foreground that are looked at with it."""


@dataclass(frozen=True, eq=False)
class CenterlineMaps:
    """What the network says about every voxel; float32 on the grid of the mask.

    Parameters
    ----------
    q : Tensor (I, J, K)
        0 on the centerline, 1 at the wall and outside.
    endpoint, root : Tensor (I, J, K)
        Confidence, 0 to 1, that a branch ends here or a tree starts here.
    """

    q: Tensor
    endpoint: Tensor
    root: Tensor


def learned_maps(
    labels: Tensor,
    affine: ArrayLike,
    *,
    model: str | Path | CenterlineNetwork = "centerline",
    overlap: float = 0.5,
) -> CenterlineMaps:
    """Return the learned maps of a mask or label map.

    The classical path is the default of medpipe and this one a choice, because paths from
    a learned distance map and learned ends are claimed by US 11,069,078 B2 and
    US 11,748,902 B2.

    Parameters
    ----------
    labels : integer or bool Tensor (I, J, K)
        Each value above 0 is a structure of its own.
    affine : array (4, 4)
        Voxel index to RAS+ mm.
    model : str, path or CenterlineNetwork
        Name of a packaged model, a file that training wrote, or a network.
    overlap : float
        Of windows, as a share of their size.

    Returns
    -------
    CenterlineMaps
        On the device of `labels`.

    Raises
    ------
    StepError
        If there are not three axes.
    InputError
        If the model cannot be used.
    """
    if labels.ndim != 3 or 0 in labels.shape:
        raise StepError(
            "the mask has the wrong axes", expected="(I, J, K)", got=str(tuple(labels.shape))
        )
    network = model if isinstance(model, CenterlineNetwork) else network_from(*load_weights(model))
    network = network.to(labels.device).eval()
    spacing = spacing_mm(np.asarray(affine, float))
    out = [torch.full(labels.shape, v, device=labels.device) for v in (1.0, 0.0, 0.0)]
    for value in torch.unique(labels[labels > 0]):
        mask = labels == value
        box = _box(mask)
        part = mask[box]
        maps = _of_structure(network, part, spacing, overlap)
        out[0][box] = torch.where(part, maps[0], out[0][box])
        for n in (1, 2):
            out[n][box] = torch.maximum(out[n][box], maps[n])
    return CenterlineMaps(*out)


def _box(mask: Tensor) -> tuple[slice, ...]:
    """Return the box around the foreground with a margin, within the array."""
    out = []
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        rows = mask.any(others[1]).any(others[0]).nonzero()
        out.append(slice(max(0, int(rows[0]) - MARGIN), int(rows[-1]) + 1 + MARGIN))
    return tuple(out)


def _of_structure(
    network: CenterlineNetwork, mask: Tensor, spacing: np.ndarray, overlap: float
) -> Tensor:
    """Return the maps (3, I, J, K) of one structure on its own grid."""
    cubes = cubic_mask(mask, spacing)
    maps = predict_maps(network, distance_transform(cubes, 1.0), overlap=overlap)
    if cubes is mask:
        return maps
    q = functional.interpolate(
        maps[None, :1], size=mask.shape, mode="trilinear", align_corners=False
    )
    # a peak between two slices must not be lost
    heat = functional.adaptive_max_pool3d(maps[None, 1:], tuple(mask.shape))
    return torch.cat([q[0], heat[0]])


def predict_maps(network: CenterlineNetwork, depth: Tensor, *, overlap: float = 0.5) -> Tensor:
    """Return q, ends and roots (3, I, J, K) for a distance map on cubic voxels.

    Parameters
    ----------
    network : CenterlineNetwork
    depth : Tensor (I, J, K)
        Distance to the background in voxels, 0 outside.
    overlap : float
        Windows without foreground are not computed; the others are blended by Gaussians.
    """
    nothing = torch.tensor([1.0, 0.0, 0.0], device=depth.device)[:, None, None, None]

    def ask(window: Tensor) -> Tensor:
        if not bool(window[:, 0].any()):
            return nothing.repeat(len(window), 1, *window.shape[2:])
        return torch.sigmoid(network(window))

    with torch.inference_mode():
        maps = sliding_window_inference(
            network_input(depth)[None], WINDOW, 1, ask, overlap=overlap, mode="gaussian"
        )[0]
    maps = maps.clone()
    maps[0].masked_fill_(depth <= 0, 1.0)
    return maps
