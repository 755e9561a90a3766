"""Centerline trees as VTK polylines (.vtp), and centerlines of other programs read.

A branch is a polyline from the root or junction where it starts to its end; branches
share the point of their junction. Points are in RAS+ mm, as `medpipe.io.vtp` states in the
file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.branching import generations
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError
from medpipe.io.vtp import PolyData, read_vtp, vtp_bytes

__all__ = ["CenterlineLines", "read_centerline_vtp", "tree_polydata", "vtp_bytes_of"]

VMTK_RADIUS = "MaximumInscribedSphereRadius"


@dataclass(frozen=True, eq=False)
class CenterlineLines:
    """Polylines of a VTP file.

    Parameters
    ----------
    points_mm : float64 array (N, 3)
        RAS+ mm.
    lines : tuple of int64 arrays
        Points of each polyline, in order.
    radius_mm : float64 array (N,) or None
        Of the largest ball inside, where the file holds it.
    group_ids, centerline_ids, blanking : int64 array (lines,) or None
        What VMTK says of each polyline: the branch or bifurcation it is part of, the
        way from inlet to outlet it is a piece of, and 1 where it passes a bifurcation.
    """

    points_mm: NDArray[np.float64]
    lines: tuple[NDArray[np.int64], ...]
    radius_mm: NDArray[np.float64] | None = None
    group_ids: NDArray[np.int64] | None = None
    centerline_ids: NDArray[np.int64] | None = None
    blanking: NDArray[np.int64] | None = None


def vtp_bytes_of(tree: CenterlineTree, *, compress: bool = True) -> bytes:
    """Return a tree as the content of a ``.vtp`` file; see `tree_polydata` for its arrays."""
    return vtp_bytes(tree_polydata(tree), compress=compress)


def tree_polydata(tree: CenterlineTree) -> PolyData:
    """Return a tree as polylines with arrays.

    Notes
    -----
    Arrays of the points, one point per node in the order of the nodes:

    =====================================  ==================================================
    ``Radius``, ``AreaRadius``             mm; NaN where no cross-section could be measured
    ``Distance``                           mm from the root along the curve
    ``BranchId``, ``Generation``           of the branch that ends at or passes the point
    ``ParentId``                           point before it, -1 at roots
    ``Structure``                          label value
    ``MaximumInscribedSphereRadius``       the same as ``Radius``, under the name of VMTK
    =====================================  ==================================================

    Arrays of the polylines, branches first, then edges that close loops:

    =====================================  ==================================================
    ``BranchId``, ``ParentBranchId``       -1 for a closing edge, and where a branch starts
                                           at a root
    ``Generation``, ``TreeId``             0 for branches that start at a root; number of the
                                           root
    ``Structure``, ``Closing``             label value; 1 for a closing edge
    ``GroupIds``                           in VMTK the branch or bifurcation that a piece is
                                           part of: here the branch
    ``CenterlineIds``, ``TractIds``        in VMTK the way from inlet to outlet and the place
                                           in it: here the first tip (in the order of the
                                           nodes) behind the branch, and its generation
    ``Blanking``                           in VMTK 1 for pieces inside a bifurcation, which
                                           measures leave out: here 0, and 1 for a closing
                                           edge, as no branch is cut at its junction
    =====================================  ==================================================
    """
    branches = tree.branches
    generation = np.array(generations(tree), np.int64)
    at_node = np.append(generation, 0)[tree.branch_of].astype(np.int32)
    point_data: dict[str, NDArray[Any]] = {
        "Radius": tree.radius_mm,
        "AreaRadius": tree.area_radius_mm,
        "Distance": tree.distance_mm,
        "BranchId": tree.branch_of.astype(np.int32),
        "Generation": at_node,
        "ParentId": tree.parents.astype(np.int32),
        "Structure": tree.structures.astype(np.int32),
        VMTK_RADIUS: tree.radius_mm,
    }
    lines = [branch.nodes for branch in branches] + list(tree.closing)
    closing = np.repeat([0, 1], [len(branches), len(tree.closing)])
    ids = np.where(closing == 1, -1, np.arange(len(lines)))
    ends = np.array([line[-1] for line in lines], np.int64)
    cell_data = {
        "BranchId": ids,
        "ParentBranchId": _column([b.parent for b in branches], lines, -1),
        "Generation": _column(generation, lines, -1),
        "TreeId": tree.tree_of[ends],
        "Structure": tree.structures[ends],
        "Closing": closing,
        "GroupIds": ids,
        "CenterlineIds": _column(_first_tip(tree), lines, -1),
        "TractIds": _column(generation, lines, -1),
        "Blanking": closing,
    }
    return PolyData(
        tree.positions_mm,
        lines=lines,
        point_data=point_data,
        cell_data={name: values.astype(np.int32) for name, values in cell_data.items()},
    )


def _first_tip(tree: CenterlineTree) -> list[int]:
    """Return for each branch the rank of the first leaf behind it."""
    rank = {node: n for n, node in enumerate(tree.leaves.tolist())}
    found = [rank.get(int(branch.nodes[-1]), len(rank)) for branch in tree.branches]
    for branch in reversed(tree.branches):
        if branch.parent >= 0:
            found[branch.parent] = min(found[branch.parent], found[branch.id])
    return found


def _column(values: list[int] | NDArray[np.int64], lines: list, rest: int) -> NDArray[np.int64]:
    """Return the values of the branches, followed by `rest` for the closing edges."""
    column = np.full(len(lines), rest, np.int64)
    column[: len(values)] = values
    return column


def read_centerline_vtp(
    source: bytes | str | Path, *, assume_space: str | None = None
) -> CenterlineLines:
    """Read the polylines of a ``.vtp`` file of medpipe, VMTK or 3D Slicer.

    Parameters
    ----------
    source : bytes or path
        The content of the file, or where it is.
    assume_space : {"RAS", "LPS"}, optional
        Orientation of a file that does not state one; files of VMTK do not.

    Raises
    ------
    InputError
        If the file cannot be read or holds no lines.
    """
    mesh = read_vtp(source, assume_space=assume_space)
    if not mesh.lines:
        raise InputError("the VTP file holds no lines", expected="centerlines as polylines")
    radius = mesh.point_data.get(VMTK_RADIUS, mesh.point_data.get("Radius"))
    cells = {
        name: np.asarray(mesh.cell_data[array], np.int64)
        for name, array in _VMTK_CELLS.items()
        if array in mesh.cell_data
    }
    return CenterlineLines(
        points_mm=mesh.points_mm.astype(np.float64),
        lines=tuple(np.asarray(line, np.int64) for line in mesh.lines),
        radius_mm=None if radius is None else radius.astype(np.float64),
        **cells,
    )


_VMTK_CELLS = {
    "group_ids": "GroupIds",
    "centerline_ids": "CenterlineIds",
    "blanking": "Blanking",
}
