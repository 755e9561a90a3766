"""Smooth invertible maps between volumes: their flow, and a registration that finds them.

A stationary velocity in voxels is integrated by scaling and squaring (Arsigny 2006,
doi:10.1007/11866565_113).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["determinant", "flow", "flow_from_nodes", "register", "resized", "spread_out", "warped"]

SQUARINGS = 6


def _grid(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return voxel indices, shape (3, I, J, K)."""
    axes = [torch.arange(n, dtype=like.dtype, device=like.device) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def warped(volumes: Tensor, displacement: Tensor) -> Tensor:
    """Return volumes (B, C, I, J, K) taken from where the displacement (B, 3, I, J, K) leads.

    Linear between voxels, constant beyond the edge; displacements are in voxels.
    """
    shape = displacement.shape[2:]
    scale = torch.tensor(
        [2 / max(n - 1, 1) for n in shape], dtype=displacement.dtype, device=displacement.device
    )
    at = (_grid(shape, displacement) + displacement).movedim(1, -1) * scale - 1
    return functional.grid_sample(
        volumes.expand(len(displacement), *volumes.shape[1:]), at.flip(-1),
        mode="bilinear", padding_mode="border", align_corners=True,
    )  # fmt: skip


def flow(velocity: Tensor) -> Tensor:
    """Return the displacement of the flow of a velocity (B, 3, I, J, K) over unit time."""
    moved = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        moved = moved + warped(moved, moved)
    return moved


def flow_from_nodes(velocity: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the displacement at every voxel of a shape, integrated on the lattice of the nodes.

    Parameters
    ----------
    velocity : Tensor (B, 3, i, j, k)
        In voxels at the nodes, the outermost of which are the outermost voxels.
    shape : 3 ints

    Returns
    -------
    Tensor (B, 3, I, J, K)
        In voxels; linear between nodes, which costs a fraction of a flow of voxels.
    """
    distance = _distance(velocity.shape[2:], shape, velocity)[:, None, None, None]
    return spread_out(flow(velocity / distance) * distance, shape)


def _distance(nodes: Sequence[int], shape: Sequence[int], like: Tensor) -> Tensor:
    """Return the voxels between nodes along each axis."""
    apart = [(n - 1) / max(m - 1, 1) for n, m in zip(shape, nodes, strict=True)]
    return torch.tensor(apart, dtype=like.dtype, device=like.device)


def resized(volumes: Tensor, shape: Sequence[int]) -> Tensor:
    """Return volumes (B, C, I, J, K) with another number of voxels from corner to corner."""
    if tuple(volumes.shape[2:]) == tuple(shape):
        return volumes
    width = max(
        round((n - 1) / max(m - 1, 1)) for n, m in zip(volumes.shape[2:], shape, strict=True)
    )
    if width > 1:  # against aliasing; an odd width keeps the place
        width += 1 - width % 2
        volumes = functional.avg_pool3d(
            volumes, width, 1, padding=width // 2, count_include_pad=False
        )
    return spread_out(volumes, shape)


def determinant(displacement: Tensor) -> Tensor:
    """Return the Jacobian determinant of the map (B, 3, I, J, K) by central differences.

    Returns
    -------
    Tensor (B, I, J, K)
        One-sided at the edge.
    """
    slopes = torch.stack(torch.gradient(displacement, dim=(2, 3, 4)), 2)
    eye = torch.eye(3, dtype=slopes.dtype, device=slopes.device)[..., None, None, None]
    a, b, c = (slopes + eye).unbind(1)
    return (a * torch.linalg.cross(b, c, dim=1)).sum(1)


def spread_out(nodes: Tensor, shape: Sequence[int]) -> Tensor:
    """Return velocities given at nodes (B, 3, i, j, k) at every voxel of a shape, linearly."""
    return functional.interpolate(nodes, tuple(shape), mode="trilinear", align_corners=True)


def register(
    template: Tensor,
    volumes: Tensor,
    nodes: Sequence[int],
    *,
    start: Tensor | None = None,
    weights: Tensor | None = None,
    stiffness: float = 0.02,
    iterations: int = 60,
    rate: float = 0.1,
    progress: Callable[[int, float], None] | None = None,
) -> Tensor:
    """Return velocities whose flow makes the template look like each volume.

    The mean squared difference plus `stiffness` times the mean squared slope of the velocity
    is lowered by Adam, for every volume on its own.

    Parameters
    ----------
    template : Tensor (C, I, J, K)
        Channels of about 0 to 1: intensities, or shares of labels.
    volumes : Tensor (B, C, I, J, K)
    nodes : 3 ints
        Size of the lattice of the velocity.
    start : Tensor (B, 3, i, j, k), optional
        Where to begin; default: at rest.
    weights : Tensor (C,), optional
        Of the channels.
    stiffness : float
        In the square of an intensity; slopes are in voxels per voxel, from node to node.
    iterations : int
    rate : float
        Of Adam, in voxels.
    progress : callable, optional
        Called with the iteration and the mean loss.

    Returns
    -------
    Tensor (B, 3, i, j, k)
        Velocities in voxels at the nodes, for `flow_from_nodes`.
    """
    shape = tuple(volumes.shape[2:])
    size = (len(volumes), 3, *nodes)
    begin = volumes.new_zeros(size) if start is None else start.clone()
    velocity = begin.detach().requires_grad_()
    channels = volumes.new_ones(volumes.shape[1]) if weights is None else weights
    apart = _distance(nodes, shape, velocity).tolist()
    optimiser = torch.optim.Adam([velocity], lr=rate)
    for iteration in range(iterations):
        optimiser.zero_grad()
        off = warped(template[None], flow_from_nodes(velocity, shape)) - volumes
        likeness = (off.square().mean((2, 3, 4)) * channels).sum()
        slopes = torch.stack(torch.gradient(velocity, spacing=apart, dim=(2, 3, 4)))
        loss = likeness + stiffness * slopes.square().sum(0).mean((1, 2, 3, 4)).sum()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(iteration, float(loss.detach()) / len(volumes))
    return velocity.detach()
