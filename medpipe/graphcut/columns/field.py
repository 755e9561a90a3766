"""Columns along the lines of a vector field, which do not cross."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import torch

from medpipe.errors import StepError, UsageError
from medpipe.geometry import spacing_mm
from medpipe.graphcut.columns.base import Columns, column_name
from medpipe.graphcut.columns.graph import check_faces, links_of
from medpipe.graphcut.columns.mesh import signed_nodes
from medpipe.graphcut.columns.sampling import sample_points
from medpipe.types import Affine

__all__ = ["FieldFrame", "field_columns", "field_of_image"]

Field = Callable[[torch.Tensor], torch.Tensor]
FieldFrame = Literal["image", "world"]


def field_of_image(vectors: torch.Tensor, affine: Affine, frame: FieldFrame = "image") -> Field:
    """Return a field on the grid of an image as a function of points in mm.

    Parameters
    ----------
    vectors : Tensor, shape (3, I, J, K)
        Components in mm: along the axes of the image (``"image"``, as the gradient
        vector flow returns them) or along R, A, S (``"world"``).
    affine : ndarray, shape (4, 4)
    frame : {"image", "world"}

    Returns
    -------
    callable
        Maps points (..., 3) to world vectors (..., 3), trilinear; NaN outside.
    """
    if frame not in get_args(FieldFrame):
        raise UsageError(
            "unknown frame", expected=" | ".join(get_args(FieldFrame)), got=repr(frame)[:40]
        )
    if vectors.ndim != 4 or vectors.shape[0] != 3:
        raise StepError(
            "the vector field has wrong axes",
            expected="(3, I, J, K)",
            got=str(tuple(vectors.shape)),
        )
    turn = torch.eye(3, dtype=torch.float64, device=vectors.device)
    if frame == "image":
        turn = torch.from_numpy(np.asarray(affine, float)[:3, :3] / spacing_mm(affine)).to(turn)

    def field(points: torch.Tensor) -> torch.Tensor:
        values = sample_points(vectors, points, affine, "linear", float("nan"))
        return values.movedim(0, -1).to(torch.float64) @ turn.T

    return field


def field_columns(
    seeds_mm: torch.Tensor,
    field: Field,
    *,
    inside_mm: float,
    outside_mm: float,
    node_mm: float,
    faces: torch.Tensor | None = None,
    wrap: tuple[int, ...] = (),
    substeps: int = 4,
    dtype: torch.dtype = torch.float64,
) -> Columns:
    """Return columns along field lines through seeds.

    Lines of a smooth field have no point in common, so columns of any length do not
    cross where straight normals would (Yin et al. 2010, doi 10.1109/TMI.2010.2058861).

    Parameters
    ----------
    seeds_mm : Tensor, shape (V, 3) or (X, Y, 3)
        Vertices of a mesh, with `faces`, or a lattice.
    field : callable
        World vectors (..., 3) at points (..., 3); only their direction counts.
        `field_of_image` makes one from an image.
    inside_mm, outside_mm : float
        Arc length to trace against and along the field.
    node_mm : float
        Arc length between nodes.
    faces : Tensor, int64 (F, 3), optional
        Triangles of a mesh.
    wrap : tuple of int
        Axes of a lattice that are closed.
    substeps : int
        Steps of the fourth-order Runge-Kutta method between two nodes.

    Returns
    -------
    Columns
        Positions are arc lengths from the seed, negative against the field.

    Raises
    ------
    StepError
        If a line ends (the field vanishes or the image ends), or columns cross
        because the field is not smooth at the scale of the steps.
    """
    lattice = seeds_mm.ndim == 3
    if not lattice and faces is None:
        raise UsageError("seeds that are no lattice need faces", expected="faces, or (X, Y, 3)")
    if faces is not None:
        check_faces(faces, len(seeds_mm))
    if substeps < 1:
        raise UsageError("substeps is wrong", expected="1 or more", got=str(substeps))
    nodes = signed_nodes(inside_mm, outside_mm, node_mm, seeds_mm.device)
    seeds = seeds_mm.to(torch.float64)
    before = int((nodes < 0).sum())
    back = _trace(seeds, field, -node_mm, before, substeps)
    ahead = _trace(seeds, field, node_mm, len(nodes) - before - 1, substeps)
    points = torch.stack([*reversed(back), seeds, *ahead], -2)
    return Columns(
        points.to(dtype),
        nodes.expand(points.shape[:-1]),
        wrap=wrap,
        links=None if faces is None else links_of(faces, len(seeds)),
        faces=faces,
    ).check_uncrossed()


def _trace(
    seeds: torch.Tensor, field: Field, node_mm: float, nodes: int, substeps: int
) -> list[torch.Tensor]:
    """Return the points after each of `nodes` distances along the field lines."""
    h = node_mm / substeps
    out, points = [], seeds
    for node in range(nodes):
        for _ in range(substeps):
            k1 = _direction(field, points)
            k2 = _direction(field, points + h / 2 * k1)
            k3 = _direction(field, points + h / 2 * k2)
            k4 = _direction(field, points + h * k3)
            points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        lost = torch.nonzero(~torch.isfinite(points).all(-1).reshape(-1))
        if len(lost):
            raise StepError(
                "a field line ends: the field vanishes there or the image ends",
                where=column_name(tuple(seeds.shape[:-1]), int(lost[0])),
                expected=f"{abs(node_mm) * nodes:g} mm",
                got=f"less than {abs(node_mm) * (node + 1):g} mm",
                hint="shorten the columns, or use a field that reaches farther",
            )
        out.append(points)
    return out


def _direction(field: Field, points: torch.Tensor) -> torch.Tensor:
    """Return unit vectors along the field; 0 / 0 = NaN where it vanishes."""
    vectors = field(points)
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
