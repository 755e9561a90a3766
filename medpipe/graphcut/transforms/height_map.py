"""Surfaces as an image: one voxel along the columns, one channel a surface.

The values are positions in mm from the first sample of each column. The affine is
that of the image with its column axis turned to run along the columns and its
origin at the first sample, so a map alone says where its surfaces are: the voxel
centre plus the value times the unit vector of the collapsed axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from medpipe.errors import StepError, UsageError
from medpipe.geometry import same_grid, spacing_mm
from medpipe.graphcut.columns import Columns, flat_columns
from medpipe.steps._base import affine_of, as_image, rewrap
from medpipe.types import Affine

__all__ = ["HeightMap", "column_affine", "height_image", "read_heights"]


@dataclass(frozen=True, eq=False)
class HeightMap:
    """Surfaces over the columns of a grid.

    Parameters
    ----------
    positions_mm : Tensor, float64 (S, X, Y)
        Position of each surface on each column, from its first sample.
    affine : ndarray (4, 4)
        Of the map, see `column_affine`.
    axis : int
        Axis of the image along the columns; the two others are X and Y.
    names : tuple of str
        One for each surface.
    wrap : tuple of int
        Axes of the image whose end is joined to their beginning.
    """

    positions_mm: torch.Tensor
    affine: Affine
    axis: int
    names: tuple[str, ...]
    wrap: tuple[int, ...]

    @property
    def lateral(self) -> tuple[int, int]:
        """The axes X and Y of the image."""
        a, b = (n for n in range(3) if n != self.axis)
        return a, b

    @property
    def points_mm(self) -> torch.Tensor:
        """RAS+ mm of every surface on every column, float64 (S, X, Y, 3)."""
        matrix = torch.from_numpy(self.affine).to(self.positions_mm.device)
        a, b = self.lateral
        x, y = (
            torch.arange(n, dtype=torch.float64, device=matrix.device)
            for n in self.positions_mm.shape[1:]
        )
        face = x[:, None, None] * matrix[:3, a] + y[:, None] * matrix[:3, b] + matrix[:3, 3]
        unit = matrix[:3, self.axis] / torch.linalg.vector_norm(matrix[:3, self.axis])
        return face + self.positions_mm[..., None] * unit

    def columns(self, img: Any) -> Columns:
        """Return the columns of the map through the voxels of an image.

        Raises
        ------
        StepError
            If the image is not the one that the map was made of, or one on its grid.
        """
        image = as_image(img)
        shape = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        affine = affine_of(image)
        reverse = bool(affine[:3, self.axis] @ self.affine[:3, self.axis] < 0)
        due = column_affine(affine, shape, self.axis, reverse)
        flat = [1 if n == self.axis else s for n, s in enumerate(shape)]
        own = [*self.positions_mm.shape[1:]]
        own.insert(self.axis, 1)
        # headers hold affines in float32
        tolerance = 0.02 * float(spacing_mm(affine).min())
        if not same_grid(due, flat, self.affine, own, tol_mm=tolerance):
            raise StepError(
                "the surfaces are not on the grid of the image",
                expected=f"{flat} columns of it",
                got=f"{own}",
                hint="name the image that they were found in",
            )
        return flat_columns(
            shape, affine, axis=self.axis, reverse=reverse, device=self.positions_mm.device
        )


def column_affine(affine: Affine, shape: Sequence[int], axis: int, reverse: bool) -> Affine:
    """Return the affine of the map of columns along an axis of an image."""
    out = np.array(affine, dtype=np.float64)
    if reverse:
        out[:3, 3] += (shape[axis] - 1) * out[:3, axis]
        out[:3, axis] *= -1
    return out


def height_image(
    image: MetaTensor,
    positions_mm: torch.Tensor,
    *,
    axis: int,
    reverse: bool = False,
    names: Sequence[str] = (),
    wrap: Sequence[int] = (),
) -> MetaTensor:
    """Return positions (S, X, Y) as a map of shape (S, I, J, K), 1 along the columns.

    Axis, names and wrap go into ``meta["medpipe"]["source"]["surfaces"]``.

    Parameters
    ----------
    image : MetaTensor (1, I, J, K)
    positions_mm : Tensor (S, X, Y)
    axis, reverse, names, wrap
        See `HeightMap`; `reverse` says that columns run from the last voxel.
    """
    shape = tuple(int(n) for n in image.shape[1:])
    affine = column_affine(affine_of(image), shape, axis, reverse)
    out = rewrap(image, positions_mm.to(torch.float32).unsqueeze(axis + 1), affine)
    record = dict(out.meta.get("medpipe") or {})
    given = tuple(names) or default_names(len(positions_mm))
    facts = {"axis": axis, "names": list(given), "wrap": [int(w) for w in wrap]}
    record["source"] = dict(record.get("source") or {}) | {"surfaces": facts}
    out.meta["medpipe"] = {"findings": [], **record}
    return out


def default_names(count: int) -> tuple[str, ...]:
    """Return the names of surfaces that were given none."""
    return tuple(f"surface {n + 1}" for n in range(count))


def read_heights(img: Any, axis: int | None = None) -> HeightMap:
    """Return the surfaces that a map holds.

    Parameters
    ----------
    img : MetaTensor (S, I, J, K)
        A map as `height_image` makes it, or one read from a file.
    axis : int, optional
        Axis of the columns; by default what the map says of itself, or its only
        axis of one voxel.

    Raises
    ------
    StepError
        If it is no map of surfaces or does not say along which axis.
    UsageError
        If the axis does not exist.
    """
    image = as_image(img)
    facts = _facts(image)
    single = [n for n in range(3) if image.shape[n + 1] == 1]
    if axis is None:
        axis = facts.get("axis", single[0] if len(single) == 1 else None)
    if axis is not None and axis not in (0, 1, 2):
        # what an image says of itself is not ours to repeat
        got = str(axis) if isinstance(axis, int) else type(axis).__name__
        raise UsageError("axis is wrong", expected="0, 1 or 2", got=got)
    if axis not in single or image.is_complex():
        raise StepError(
            "the image is no map of surfaces" if not single else "the axis of the columns is open",
            expected="positions in mm, one voxel along the columns",
            got=f"shape {tuple(image.shape)}",
            hint=None if not single else "set axis to the axis of the columns",
        )
    values = image.as_tensor().squeeze(axis + 1).to(torch.float64)
    names = tuple(str(n) for n in facts.get("names", ()))
    if len(names) != len(values):
        names = default_names(len(values))
    wrap = tuple(int(w) for w in facts.get("wrap", ()))
    return HeightMap(values, affine_of(image), axis, names, wrap)


def _facts(image: MetaTensor) -> dict[str, Any]:
    record = image.meta.get("medpipe") or {}
    return dict((record.get("source") or {}).get("surfaces") or {})
