"""Trees as VTP: arrays by hand, our reader, VTK's reader, and a file of VMTK."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.centerline.polydata import read_centerline_vtp, tree_polydata, vtp_bytes_of
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError
from medpipe.io.vtp import PolyData, read_vtp, vtp_bytes


def tree_of(parents, **more):
    n = len(parents)
    rng = np.random.default_rng(n)
    fields = {
        "voxels": np.zeros((n, 3), np.int64),
        "parents": np.array(parents, np.int64),
        "positions_mm": rng.normal(0, 50, (n, 3)),
        "radius_mm": rng.uniform(0.5, 9, n),
        "area_radius_mm": np.where(np.arange(n) % 2, np.nan, 2.0),
        "structures": np.arange(n) + 1,
        "affine": np.eye(4),
        "shape": (1, 1, 1),
    }
    return CenterlineTree(**(fields | more))


#   0 - 1 - 2 <  3 - 4 <  5       8 - 9
#                7        6
FORKS = [-1, 0, 1, 2, 3, 4, 4, 2, -1, 8]


def test_the_arrays_of_two_forks_by_hand():
    tree = tree_of(FORKS, closing=np.array([[7, 6]]))
    assert [b.nodes.tolist() for b in tree.branches] == [
        [0, 1, 2], [2, 3, 4], [4, 5], [4, 6], [2, 7], [8, 9],
    ]  # fmt: skip
    mesh = tree_polydata(tree)
    assert [line.tolist() for line in mesh.lines] == [
        [0, 1, 2], [2, 3, 4], [4, 5], [4, 6], [2, 7], [8, 9], [7, 6],
    ]  # fmt: skip
    point = {name: values.tolist() for name, values in mesh.point_data.items()}
    assert point["BranchId"] == [0, 0, 0, 1, 1, 2, 3, 4, 5, 5]
    assert point["Generation"] == [0, 0, 0, 1, 1, 2, 2, 1, 0, 0]
    assert point["ParentId"] == FORKS
    assert point["Structure"] == list(range(1, 11))
    assert point["Radius"] == point["MaximumInscribedSphereRadius"] == tree.radius_mm.tolist()
    np.testing.assert_array_equal(mesh.point_data["AreaRadius"], tree.area_radius_mm)
    np.testing.assert_array_equal(mesh.point_data["Distance"], tree.distance_mm)
    cell = {name: values.tolist() for name, values in mesh.cell_data.items()}
    assert cell["BranchId"] == cell["GroupIds"] == [0, 1, 2, 3, 4, 5, -1]
    assert cell["ParentBranchId"] == [-1, 0, 1, 1, 0, -1, -1]
    assert cell["Generation"] == cell["TractIds"] == [0, 1, 2, 2, 1, 0, -1]
    assert cell["TreeId"] == [0, 0, 0, 0, 0, 1, 0]
    assert cell["Structure"] == [3, 5, 6, 7, 8, 10, 7]
    assert cell["Closing"] == cell["Blanking"] == [0, 0, 0, 0, 0, 0, 1]
    # the tips are 5, 6, 7, 9: the first behind the trunk and behind branch 1 is 5
    assert cell["CenterlineIds"] == [0, 0, 0, 1, 2, 3, -1]


@given(st.data())
def test_the_file_holds_the_tree(data):
    n = data.draw(st.integers(1, 30))
    tree = tree_of([data.draw(st.integers(-1, k - 1)) for k in range(n)])
    content = vtp_bytes_of(tree)
    assert content == vtp_bytes_of(tree)
    again = read_vtp(content)
    np.testing.assert_array_equal(again.points_mm, tree.positions_mm)
    np.testing.assert_array_equal(again.point_data["ParentId"], tree.parents)
    # the edges of the lines are those of the tree, each once
    edges = {(int(a), int(b)) for line in again.lines for a, b in pairwise(line)}
    assert edges == {(p, c) for c, p in enumerate(tree.parents.tolist()) if p >= 0}
    assert sum(len(line) - 1 for line in again.lines) == len(edges)


def test_our_lines_are_read_as_centerlines():
    tree = tree_of(FORKS)
    found = read_centerline_vtp(vtp_bytes_of(tree))
    np.testing.assert_array_equal(found.points_mm, tree.positions_mm)
    np.testing.assert_array_equal(found.radius_mm, tree.radius_mm)
    assert found.group_ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.centerline_ids.tolist() == [0, 0, 0, 1, 2, 3]
    assert found.blanking.tolist() == [0] * 6
    assert len(found.lines) == 6


def test_lines_without_arrays_are_read():
    mesh = PolyData(np.zeros((2, 3)), lines=[np.array([0, 1])])
    found = read_centerline_vtp(vtp_bytes(mesh))
    assert (found.radius_mm, found.group_ids, found.blanking) == (None, None, None)


def test_a_surface_is_no_centerline():
    mesh = PolyData(np.eye(3), triangles=np.array([[0, 1, 2]]))
    with pytest.raises(InputError, match="holds no lines"):
        read_centerline_vtp(vtp_bytes(mesh))


@pytest.mark.parametrize("compress", [True, False])
def test_vtk_reads_the_file(tmp_path, compress):
    vtk = pytest.importorskip("vtk")
    numpy_support = pytest.importorskip("vtk.util.numpy_support")
    tree = tree_of(FORKS)
    file = tmp_path / "tree.vtp"
    file.write_bytes(vtp_bytes_of(tree, compress=compress))
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(file))
    reader.Update()
    data = reader.GetOutput()
    points = numpy_support.vtk_to_numpy(data.GetPoints().GetData())
    np.testing.assert_array_equal(points, tree.positions_mm)
    assert data.GetNumberOfLines() == 6
    found = []
    for n in range(6):
        cell = data.GetCell(n)
        found.append([cell.GetPointId(k) for k in range(cell.GetNumberOfPoints())])
    assert found == [b.nodes.tolist() for b in tree.branches]
    mesh = tree_polydata(tree)
    for group, arrays in (
        (data.GetPointData(), mesh.point_data),
        (data.GetCellData(), mesh.cell_data),
    ):
        assert group.GetNumberOfArrays() == len(arrays)
        for name, values in arrays.items():
            np.testing.assert_array_equal(
                numpy_support.vtk_to_numpy(group.GetArray(name)), values, err_msg=name
            )
    assert data.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "RAS"


@pytest.mark.real_data
def test_centerlines_of_vmtk_are_read(real_data):
    found = read_centerline_vtp(real_data / "vessels/vmtk_aorta-centerline.vtp", assume_space="LPS")
    assert [len(line) for line in found.lines] == [211, 198]  # one to each iliac artery
    assert found.points_mm.shape == (409, 3)
    # the aorta and iliac arteries of an adult
    assert 2 < found.radius_mm.min() < found.radius_mm.max() < 12
    assert found.group_ids is None
    pieces = read_centerline_vtp(
        real_data / "vessels/vmtk_aorta-centerline-branches.vtp", assume_space="LPS"
    )
    # aorta, bifurcation and one iliac artery, for each of the two centerlines
    assert pieces.centerline_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert pieces.group_ids.tolist() == [0, 1, 2, 0, 1, 3]
    assert pieces.blanking.tolist() == [0, 1, 0, 0, 1, 0]
    with pytest.raises(InputError, match="RAS or LPS"):
        read_centerline_vtp(real_data / "vessels/vmtk_aorta-centerline.vtp")
