"""Centerline trees as SWC, the seven columns that neuron and vessel programs share.

INCF's specification (https://swc-specification.readthedocs.io) counts lengths in µm; the
files written here are in RAS+ mm, and say so in their header.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError, UsageError
from medpipe.geometry import spacing_mm
from medpipe.io.safe_xml import read_limited

__all__ = ["FORK", "TIP", "UNDEFINED", "SwcNodes", "read_swc", "swc_bytes"]

UNDEFINED, FORK, TIP = 0, 5, 6
"""Types of nodes: any other, with two or more children, without children."""

MAX_BYTES = 1 << 28

_SMALLEST_MM = 1e-5
_COLUMNS = "id type x y z r parent"


@dataclass(frozen=True, eq=False)
class SwcNodes:
    """The nodes of an SWC file, in the order of the file.

    Parameters
    ----------
    types : int64 array (N,)
        0 undefined, 5 fork, 6 tip; other numbers are structures of neurons.
    points_mm : float64 array (N, 3)
    radius_mm : float64 array (N,)
    parents : int64 array (N,)
        Row of the parent, not its number in the file; -1 at roots.
    """

    types: NDArray[np.int64]
    points_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64]
    parents: NDArray[np.int64]


def swc_bytes(
    tree: CenterlineTree,
    *,
    radius: Literal["inscribed", "area"] = "inscribed",
    only: int | None = None,
) -> bytes:
    """Return a tree as the content of an SWC file.

    Nodes are numbered from 1, a parent before its children. Every root is a line with
    the parent -1. Edges that close loops have no place in the format and are left out,
    which the header counts.

    Parameters
    ----------
    tree : CenterlineTree
    radius : {"inscribed", "area"}
        Which radius the sixth column holds. An area radius that is not known is replaced
        by the inscribed one, and one that is not a length by half the smallest edge of a
        voxel: readers need a radius above 0.
    only : int, optional
        Number of the one tree to write, in the order of the roots; without it the file
        holds all trees.

    Raises
    ------
    UsageError
        If there is no such tree or radius.
    """
    if radius not in ("inscribed", "area"):
        raise UsageError("unknown radius", expected="inscribed or area", got=repr(radius))
    if only is not None and not 0 <= only < len(tree.roots):
        raise UsageError(
            "the centerline has no such tree",
            expected=f"0 to {len(tree.roots) - 1}",
            got=str(only),
        )
    kept = np.flatnonzero(tree.tree_of == only) if only is not None else np.arange(len(tree))
    number = np.zeros(len(tree) + 1, np.int64)
    number[kept] = np.arange(1, len(kept) + 1)
    number[-1] = -1  # the parent of a root
    types = np.where(tree.n_children > 1, FORK, UNDEFINED)
    types[tree.leaves] = TIP
    rows = zip(
        number[kept].tolist(),
        types[kept].tolist(),
        tree.positions_mm[kept].tolist(),
        _radius_mm(tree, radius)[kept].tolist(),
        number[tree.parents[kept]].tolist(),
        strict=True,
    )
    lines = _header(tree, radius, kept, number)
    lines += [
        f"{n} {kind} {x:.5f} {y:.5f} {z:.5f} {r:.5f} {parent}"
        for n, kind, (x, y, z), r, parent in rows
    ]
    return ("\n".join(lines) + "\n").encode()


def _header(
    tree: CenterlineTree, radius: str, kept: NDArray[np.int64], number: NDArray[np.int64]
) -> list[str]:
    """Return the comments: units, meanings, and where each tree begins."""
    lines = [
        "# centerlines by medpipe",
        "# positions and radii in mm (not um), axes RAS+ (right, anterior, superior)",
        f"# radius: {radius}",
        f"# types: {UNDEFINED} undefined, {FORK} fork, {TIP} tip",
    ]
    lines += [
        f"# tree {tree.tree_of[n]}: structure {tree.structures[n]}, root {number[n]}"
        for n in kept[tree.parents[kept] < 0].tolist()
    ]
    lost = int((number[tree.closing] > 0).all(axis=1).sum())
    if lost:
        lines.append(f"# edges that close loops, left out: {lost}")
    return [*lines, f"# {_COLUMNS}"]


def _radius_mm(tree: CenterlineTree, radius: str) -> NDArray[np.float64]:
    values = tree.radius_mm
    if radius == "area":
        values = np.where(np.isfinite(tree.area_radius_mm), tree.area_radius_mm, values)
    least = max(float(np.min(spacing_mm(tree.affine))) / 2, _SMALLEST_MM)
    return np.where(np.isfinite(values) & (values >= _SMALLEST_MM), values, least)


def read_swc(source: bytes | str | Path, *, mm_per_unit: float = 1.0) -> SwcNodes:
    """Read an SWC file.

    Parameters
    ----------
    source : bytes or path
        The content of the file, or where it is.
    mm_per_unit : float
        What lengths are multiplied with: 0.001 for a file in µm.

    Raises
    ------
    InputError
        If a line does not hold seven numbers, a number of a node is used twice, a
        parent does not come before its child, or a radius is not above 0.
    """
    content = read_limited(source, "SWC file", MAX_BYTES)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # comments of old programs
    rows: dict[int, int] = {}
    types, values, parents = [], [], []
    for at, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        number, kind, lengths, parent = _row(line, at)
        if number in rows:
            raise _wrong("the number of a node is used twice", at)
        if parent != -1 and parent not in rows:
            raise _wrong("a parent does not come before its child", at)
        parents.append(rows.get(parent, -1))
        rows[number] = len(rows)
        types.append(kind)
        values.append(lengths)
    if not rows:
        raise InputError("the SWC file holds no nodes", expected=f"lines of {_COLUMNS}")
    table = np.array(values) * mm_per_unit
    return SwcNodes(
        types=np.array(types, np.int64),
        points_mm=table[:, :3],
        radius_mm=table[:, 3],
        parents=np.array(parents, np.int64),
    )


def _row(line: str, at: int) -> tuple[int, int, list[float], int]:
    """Return number, type, x y z r and parent of a line."""
    cells = line.replace("_", "?").split()  # Python reads 1_000 as a number
    if len(cells) != 7:
        raise _wrong("a line has another number of columns", at, got=f"{len(cells)} columns")
    try:
        number, kind, parent = int(cells[0]), int(cells[1]), int(cells[6])
        lengths = [float(cell) for cell in cells[2:6]]
    except ValueError:
        raise _wrong("a column holds no number", at) from None
    if number < 0 or parent < -1:
        raise _wrong("the number of a node is negative", at)
    if abs(kind) >= 1 << 31:
        raise _wrong("a type is no small number", at)
    if not np.isfinite(lengths).all():
        raise _wrong("a position or radius is not finite", at)
    if lengths[3] <= 0:
        raise _wrong("a radius is not above 0", at)
    return number, kind, lengths, parent


def _wrong(what: str, line: int, got: str | None = None) -> InputError:
    return InputError(
        f"the SWC file cannot be used: {what}",
        where=f"line {line}",
        expected=f"{_COLUMNS}, parents first",
        got=got,
    )
