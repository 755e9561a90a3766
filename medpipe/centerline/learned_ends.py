"""Ends of branches that a learned endpoint map supports."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.decode import classify_candidates, decode_points
from medpipe.centerline.prepare import Structure

__all__ = ["learned_ends", "learned_peaks", "learned_roots"]

ROOT_HEIGHT = 0.3
"""A root map below this everywhere in a component says nothing about its root."""
APART = (2.0, 4.0)
"""A peak is an end of its own if it is two radii, and 4 voxels, from all others."""


def learned_peaks(structure: Structure, endpoint_map: torch.Tensor) -> NDArray[np.int64]:
    """Return the voxels of a structure where the endpoint map (I, J, K) peaks."""
    lumen = structure.lumen
    depth = structure.dense(structure.depth_mm) / lumen.voxel_mm
    found, _ = decode_points(endpoint_map[structure.box], depth > 0, depth)
    return lumen.find(np.array(found.tolist(), np.int64).reshape(-1, 3))


def learned_roots(
    structure: Structure, root_map: torch.Tensor, groups: list[NDArray[np.int64]]
) -> dict[int, int]:
    """Return the voxel of the highest value of the root map, by number of the component."""
    heights = structure.values(root_map)
    tops = {c: int(g[np.argmax(heights[g])]) for c, g in enumerate(groups)}
    return {c: v for c, v in tops.items() if heights[v] >= ROOT_HEIGHT}


def learned_ends(
    structure: Structure,
    tips: NDArray[np.int64],
    peaks: NDArray[np.int64],
    endpoint_map: torch.Tensor,
) -> list[int]:
    """Return the ends of one component.

    Parameters
    ----------
    structure : Structure
    tips : int64 array (T,)
        Voxels at the ends that were found by distance.
    peaks : int64 array (P,)
        Peaks of the map in the component.
    endpoint_map : Tensor (I, J, K)

    Returns
    -------
    list of int
        The tips that the map supports, then the peaks that are no tip.
    """
    lumen = structure.lumen
    device = structure.depth_mm.device
    radius = lumen.radius_mm(tips) / lumen.voxel_mm
    supported = classify_candidates(
        torch.from_numpy(lumen.voxels[tips]).to(device),
        endpoint_map[structure.box],
        torch.from_numpy(radius).to(device),
    )
    ends = tips[np.array(supported.tolist(), bool)].tolist()
    for peak in peaks.tolist():
        x = lumen.positions_mm(peak)
        room = np.linalg.norm(lumen.positions_mm(np.array(ends, np.int64)) - x, axis=1)
        own = np.array([peak], np.int64)
        least = max(APART[0] * lumen.radius_mm(own)[0], APART[1] * lumen.voxel_mm)
        if not (room < least).any():
            ends.append(peak)
    return [int(e) for e in ends]
