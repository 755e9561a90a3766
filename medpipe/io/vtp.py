"""Meshes and lines as VTK XML PolyData (.vtp), written and read without VTK.

Points are in RAS+ mm, as everywhere in medpipe. The file says so in the field
``SPACE`` (``RAS``), which 3D Slicer obeys; without it Slicer takes LPS. ParaView
and other viewers show the numbers as they are.

The bytes are deterministic: little endian, inline base64, 32-bit headers, zlib
blocks unless turned off, and no time, program or user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from medpipe.errors import InputError, StepError
from medpipe.io.safe_xml import parse_xml, read_limited
from medpipe.io.vtk_arrays import Coding, array_xml, host_array

__all__ = ["PolyData", "read_vtp", "vtp_bytes"]

MAX_BYTES = 1 << 30

_RAS = (
    '<FieldData>\n<Array type="String" Name="SPACE" NumberOfTuples="1" format="ascii">\n'
    "82 65 83 0\n</Array>\n</FieldData>\n"
)
_RAW = re.compile(rb"<AppendedData[^>]{0,200}encoding\s{0,9}=\s{0,9}[\"']raw[\"']")


@dataclass(frozen=True, eq=False)
class PolyData:
    """Points with lines, triangles and quadrilaterals.

    Parameters
    ----------
    points_mm : array, shape (N, 3), float32 or float64
        RAS+ mm.
    lines : sequence of integer arrays
        Each a chain of two or more points.
    triangles, quads : integer arrays, shape (T, 3) and (Q, 4)
        Indices of points, counter-clockwise as seen from outside.
    point_data, cell_data : dict of str → array (N,) or (N, components)
        Values of the points, and of the cells in the order lines, triangles, quads.

    Notes
    -----
    Tensors on any device are taken as well and become arrays.
    """

    points_mm: NDArray[Any]
    triangles: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 3), np.int64))
    quads: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 4), np.int64))
    lines: Sequence[NDArray[np.int64]] = ()
    point_data: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    cell_data: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        points = host_array(self.points_mm)
        if points.dtype not in (np.float32, np.float64):
            points = points.astype(np.float64)
        values = {
            "points_mm": points,
            "triangles": host_array(self.triangles),
            "quads": host_array(self.quads),
            "lines": tuple(host_array(line) for line in self.lines),
            "point_data": {k: host_array(v) for k, v in self.point_data.items()},
            "cell_data": {k: host_array(v) for k, v in self.cell_data.items()},
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def problem(self) -> str | None:
        """Say what does not fit together, or return None."""
        if self.points_mm.ndim != 2 or self.points_mm.shape[1] != 3:
            return f"points have the shape {self.points_mm.shape}, not (N, 3)"
        if not np.isfinite(self.points_mm).all():
            return "a point is not finite"
        count = len(self.points_mm)
        for cells, corners in ((self.triangles, 3), (self.quads, 4)):
            if cells.ndim != 2 or cells.shape[1] != corners or cells.dtype.kind not in "iu":
                return f"cells are not integers of shape (n, {corners})"
        if any(c.ndim != 1 or len(c) < 2 or c.dtype.kind not in "iu" for c in self.lines):
            return "a line is not two or more integers"
        if any(c.size and (c.min() < 0 or c.max() >= count) for c in self._cells()):
            return "a cell names a point that is not there"
        n_cells = len(self.lines) + len(self.triangles) + len(self.quads)
        for arrays, length in ((self.point_data, count), (self.cell_data, n_cells)):
            if any(a.ndim not in (1, 2) or len(a) != length for a in arrays.values()):
                return "an array has another length than what it belongs to"
        return None

    def _cells(self) -> Iterator[NDArray[np.int64]]:
        yield from (self.triangles, self.quads, *self.lines)


def vtp_bytes(mesh: PolyData, *, compress: bool = True) -> bytes:
    """Return a mesh as the content of a ``.vtp`` file.

    Parameters
    ----------
    mesh : PolyData
    compress : bool
        Whether arrays are compressed with zlib.

    Raises
    ------
    StepError
        If the parts of the mesh do not fit together, or an array has a type that
        the format does not know.
    """
    if problem := mesh.problem():
        raise StepError("the mesh cannot be written", got=problem)
    polygons = (mesh.triangles, mesh.quads)
    compressor = ' compressor="vtkZLibDataCompressor"' if compress else ""
    counts = (
        f'NumberOfPoints="{len(mesh.points_mm)}" NumberOfVerts="0" '
        f'NumberOfLines="{len(mesh.lines)}" NumberOfStrips="0" '
        f'NumberOfPolys="{sum(map(len, polygons))}"'
    )
    lengths = np.repeat([3, 4], [len(cells) for cells in polygons])
    body = [
        _group("PointData", mesh.point_data, compress),
        _group("CellData", mesh.cell_data, compress),
        _group("Points", {"Points": mesh.points_mm}, compress),
        _cells("Lines", list(mesh.lines), [len(c) for c in mesh.lines], compress),
        _cells("Polys", [cells.reshape(-1) for cells in polygons], lengths, compress),
    ]
    text = (
        '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="0.1" '
        f'byte_order="LittleEndian" header_type="UInt32"{compressor}>\n<PolyData>\n{_RAS}'
        f"<Piece {counts}>\n{''.join(body)}</Piece>\n</PolyData>\n</VTKFile>\n"
    )
    return text.encode()


def _group(tag: str, arrays: Mapping[str, NDArray[Any]], compress: bool) -> str:
    inside = "".join(array_xml(name, a, compress=compress) for name, a in arrays.items())
    return f"<{tag}>\n{inside}</{tag}>\n"


def _cells(
    tag: str,
    cells: Sequence[NDArray[np.int64]],
    lengths: Sequence[int] | NDArray[Any],
    compress: bool,
) -> str:
    """Return cells as their points in a row and where each cell ends."""
    points = np.concatenate([np.empty(0, np.int64), *cells])
    ends = np.cumsum(np.asarray(lengths, np.int64))
    small = max(len(points), points.max(initial=0)) < 1 << 31
    dtype = np.int32 if small else np.int64
    arrays = {"connectivity": points.astype(dtype), "offsets": ends.astype(dtype)}
    return _group(tag, arrays, compress)


def read_vtp(
    source: bytes | str | Path, *, assume_space: str | None = None, max_bytes: int = MAX_BYTES
) -> PolyData:
    """Read a ``.vtp`` file, of medpipe or another program, as RAS+ mm.

    Points and arrays that are declared as vectors or normals are turned when the
    file is in LPS. Arrays of texts, vertices without a line and triangle strips are
    not read.

    Parameters
    ----------
    source : bytes or path
        The content of the file, or where it is.
    assume_space : {"RAS", "LPS"}, optional
        Orientation of a file that does not state one.
    max_bytes : int
        Largest file, and largest array in it.

    Raises
    ------
    InputError
        If the file cannot be read, is no PolyData of one piece, or does not state
        its orientation while `assume_space` is not given.
    """
    content = read_limited(source, "VTP file", max_bytes)
    if _RAW.search(content):
        raise InputError(
            "the VTP file holds raw appended data, which is no XML",
            hint="save it with inline or base64 data",
        )
    root = parse_xml(content, "VTP file", max_elements=100_000)
    pieces = root.findall("PolyData/Piece")
    if root.tag != "VTKFile" or root.get("type") != "PolyData" or len(pieces) != 1:
        raise InputError("the file is no VTP file", expected="VTKFile PolyData with one piece")
    coding = Coding.of(root, max_bytes)
    sign = _sign(root, coding, assume_space)
    return _Piece(pieces[0], coding, sign).mesh()


def _sign(root: Element, coding: Coding, assumed: str | None) -> int:
    """Return what x and y are multiplied with to be RAS."""
    stated = assumed
    for element in root.iterfind("PolyData/FieldData/Array"):
        if element.get("Name") == "SPACE":
            stated = coding.read(element).tobytes().partition(b"\0")[0].decode("latin-1")
    if stated not in ("RAS", "LPS"):
        raise InputError(
            "the VTP file does not say whether it is in RAS or LPS",
            expected="the field SPACE with RAS or LPS",
            hint="say which it is with assume_space",
        )
    return 1 if stated == "RAS" else -1


class _Piece:
    """Reads the one piece of a file."""

    def __init__(self, element: Element, coding: Coding, sign: int) -> None:
        self.element, self.coding, self.sign = element, coding, sign
        for tag in ("Verts", "Strips"):
            if self._count(f"NumberOf{tag}"):
                raise InputError(
                    "the VTP file holds cells that are not read",
                    expected="lines, triangles and quadrilaterals",
                    hint="triangulate the mesh",
                )

    def mesh(self) -> PolyData:
        n_points, n_lines = self._count("NumberOfPoints"), self._count("NumberOfLines")
        n_polygons = self._count("NumberOfPolys")
        points = self.element.find("Points/DataArray")
        coordinates = np.empty((0, 3)) if points is None else self._values(points, n_points)
        polygons, ends = self._cells("Polys", n_polygons)
        corners = np.diff(ends, prepend=0)
        if np.any((corners != 3) & (corners != 4)):
            raise InputError(
                "the VTP file holds polygons that are not read",
                expected="triangles and quadrilaterals",
                hint="triangulate the mesh",
            )
        three, four = np.flatnonzero(corners == 3), np.flatnonzero(corners == 4)
        order = np.concatenate([np.arange(n_lines), n_lines + three, n_lines + four])
        n_cells = n_lines + n_polygons
        cell_data = self._arrays("CellData", n_cells)
        mesh = PolyData(
            points_mm=self._turned(coordinates),
            triangles=polygons[ends[three, None] - np.arange(3, 0, -1)],
            quads=polygons[ends[four, None] - np.arange(4, 0, -1)],
            lines=self._lines(n_lines),
            point_data=self._arrays("PointData", n_points),
            cell_data={name: values[order] for name, values in cell_data.items()},
        )
        if problem := mesh.problem():
            raise InputError("the VTP file cannot be used", got=problem)
        return mesh

    def _count(self, name: str) -> int:
        text = self.element.get(name, "0").strip()
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            raise InputError("the VTP file has a count that is no number")
        return int(text)

    def _values(self, element: Element, length: int) -> NDArray[Any]:
        """Return an array of the given length, (length,) or (length, components)."""
        values = self.coding.read(element)
        text = element.get("NumberOfComponents", "1").strip()
        components = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
        if components < 1 or values.size != length * components:
            raise InputError(
                "the VTP file cannot be used: an array has another length than what it belongs to"
            )
        return values.reshape(length, components) if components > 1 else values

    def _arrays(self, tag: str, length: int) -> dict[str, NDArray[Any]]:
        group = self.element.find(tag)
        if group is None:
            return {}
        turned = {group.get("Normals"), group.get("Vectors")}
        found = {}
        for element in group.iterfind("DataArray"):
            name, values = element.get("Name", ""), self._values(element, length)
            found[name] = self._turned(values) if name in turned else values
        return found

    def _turned(self, values: NDArray[Any]) -> NDArray[Any]:
        if self.sign < 0 and values.ndim == 2 and values.shape[1] == 3:
            values = values * np.array([-1, -1, 1], values.dtype)
        return values

    def _lines(self, count: int) -> list[NDArray[np.int64]]:
        points, ends = self._cells("Lines", count)
        return np.split(points, ends[:-1]) if count else []

    def _cells(self, tag: str, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the points of all cells in a row, and where each cell ends."""
        found = {e.get("Name"): e for e in self.element.iterfind(f"{tag}/DataArray")}
        if count == 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if not {"connectivity", "offsets"} <= found.keys():
            raise InputError("the VTP file cannot be used: its cells are not described")
        points = self.coding.read(found["connectivity"]).astype(np.int64)
        ends = self._values(found["offsets"], count).astype(np.int64)
        if ends.min() < 0 or np.any(np.diff(ends) < 0) or ends[-1] != len(points):
            raise InputError("the VTP file cannot be used: its cells do not follow each other")
        return points, ends
