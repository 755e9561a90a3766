"""Columns of nodes in an image: what every generator returns, and the maps there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from medpipe.errors import StepError
from medpipe.graphcut.columns.cells import cell_volumes, first_crossing, lattice_triangles
from medpipe.graphcut.columns.fill import fill_labels
from medpipe.graphcut.columns.inverse import InverseMap
from medpipe.graphcut.columns.sampling import Mode, sample_points
from medpipe.types import Affine

__all__ = ["Columns", "column_name"]


@dataclass(frozen=True)
class Columns:
    """Columns of nodes; a surface crosses each of them exactly once.

    Parameters
    ----------
    points_mm : Tensor, shape (X, Y, K, 3) or (C, K, 3)
        RAS+ mm of every node. The first form is a lattice of X × Y columns, the
        second one column for every vertex of a mesh.
    positions_mm : Tensor, shape (..., K), optional
        Position of every node along its column in mm, strictly increasing, float64:
        arc length up to a constant that the generator chooses so that equal
        positions of neighbours are a smooth surface. Default: arc length from the
        first node.
    wrap : tuple of int
        Axes (0, 1) of the lattice whose end is joined to their beginning.
    links : Tensor, optional
        Neighbours of the columns of a mesh, int64 (J, C), -1 for none; see
        `medpipe.graphcut.problem.CutProblem`. Every edge occurs once.
    faces : Tensor, optional
        Triangles of the mesh, int64 (F, 3).
    inverse : InverseMap, optional
        Map from a point to its place among the columns, for `labels`.
    """

    points_mm: torch.Tensor
    positions_mm: torch.Tensor = None  # type: ignore[assignment]
    wrap: tuple[int, ...] = ()
    links: torch.Tensor | None = None
    faces: torch.Tensor | None = None
    inverse: InverseMap | None = None

    def __post_init__(self) -> None:
        _check_points(self)
        if self.positions_mm is None:
            steps = torch.linalg.vector_norm(self.points_mm.to(torch.float64).diff(dim=-2), dim=-1)
            arc = torch.nn.functional.pad(steps.cumsum(-1), (1, 0))
            object.__setattr__(self, "positions_mm", arc)
        else:
            positions = self.positions_mm.to(torch.float64).expand(self.points_mm.shape[:-1])
            object.__setattr__(self, "positions_mm", positions)
        _check_order(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the columns, (X, Y) or (C,)."""
        return tuple(self.points_mm.shape[:-2])

    @property
    def nodes(self) -> int:
        """Number of nodes of a column."""
        return int(self.points_mm.shape[-2])

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.points_mm.device

    @property
    def spacing_mm(self) -> torch.Tensor:
        """Distance from each node to the next one of its column, (..., K - 1) in mm."""
        return torch.linalg.vector_norm(self.points_mm.diff(dim=-2), dim=-1)

    def sample(
        self,
        image: torch.Tensor,
        affine: Affine,
        mode: Mode = "linear",
        outside: float = float("nan"),
    ) -> torch.Tensor:
        """Return the values of an image at the nodes.

        Parameters
        ----------
        image : Tensor, shape (1, I, J, K)
            Any real dtype; float64 stays float64, all else becomes float32 in
            ``"linear"`` mode and stays what it is in ``"nearest"`` mode.
        affine : ndarray, shape (4, 4)
            Voxel index to RAS+ mm of the image.
        mode : {"linear", "nearest"}
        outside : float
            Value further than half a voxel outside the outermost voxel centres;
            up to there the value of the edge counts.

        Returns
        -------
        Tensor, shape (..., K)
            At a voxel centre exactly the value of that voxel.
        """
        if image.ndim != 4 or image.shape[0] != 1:
            raise StepError(
                "the image to sample has wrong axes",
                expected="one channel, (1, I, J, K)",
                got=f"shape {tuple(image.shape)}",
            )
        return sample_points(image, self.points_mm, affine, mode, outside)[0]

    def points_at(self, position_mm: torch.Tensor) -> torch.Tensor:
        """Return points at positions along the columns: a surface in space.

        Parameters
        ----------
        position_mm : Tensor, shape (S, ...)
            Positions in mm, one per surface and column; NaN gives NaN. Up to one
            node spacing beyond the ends the column is continued as a straight line.

        Returns
        -------
        Tensor, shape (S, ..., 3)
            RAS+ mm, float64, linear between nodes.

        Raises
        ------
        StepError
            If a position lies further outside its column.
        """
        return self._points(position_mm.movedim(0, -1)).movedim(-2, 0)

    def labels(
        self,
        position_mm: torch.Tensor,
        shape: Sequence[int],
        affine: Affine,
        uncovered: int | None = None,
    ) -> torch.Tensor:
        """Return the regions between surfaces as a label volume.

        Parameters
        ----------
        position_mm : Tensor, shape (S, ...)
            Positions in mm, in the order of the surfaces along the columns.
        shape, affine
            Grid of the label volume.
        uncovered : int, optional
            Label of voxels that no column reaches or whose surface is NaN. Default:
            S, as beyond every surface.

        Returns
        -------
        Tensor, shape (1, I, J, K), int16
            Number of surfaces that lie before the voxel, 0..S. A voxel on a surface
            belongs to the region before it, as a node on the surface belongs to the
            source side of the cut.
        """
        self._check_shape(position_mm, "surface positions", 1)
        beyond = len(position_mm) if uncovered is None else uncovered
        size = (int(shape[0]), int(shape[1]), int(shape[2]))
        return fill_labels(self, position_mm.to(torch.float64), size, affine, beyond)[None]

    def moved(self, positions_mm: torch.Tensor) -> Columns:
        """Return the same columns with their nodes at other positions, shape (..., K)."""
        self._check_shape(positions_mm.movedim(-1, 0), "node positions", 1)
        points = self._points(positions_mm).to(self.points_mm.dtype)
        return replace(self, points_mm=points, positions_mm=positions_mm)

    def triangles(self) -> torch.Tensor:
        """Return the triangles of a surface over all columns, int64 (F, 3).

        The indices count columns in row-major order. A wrapped axis is closed.
        """
        if len(self.shape) == 2:
            return lattice_triangles(self.shape, self.wrap, self.device)
        if self.faces is None:
            raise StepError("the columns have no triangles", expected="columns over a mesh")
        return self.faces

    def cell_volumes_mm3(self) -> torch.Tensor:
        """Return the signed volume between neighbouring columns and nodes in mm³.

        Shape (X', Y', K - 1) with X' = X on a wrapped axis, else X - 1; (F, K - 1)
        for a mesh. The volume integrates the Jacobian of the (tri)linear map from
        the cell, so that columns which cross have volumes of both signs.
        """
        return cell_volumes(self)

    def check_uncrossed(self) -> Columns:
        """Return these columns, or raise StepError naming a column that crosses a neighbour.

        Columns cross where the Jacobian of the map from column coordinates to
        space changes its sign at a corner of a cell.
        """
        found = first_crossing(self)
        if found is not None:
            raise StepError(
                f"{column_name(self.shape, found[0])} crosses a neighbour near node {found[1]}",
                hint="shorten the columns, or follow a smoother mesh, curve or field",
            )
        return self

    def _points(self, position_mm: torch.Tensor) -> torch.Tensor:
        """Return points (..., Q, 3) at positions (..., Q) of the same columns."""
        self._check_shape(position_mm.movedim(-1, 0), "positions", 1)
        where = position_mm.to(torch.float64).contiguous()
        nodes = self.positions_mm.contiguous()
        upper = torch.searchsorted(nodes, torch.nan_to_num(where)).clamp_(1, self.nodes - 1)
        low, high = nodes.gather(-1, upper - 1), nodes.gather(-1, upper)
        fraction = (where - low) / (high - low)
        if bool(((fraction < -1 - 1e-9) | (fraction > 2 + 1e-9)).any()):
            bad = ((fraction < -1 - 1e-9) | (fraction > 2 + 1e-9)).any(-1)
            raise StepError(
                "a position lies outside its column",
                where=column_name(self.shape, int(torch.nonzero(bad.reshape(-1))[0])),
                expected="at most one node spacing beyond its ends",
            )
        index = upper[..., None].expand(*upper.shape, 3)
        points = self.points_mm.to(torch.float64)
        before, after = points.gather(-2, index - 1), points.gather(-2, index)
        return before + fraction[..., None] * (after - before)

    def _check_shape(self, values: torch.Tensor, what: str, lead: int) -> None:
        if tuple(values.shape[lead:]) != self.shape:
            raise StepError(
                f"the {what} do not fit the columns",
                expected=f"shape (…) over columns {self.shape}",
                got=f"columns {tuple(values.shape[lead:])}",
            )


