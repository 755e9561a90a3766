"""Ends of branches that a learned endpoint map supports."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.decode import classify_candidates
from medpipe.centerline.prepare import Structure

__all__ = ["learned_ends", "learned_roots"]

ROOT_HEIGHT = 0.3
"""A root map below this everywhere in a component says nothing about its root."""


def learned_roots(
    structure: Structure, root_map: torch.Tensor, groups: list[NDArray[np.int64]]
) -> dict[int, int]:
    """Return the voxel of the highest value of the root map, by number of the component."""
    heights = structure.values(root_map)
    tops = {c: int(g[np.argmax(heights[g])]) for c, g in enumerate(groups)}
    return {c: v for c, v in tops.items() if heights[v] >= ROOT_HEIGHT}


def learned_ends(
    structure: Structure, tips: NDArray[np.int64], endpoint_map: torch.Tensor
) -> list[int]:
    """Return the tips, voxels (T,) at the ends that distance found, that a map supports.

    Peaks of the map elsewhere are no ends: on very rough walls most of them are bumps.
    """
    lumen = structure.lumen
    device = structure.depth_mm.device
    supported = classify_candidates(
        torch.from_numpy(lumen.voxels[tips]).to(device),
        endpoint_map[structure.box],
        torch.from_numpy(lumen.radius_mm(tips) / lumen.voxel_mm).to(device),
    )
    ends: list[int] = tips[np.array(supported.tolist(), bool)].tolist()
    return ends
