"""Cubes of voxels as channels and back: a coarser grid without any loss."""

from __future__ import annotations

from torch import Tensor

__all__ = ["folded", "unfolded"]


def folded(x: Tensor, edge: int) -> Tensor:
    """Return (B, C edge³, I/edge, J/edge, K/edge): the values of each cube as channels."""
    if edge == 1:
        return x
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c, i // edge, edge, j // edge, edge, k // edge, edge)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(
        b, c * edge**3, i // edge, j // edge, k // edge
    )


def unfolded(x: Tensor, edge: int) -> Tensor:
    """Return what `folded` was given."""
    if edge == 1:
        return x
    b, c, i, j, k = x.shape
    cubes = x.reshape(b, c // edge**3, edge, edge, edge, i, j, k)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, i * edge, j * edge, k * edge)