def column_name(shape: tuple[int, ...], flat: int) -> str:
    """Return the name of a column for errors: ``"column (3, 7)"`` or ``"column 12"``."""
    if len(shape) == 1:
        return f"column {flat}"
    return f"column ({flat // shape[1]}, {flat % shape[1]})"


def _check_points(columns: Columns) -> None:
    points = columns.points_mm
    if points.ndim not in (3, 4) or points.shape[-1] != 3 or not points.is_floating_point():
        raise StepError(
            "the nodes of the columns have a wrong shape or type",
            expected="floats (X, Y, K, 3) or (C, K, 3)",
            got=f"{points.dtype} {tuple(points.shape)}",
        )
    if 0 in points.shape or points.shape[-2] < 2:
        raise StepError("a column needs two nodes or more", got=f"shape {tuple(points.shape)}")
    if not bool(torch.isfinite(points).all()):
        raise StepError("nodes of the columns are NaN or infinite")
    lattice = points.ndim == 4
    if any(axis not in (0, 1) for axis in columns.wrap) or (columns.wrap and not lattice):
        raise StepError(
            "an axis that wraps around does not exist", expected="axes 0 and 1 of a lattice"
        )
    if columns.links is not None and (lattice or columns.links.shape[1:] != points.shape[:1]):
        raise StepError(
            "the links do not fit the columns",
            expected=f"(J, {points.shape[0]}) on columns of a mesh",
            got=str(tuple(columns.links.shape)),
        )


def _check_order(columns: Columns) -> None:
    gaps = columns.positions_mm.diff(dim=-1)
    bad = ~(gaps > 0)
    if bool(bad.any()):
        flat = int(torch.nonzero(bad.any(-1).reshape(-1))[0])
        raise StepError(
            "the positions of the nodes do not increase",
            where=column_name(columns.shape, flat),
            expected="gaps above 0 mm",
            got=f"{float(gaps.reshape(-1, gaps.shape[-1])[flat].min()):g} mm",
        )
