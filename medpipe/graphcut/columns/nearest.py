"""The nearest column, for columns without a closed form."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medpipe.graphcut.columns.inverse import InverseMap, Location

if TYPE_CHECKING:
    from medpipe.graphcut.columns.base import Columns

__all__ = ["NearestMap"]


class NearestMap(InverseMap):
    """The column of the nearest node, with the point projected onto that column.

    A point is covered if the nearest node is no farther than `reach_mm`, by default
    the largest distance between a node and its neighbours on the same and on linked
    columns, and if its projection lies within half a spacing of the ends.
    """

    def __init__(self, columns: Columns, reach_mm: float | None = None) -> None:
        self.columns = columns
        self.reach_mm = _widest_gap(columns) if reach_mm is None else reach_mm

    @cached_property
    def _tree(self) -> Any:
        return cKDTree(_host(self.columns.points_mm.reshape(-1, 3)))

    def locate(self, points_mm: torch.Tensor) -> Location:
        """Return the place of points (N, 3) among the columns."""
        nodes = self.columns.nodes
        distance, index = self._tree.query(_host(points_mm), workers=1)
        near = torch.from_numpy(np.asarray(index, np.int64)).to(points_mm.device)
        column, node = near // nodes, near % nodes
        points = self.columns.points_mm.reshape(-1, nodes, 3).to(torch.float64)
        positions = self.columns.positions_mm.reshape(-1, nodes)
        low, high = (node - 1).clamp_min(0), (node + 1).clamp_max(nodes - 1)
        tangent = points[column, high] - points[column, low]
        rise = positions[column, high] - positions[column, low]
        step = ((points_mm - points[column, node]) * tangent).sum(-1) / tangent.square().sum(-1)
        position = positions[column, node] + step * rise
        far = torch.from_numpy(np.asarray(distance)).to(points_mm.device) > self.reach_mm
        half = rise / (high - low) / 2
        far |= position < positions[column, 0] - half
        far |= position > positions[column, -1] + half
        position = position.masked_fill(far, torch.nan)
        return Location(column[:, None], torch.ones_like(position)[:, None], position)


def _widest_gap(columns: Columns) -> float:
    """Return the largest distance between a node and its neighbours, in mm."""
    points = columns.points_mm.to(torch.float64)
    widest = float(columns.spacing_mm.max())
    if len(columns.shape) == 2:
        for axis in (0, 1):
            if columns.shape[axis] > 1:
                gap = torch.linalg.vector_norm(points.diff(dim=axis), dim=-1)
                widest = max(widest, float(gap.max()))
    elif columns.links is not None:
        for row in columns.links:
            here = torch.nonzero(row >= 0)[:, 0]
            if len(here):
                gap = torch.linalg.vector_norm(points[here] - points[row[here]], dim=-1)
                widest = max(widest, float(gap.max()))
    return widest


def _host(points: torch.Tensor) -> NDArray[np.float64]:
    return points.to(torch.float64).cpu().numpy()
