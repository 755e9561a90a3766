"""Voxels inside a closed triangulated surface."""

from __future__ import annotations

import torch

from medpipe.errors import StepError

__all__ = ["is_closed", "voxelise"]

# Rays run along the last axis, this far (in voxels) beside the voxel centres, so that
# none passes through a vertex or an edge of a mesh that is aligned with the grid.
RAY_SHIFT = (1.41421356e-6, 1.73205081e-6)


def is_closed(faces: torch.Tensor) -> bool:
    """Return whether every edge of the triangles (F, 3) belongs to exactly two of them."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, counts = torch.unique(pairs.sort(dim=-1).values, dim=0, return_counts=True)
    return bool((counts == 2).all())


def voxelise(
    vertices: torch.Tensor, faces: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Return the voxels whose centre lies inside a closed surface, bool (I, J, K).

    Every ray along the last axis counts the triangles it crosses, by the sign of
    their orientation; inside is where the winding number is not zero.

    Parameters
    ----------
    vertices : Tensor, shape (V, 3)
        Voxel indices, float64.
    faces : Tensor, int64 (F, 3)
        Triangles of one consistent orientation.
    shape : tuple of int
    """
    if not bool(torch.isfinite(vertices).all()):
        raise StepError("a closed surface has a position that is NaN or infinite")
    rays = vertices[:, :2] - vertices.new_tensor(RAY_SHIFT)
    triangle, i, j = _pixels(rays[faces], shape)
    sides = []
    for n in range(3):
        sides.append(_edge(rays, faces[triangle, n], faces[triangle, (n + 1) % 3], i, j))
    positive = torch.stack([s >= 0 for s in sides])
    # an edge is computed once for both of its triangles, with opposite signs: no ray
    # is counted twice and none slips through
    inside = positive.all(0) | ~positive.any(0)
    triangle, i, j = triangle[inside], i[inside], j[inside]
    area = torch.stack(sides, -1)[inside]
    total = area.sum(-1)
    # the edge from corner n to n + 1 lies opposite to corner n + 2
    heights = vertices[faces[triangle], 2].roll(1, -1)
    height = (area * heights).sum(-1) / torch.where(total == 0, 1, total)
    winding = torch.zeros((shape[0], shape[1], shape[2] + 1), dtype=torch.int32, device=rays.device)
    first = height.ceil().long().clamp_(0, shape[2])
    winding.index_put_((i, j, first), torch.sign(total).to(torch.int32), accumulate=True)
    return winding.cumsum(-1)[..., :-1] != 0


def _pixels(
    corners: torch.Tensor, shape: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return triangle and pixel of all pixels in the bounding boxes of triangles (F, 3, 2)."""
    top = torch.tensor(shape[:2], device=corners.device) - 1
    low = corners.amin(1).ceil().clamp_min(0).long()
    high = torch.minimum(corners.amax(1).floor().long(), top)
    size = (high - low + 1).clamp_min(0)
    count = size.prod(-1)
    triangle = torch.repeat_interleave(torch.arange(len(corners), device=corners.device), count)
    rank = torch.arange(len(triangle), device=corners.device)
    rank = rank - (count.cumsum(0) - count)[triangle]
    width = size[triangle, 1]
    return triangle, low[triangle, 0] + rank // width, low[triangle, 1] + rank % width


def _edge(
    rays: torch.Tensor, a: torch.Tensor, b: torch.Tensor, i: torch.Tensor, j: torch.Tensor
) -> torch.Tensor:
    """Return twice the signed area of (a, b, pixel), exactly opposite for (b, a, pixel)."""
    first, second = rays[torch.minimum(a, b)], rays[torch.maximum(a, b)]
    area = (second[:, 0] - first[:, 0]) * (j - first[:, 1]) - (second[:, 1] - first[:, 1]) * (
        i - first[:, 0]
    )
    # a ray on the edge itself goes to one of the two triangles
    area = torch.where(area == 0, torch.finfo(area.dtype).tiny, area)
    return torch.where(a < b, area, -area)
