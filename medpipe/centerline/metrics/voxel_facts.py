"""What a set of voxels is: its cycles, its loops, and how many voxels it could do without."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from medpipe.centerline.topology import betti_numbers
from medpipe.errors import StepError

__all__ = ["as_mask", "graph_cycles", "lee_skeleton", "loops", "removable_voxels"]

_HALF = [step for step in product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
"""One of each pair of opposite offsets of 26 neighbours."""


def as_mask(mask: torch.Tensor | NDArray) -> torch.Tensor:
    """Return a mask (I, J, K) as a bool tensor on its device; what is not 0 is inside.

    Raises
    ------
    StepError
        If it has another number of axes.
    """
    tensor = torch.as_tensor(mask)
    if tensor.ndim != 3:
        raise StepError(
            "a mask has another number of axes",
            expected="shape (I, J, K)",
            got=f"shape {tuple(tensor.shape)}",
        )
    return tensor != 0


def graph_cycles(mask: torch.Tensor | NDArray) -> int:
    """Return the number of independent cycles of the graph of 26-neighbours.

    Edges − voxels + components. Three voxels that touch each other are a cycle, so this is
    no count of loops; see `loops`.
    """
    inside = _cropped(as_mask(mask))
    edges = sum(_pairs(inside, step) for step in _HALF)
    return edges - int(inside.sum()) + betti_numbers(inside)[0]


def _pairs(inside: torch.Tensor, step: tuple[int, ...]) -> int:
    """Return how many voxels of a mask have a neighbour at an offset."""
    here = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, inside.shape, strict=True))
    there = tuple(slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, inside.shape, strict=True))
    return int((inside[here] & inside[there]).sum())


def loops(mask: torch.Tensor | NDArray) -> int:
    """Return the loops of a mask as a solid (first Betti number, 26-connected)."""
    return betti_numbers(_cropped(as_mask(mask)))[1]


def removable_voxels(mask: torch.Tensor | NDArray) -> int:
    """Return how many voxels a thinning removes: 0 for a skeleton of single voxels."""
    inside = _cropped(as_mask(mask))
    return int(inside.sum()) - int(lee_skeleton(inside).sum())


def lee_skeleton(mask: torch.Tensor | NDArray) -> torch.Tensor:
    """Return the skeleton of a mask (I, J, K) by the thinning of Lee et al., on its device.

    Notes
    -----
    Of a block of 2 × 2 × 2 voxels by itself nothing is left.

    References
    ----------
    Lee, Kashyap and Chu 1994, doi:10.1006/cgip.1994.1042, as in scikit-image.
    """
    from skimage.morphology import skeletonize

    inside = as_mask(mask)
    skeleton = torch.zeros_like(inside)
    box = _box(inside)
    # most of an image is background, and thinning visits every voxel
    thin = np.ascontiguousarray(skeletonize(_host(inside[box]), method="lee"))
    skeleton[box] = torch.as_tensor(thin != 0, device=inside.device)
    return skeleton


def _cropped(mask: torch.Tensor) -> torch.Tensor:
    return mask[_box(mask)]


def _box(mask: torch.Tensor) -> tuple[slice, ...]:
    """Return where a mask is, with a border of one voxel where the array has one."""
    found = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        places = torch.nonzero(mask.any(dim=others[1]).any(dim=others[0]))[:, 0].tolist()
        low, high = (places[0], places[-1]) if places else (0, 0)
        found.append(slice(max(low - 1, 0), high + 2))
    return tuple(found)


def _host(mask: torch.Tensor) -> NDArray[np.bool_]:
    """Return a mask on the host: no library thins on a GPU; one byte per voxel crosses."""
    return mask.cpu().numpy()
