"""VTP meshes: our own round trip, VTK's reader and writer, and files that must not be read."""

from __future__ import annotations

import base64
import contextlib
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.errors import InputError, StepError
from medpipe.io.safe_xml import parse_xml
from medpipe.io.vtp import PolyData, read_vtp, vtp_bytes


def house(dtype: type = np.float64) -> PolyData:
    """A cube's side, a roof of two triangles and two lines, with data of every kind."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 3)).astype(dtype)
    return PolyData(
        points,
        triangles=np.array([[0, 1, 4], [1, 2, 5]]),
        quads=np.array([[0, 1, 2, 3]]),
        lines=[np.array([6, 7, 8]), np.array([0, 8])],
        point_data={
            "thickness_um": rng.normal(size=9),
            "normal": rng.normal(size=(9, 3)).astype(np.float32),
            "valid": np.arange(9) % 2 == 0,
        },
        cell_data={"layer & <rest>": np.arange(5, dtype=np.int16), "id": np.arange(5)},
    )


def assert_same(a: PolyData, b: PolyData) -> None:
    assert a.points_mm.dtype == b.points_mm.dtype
    np.testing.assert_array_equal(a.points_mm, b.points_mm)
    np.testing.assert_array_equal(a.triangles, b.triangles)
    np.testing.assert_array_equal(a.quads, b.quads)
    assert [list(x) for x in a.lines] == [list(x) for x in b.lines]
    for left, right in ((a.point_data, b.point_data), (a.cell_data, b.cell_data)):
        assert list(left) == list(right)
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(compress: bool, dtype: type) -> None:
    mesh = house(dtype)
    content = vtp_bytes(mesh, compress=compress)
    assert content == vtp_bytes(house(dtype), compress=compress)
    again = read_vtp(content)
    assert_same(again, mesh)
    assert again.point_data["normal"].dtype == np.float32
    assert again.cell_data["layer & <rest>"].dtype == np.int16
    assert again.point_data["valid"].dtype == np.uint8


@given(st.integers(0, 400_000), st.booleans())
@settings(max_examples=12, deadline=None)
def test_arrays_of_any_size_survive_their_blocks(size: int, compress: bool) -> None:
    values = np.arange(size, dtype=np.float64)
    mesh = PolyData(np.zeros((size, 3), np.float32), point_data={"v": values})
    again = read_vtp(vtp_bytes(mesh, compress=compress))
    np.testing.assert_array_equal(again.point_data["v"], values)
    assert len(again.triangles) == len(again.quads) == len(again.lines) == 0


def test_the_file_holds_what_the_format_says() -> None:
    """Read by hand: structure, byte order, header and field, without our reader."""
    points = np.array([[1.5, 2, 3], [4, 5, 6], [7, 8, 9.25]])
    mesh = PolyData(points, triangles=np.array([[0, 1, 2]]))
    root = parse_xml(vtp_bytes(mesh, compress=False), "file")
    assert root.attrib == {
        "type": "PolyData",
        "version": "0.1",
        "byte_order": "LittleEndian",
        "header_type": "UInt32",
    }
    space = root.find("PolyData/FieldData/Array")
    assert space is not None
    assert (space.get("Name"), space.get("type")) == ("SPACE", "String")
    assert bytes(map(int, (space.text or "").split())) == b"RAS\0"
    piece = root.find("PolyData/Piece")
    assert piece is not None
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfPolys")) == ("3", "1")
    text = piece.findtext("Points/DataArray") or ""
    raw = base64.b64decode(text.strip(), validate=True)
    assert struct.unpack("<I9d", raw) == (72, *points.ravel())
    packed = parse_xml(vtp_bytes(mesh), "file").findtext("PolyData/Piece/Points/DataArray") or ""
    blocks, size, last, length = struct.unpack("<4I", base64.b64decode(packed.strip()[:24])[:16])
    assert (blocks, last) == (1, 72)
    assert size >= 72
    block = base64.b64decode(packed.strip()[24:], validate=True)
    assert len(block) == length
    assert zlib.decompress(block) == raw[4:]


def test_tensors_are_taken_as_they_are() -> None:
    mesh = PolyData(torch.rand(4, 3), triangles=torch.tensor([[0, 1, 2], [1, 2, 3]]))
    assert_same(read_vtp(vtp_bytes(mesh)), mesh)
    assert mesh.points_mm.dtype == np.float32


@pytest.mark.parametrize("compress", [True, False])
def test_vtk_reads_what_we_write(compress: bool, tmp_path: Path) -> None:
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    mesh = house()
    path = tmp_path / "m.vtp"
    path.write_bytes(vtp_bytes(mesh, compress=compress))
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(path))
    reader.Update()
    data = reader.GetOutput()
    np.testing.assert_array_equal(vtk_to_numpy(data.GetPoints().GetData()), mesh.points_mm)
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "RAS"
    cells = [
        [data.GetCell(i).GetPointId(j) for j in range(data.GetCell(i).GetNumberOfPoints())]
        for i in range(data.GetNumberOfCells())
    ]
    assert cells == [[6, 7, 8], [0, 8], [0, 1, 4], [1, 2, 5], [0, 1, 2, 3]]
    for arrays, ours in (
        (data.GetPointData(), mesh.point_data),
        (data.GetCellData(), mesh.cell_data),
    ):
        for name, values in ours.items():
            np.testing.assert_array_equal(vtk_to_numpy(arrays.GetArray(name)), values)


@pytest.mark.parametrize("mode", ["Ascii", "Binary", "Appended"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("space", ["RAS", "LPS", None])
@pytest.mark.parametrize("big", [True, False])
def test_we_read_what_vtk_writes(mode: str, packed: bool, space: str | None, big: bool) -> None:
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    source = vtk.vtkSphereSource()
    source.SetThetaResolution(40)
    source.SetPhiResolution(30)
    source.SetCenter(1, 2, 3)
    source.Update()
    data = source.GetOutput()
    if space:
        field = vtk.vtkStringArray()
        field.SetName("SPACE")
        field.InsertNextValue(space)
        data.GetFieldData().AddArray(field)
    writer = vtk.vtkXMLPolyDataWriter()
    writer.SetInputData(data)
    getattr(writer, f"SetDataModeTo{mode}")()
    if big:
        writer.SetByteOrderToBigEndian()
        writer.SetHeaderTypeToUInt64()
    if not packed:
        writer.SetCompressorTypeToNone()
    writer.WriteToOutputStringOn()
    writer.Write()
    content = writer.GetOutputString().encode()
    if space is None:
        with pytest.raises(InputError, match=r"RAS or LPS.*assume_space"):
            read_vtp(content)
    mesh = read_vtp(content, assume_space=None if space else "LPS")
    turn = np.array([1, 1, 1] if space == "RAS" else [-1, -1, 1])
    tolerance = 1e-6 if mode == "Ascii" else 0
    points = vtk_to_numpy(data.GetPoints().GetData()) * turn
    np.testing.assert_allclose(mesh.points_mm, points, rtol=0, atol=tolerance)
    normals = vtk_to_numpy(data.GetPointData().GetNormals()) * turn
    np.testing.assert_allclose(mesh.point_data["Normals"], normals, rtol=0, atol=tolerance)
    polygons = vtk_to_numpy(data.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    np.testing.assert_array_equal(mesh.triangles, polygons)


def test_polygons_in_any_order_keep_their_data() -> None:
    content = vtp_bytes(
        PolyData(
            np.eye(4, 3),
            triangles=np.array([[0, 1, 2]]),
            quads=np.array([[0, 1, 2, 3]]),
            lines=[np.array([0, 1])],
            cell_data={"v": np.array([10, 20, 30])},
        ),
        compress=False,
    ).decode()
    polys = (
        "<Polys><DataArray type='Int8' Name='connectivity'>3 2 1 0 1 2 3</DataArray>"
        "<DataArray type='Int8' Name='offsets'>4 7</DataArray></Polys>"
    )
    mesh = read_vtp(re.sub(r"(?s)<Polys>.*</Polys>", polys, content).encode())
    assert mesh.quads.tolist() == [[3, 2, 1, 0]]
    assert mesh.triangles.tolist() == [[1, 2, 3]]
    assert mesh.cell_data["v"].tolist() == [10, 30, 20]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"points_mm": np.zeros((3, 2))}, "not (N, 3)"),
        ({"points_mm": np.full((3, 3), np.nan)}, "a point is not finite"),
        ({"triangles": np.array([[0, 1, 3]])}, "a cell names a point that is not there"),
        ({"triangles": np.array([[0, 1, -1]])}, "a cell names a point that is not there"),
        ({"triangles": np.array([[0.0, 1, 2]])}, "not integers of shape (n, 3)"),
        ({"quads": np.array([[0, 1, 2]])}, "not integers of shape (n, 4)"),
        ({"lines": [np.array([0])]}, "a line is not two or more integers"),
        ({"point_data": {"v": np.zeros(2)}}, "another length than what it belongs to"),
        ({"cell_data": {"v": np.zeros(3)}}, "another length than what it belongs to"),
        ({"point_data": {"v": np.zeros(3, complex)}}, "got complex128, shape (3,)"),
        ({"point_data": {"v": np.array(["a", "b", "c"])}}, "cannot be written"),
        ({"point_data": {"a\nb": np.zeros(3)}}, "no printable text"),
        ({"point_data": {"": np.zeros(3)}}, "no printable text"),
    ],
)
def test_a_mesh_that_does_not_fit_together_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(StepError) as caught:
        vtp_bytes(PolyData(**({"points_mm": np.zeros((3, 3))} | parts)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


GOOD = vtp_bytes(house(), compress=False)
PACKED = vtp_bytes(house())


def broken(old: str, new: str, content: bytes = GOOD) -> bytes:
    assert re.search(old, content.decode(), re.DOTALL)
    return re.sub(old, new, content.decode(), count=1, flags=re.DOTALL).encode()


def points_xml(body: str) -> bytes:
    """Return a file whose points are the given packed array."""
    return broken(
        r"<Points>.*?</Points>",
        "<Points><DataArray type='Float64' Name='Points' NumberOfComponents='3' format='binary'>"
        f"{body}</DataArray></Points>",
        PACKED,
    )


def lengths(*values: int) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}I", *values)).decode()


BOMB = zlib.compress(bytes(1 << 22))

BAD = {
    "empty": (b"", "no well-formed XML"),
    "text": (b"ZZCANARY", "no well-formed XML"),
    "binary": (bytes(range(256)), "no well-formed XML"),
    "cut short": (GOOD[: len(GOOD) // 2], "no well-formed XML"),
    "another root": (b"<a/>", "is no VTP file"),
    "another type": (broken("PolyData", "ImageData"), "is no VTP file"),
    "two pieces": (broken("(<Piece .*</Piece>)", r"\1\1"), "one piece"),
    "doctype": (
        b'<!DOCTYPE a [<!ENTITY b "ZZCANARY">]><VTKFile>&b;</VTKFile>',
        "declares a document type or entities",
    ),
    "outer entity": (
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><VTKFile/>',
        "declares a document type or entities",
    ),
    "unknown entity": (b"<VTKFile>&ZZCANARY;</VTKFile>", "no well-formed XML"),
    "unknown encoding": (b'<?xml version="1.0" encoding="ZZCANARY"?><a/>', "XML|encoding"),
    "deep": (b"<a>" * 100 + b"</a>" * 100, "nested too deeply"),
    "many elements": (b"<a>" + b"<b/>" * 100_001 + b"</a>", "too many elements"),
    "raw data": (broken("</VTKFile>", '<AppendedData encoding="raw">_x</AppendedData>'), "raw"),
    "lz4": (broken("vtkZLibDataCompressor", "vtkLZ4DataCompressor", PACKED), "compressed in a"),
    "no space": (broken("<FieldData>.*</FieldData>", ""), "RAS or LPS"),
    "odd space": (broken("82 65 83 0", "90 90 0"), "RAS or LPS"),
    "strips": (broken('NumberOfStrips="0"', 'NumberOfStrips="2"'), "cells that are not read"),
    "odd count": (broken('NumberOfPoints="9"', 'NumberOfPoints="ZZCANARY"'), "no number"),
    "huge count": (broken('NumberOfPoints="9"', 'NumberOfPoints="999999999"'), "another length"),
    "more cells": (broken('NumberOfPolys="3"', 'NumberOfPolys="4"'), "another length"),
    "pentagon": (
        broken("<Polys>.*</Polys>", "<Polys><DataArray type='Int8' Name='connectivity'>0 1 2 3 4 5"
               " 6 7 8 0 1</DataArray><DataArray type='Int8' Name='offsets'>5 8 11</DataArray>"
               "</Polys>"),
        "polygons that are not read",
    ),
    "cells that overlap": (
        broken("<Polys>.*</Polys>", "<Polys><DataArray type='Int8' Name='connectivity'>0 1 2"
               "</DataArray><DataArray type='Int8' Name='offsets'>3 0 3</DataArray></Polys>"),
        "do not follow each other",
    ),
    "no connectivity": (broken("<Polys>.*</Polys>", "<Polys/>"), "cells are not described"),
    "a point that is not there": (
        broken("<Lines>.*</Lines>", "<Lines><DataArray type='Int8' Name='connectivity'>0 1 2 99 4"
               "</DataArray><DataArray type='Int8' Name='offsets'>3 5</DataArray></Lines>"),
        "a cell names a point that is not there",
    ),
    "unknown type": (broken('type="Float64" Name="Points"', 'type="ZZ"'), "unknown type"),
    "no components": (broken('NumberOfComponents="3"', 'NumberOfComponents="x"'), "another length"),
    "unknown format": (broken('format="binary"', 'format="ZZ"'), "unknown format"),
    "no offset": (broken('format="binary"', 'format="appended"'), "where it begins"),
    "nothing appended": (broken('format="binary"', 'format="appended" offset="9"'), "cut short"),
    "no base64": (points_xml("*" * 40), "no base64"),
    "cut array": (points_xml(lengths(1, 216, 0, 500)), "cut short"),
    "cut header": (points_xml(lengths(9, 8, 0)), "cut short"),
    "no zlib": (points_xml(lengths(1, 216, 0, 8) + "ZZZZZZZZZZZ="), "are damaged"),
    "bomb": (
        points_xml(lengths(1, 216, 0, len(BOMB)) + base64.b64encode(BOMB).decode()),
        "another size than it declares",
    ),
    "huge blocks": (points_xml(lengths(1 << 20, 1 << 20, 0)), "too large"),
    "no numbers": (broken("82 65 83 0", "82 ZZCANARY"), "no number"),
    "not finite": (
        broken("<Points>.*</Points>", "<Points><DataArray type='Float64' NumberOfComponents='3'>"
               + "nan " * 27 + "</DataArray></Points>"),
        "a point is not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_line_that_names_the_cause(name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(InputError) as caught:
        read_vtp(content)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert "CANARY" not in text


def test_files_are_read_from_disk_with_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "ZZCANARY.vtp"
    with pytest.raises(InputError) as caught:
        read_vtp(path)
    assert "CANARY" not in str(caught.value)
    path.write_bytes(GOOD)
    assert_same(read_vtp(path), house())
    with pytest.raises(InputError, match="is too large; expected at most 100 bytes"):
        read_vtp(path, max_bytes=100)
    with pytest.raises(InputError, match="not a regular file"):
        read_vtp(tmp_path)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_never_escapes_as_another_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([GOOD, PACKED])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(32, 126))
    with contextlib.suppress(InputError):
        read_vtp(bytes(content))
