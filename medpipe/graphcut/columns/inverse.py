"""Maps from a point in space to its place among the columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from medpipe.types import Affine

__all__ = ["Direct", "InverseMap", "Location", "bilinear", "neighbours"]

EDGE_TOL = 1e-3  # of a column spacing


@dataclass(frozen=True)
class Location:
    """Where points lie among the columns.

    Parameters
    ----------
    columns : Tensor, int64 (N, J)
        Columns around the point, row-major index.
    weights : Tensor, float64 (N, J)
        Their weights, sum 1.
    position_mm : Tensor, float64 (N,)
        Position along the column through the point; NaN where no column reaches.
    """

    columns: torch.Tensor
    weights: torch.Tensor
    position_mm: torch.Tensor


@dataclass(frozen=True)
class Direct:
    """The voxels of a grid that is itself the lattice of the columns.

    `position_mm` (X, Y, N) holds the position of every voxel along its column,
    which runs along `axis` of the grid.
    """

    position_mm: torch.Tensor
    axis: int


class InverseMap(ABC):
    """Map from a point in space to columns, weights and position."""

    @abstractmethod
    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns."""

    def quick_position(self, points_mm: torch.Tensor) -> torch.Tensor | None:
        """Return the positions of points (N, 3), all covered, if no column is needed for that."""
        return None

    def direct(self, shape: tuple[int, int, int], affine: Affine) -> Direct | None:
        """Return the positions of all voxels of a grid if each lies on one column."""
        return None


def neighbours(
    x: torch.Tensor, size: int, wrap: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the two columns around index `x` (N,), their weights and whether `x` is inside.

    Both have shape (N, 2). Without `wrap` an index up to half a column outside
    counts as inside and takes the column at the edge.
    """
    if wrap:
        x = torch.remainder(x, size)
        inside = torch.ones_like(x, dtype=torch.bool)
    else:
        inside = (x >= -0.5 - EDGE_TOL) & (x <= size - 0.5 + EDGE_TOL)
        x = x.clamp(0, size - 1)
    low = x.floor()
    first = low.long()
    second = torch.remainder(first + 1, size) if wrap else (first + 1).clamp(max=size - 1)
    fraction = x - low
    # remainder may round up to `size` itself
    first = torch.remainder(first, size)
    return torch.stack([first, second], -1), torch.stack([1 - fraction, fraction], -1), inside


def bilinear(
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    cols: torch.Tensor,
    col_weights: torch.Tensor,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return flat columns (N, 4) and weights of pairs of rows and pairs of columns, (N, 2)."""
    columns = rows[:, :, None] * width + cols[:, None, :]
    weights = row_weights[:, :, None] * col_weights[:, None, :]
    return columns.flatten(1), weights.flatten(1)
