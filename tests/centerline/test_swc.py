"""SWC: the file of a fork by hand, round trips, and files that are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.centerline.swc import read_swc, swc_bytes
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError, UsageError


def tree_of(parents, **more):
    n = len(parents)
    rng = np.random.default_rng(n)
    fields = {
        "voxels": np.zeros((n, 3), np.int64),
        "parents": np.array(parents, np.int64),
        "positions_mm": rng.normal(0, 50, (n, 3)),
        "radius_mm": rng.uniform(0.5, 9, n),
        "area_radius_mm": np.full(n, np.nan),
        "structures": np.ones(n, np.int64),
        "affine": np.diag([0.6, 0.8, 3, 1.0]),
        "shape": (1, 1, 1),
    }
    return CenterlineTree(**(fields | more))


@st.composite
def parents_of_a_forest(draw):
    n = draw(st.integers(1, 40))
    return [draw(st.integers(-1, k - 1)) for k in range(n)]


def body(content: bytes) -> list[str]:
    return [line for line in content.decode().splitlines() if not line.startswith("#")]


def test_a_fork_and_a_second_tree_by_hand():
    #   0 - 1 <  2        4 - 5
    #            3
    tree = tree_of(
        [-1, 0, 1, 1, -1, 4],
        positions_mm=np.array(
            [[0, 0, 0], [1, 0, -2.5], [2, 1, 0], [2, -1, 0], [9, 9, 9], [9, 9, 10.123456]]
        ),
        radius_mm=np.array([3, 2, 1, 1.25, 0.5, 0.5]),
        structures=np.array([1, 1, 1, 1, 7, 7]),
    )
    content = swc_bytes(tree)
    assert body(content) == [
        "1 0 0.00000 0.00000 0.00000 3.00000 -1",
        "2 5 1.00000 0.00000 -2.50000 2.00000 1",
        "3 6 2.00000 1.00000 0.00000 1.00000 2",
        "4 6 2.00000 -1.00000 0.00000 1.25000 2",
        "5 0 9.00000 9.00000 9.00000 0.50000 -1",
        "6 6 9.00000 9.00000 10.12346 0.50000 5",
    ]
    head = content.decode().split("\n1 0")[0]
    assert "mm (not um)" in head
    assert "RAS+" in head
    assert "# tree 1: structure 7, root 5" in head
    # one tree of a file of its own is numbered from 1
    assert body(swc_bytes(tree, only=1)) == [
        "1 0 9.00000 9.00000 9.00000 0.50000 -1",
        "2 6 9.00000 9.00000 10.12346 0.50000 1",
    ]
    assert "# tree 1: structure 7, root 1" in swc_bytes(tree, only=1).decode()


@given(parents_of_a_forest())
def test_what_is_written_is_read_again(parents):
    tree = tree_of(parents)
    content = swc_bytes(tree)
    assert content == swc_bytes(tree)
    nodes = read_swc(content)
    np.testing.assert_array_equal(nodes.parents, tree.parents)
    np.testing.assert_allclose(nodes.points_mm, tree.positions_mm, atol=0.5001e-5)
    np.testing.assert_allclose(nodes.radius_mm, tree.radius_mm, atol=0.5001e-5)
    assert np.flatnonzero(nodes.types == 6).tolist() == tree.leaves.tolist()
    assert np.flatnonzero(nodes.types == 5).tolist() == tree.junctions.tolist()


@given(parents_of_a_forest())
def test_the_trees_of_a_forest_are_its_files(parents):
    tree = tree_of(parents)
    found = [read_swc(swc_bytes(tree, only=n)) for n in range(len(tree.roots))]
    assert sum(len(f.parents) for f in found) == len(tree)
    for n, one in enumerate(found):
        assert (one.parents < 0).sum() == 1
        np.testing.assert_allclose(
            one.points_mm, tree.positions_mm[tree.tree_of == n], atol=0.5001e-5
        )


@pytest.mark.parametrize("unusable", [0.0, -1.0, np.nan, np.inf, 1e-9])
def test_every_radius_is_above_zero(unusable):
    tree = tree_of([-1, 0], radius_mm=np.array([unusable, 2.0]))
    # half the smallest of the edges 0.6, 0.8 and 3 mm
    assert read_swc(swc_bytes(tree)).radius_mm.tolist() == [0.3, 2.0]


def test_the_area_radius_falls_back_to_the_inscribed_one():
    tree = tree_of([-1, 0], radius_mm=np.array([1.0, 2.0]), area_radius_mm=np.array([np.nan, 2.5]))
    assert read_swc(swc_bytes(tree, radius="area")).radius_mm.tolist() == [1.0, 2.5]
    assert read_swc(swc_bytes(tree)).radius_mm.tolist() == [1.0, 2.0]


def test_edges_that_close_loops_are_counted_where_both_ends_are_written():
    tree = tree_of([-1, 0, 0, -1], closing=np.array([[1, 2], [2, 3]]))
    assert "left out: 2" in swc_bytes(tree).decode()
    assert "left out: 1" in swc_bytes(tree, only=0).decode()
    assert "left out" not in swc_bytes(tree, only=1).decode()


@pytest.mark.parametrize("wrong", [{"only": 1}, {"only": -1}, {"radius": "mean"}])
def test_what_is_not_there_cannot_be_written(wrong):
    with pytest.raises(UsageError):
        swc_bytes(tree_of([-1, 0]), **wrong)


def test_a_file_of_another_program_is_read(tmp_path):
    file = tmp_path / "neuron.swc"
    file.write_bytes(
        b"# caf\xe9, in um\r\n\r\n 10 1 1000 0 0 500 -1 \r\n7\t3\t2000\t0\t-1e3\t2.5\t10\r\n"
    )
    nodes = read_swc(file, mm_per_unit=1e-3)
    assert nodes.types.tolist() == [1, 3]
    assert nodes.parents.tolist() == [-1, 0]
    np.testing.assert_allclose(nodes.points_mm, [[1, 0, 0], [2, 0, -1]])
    np.testing.assert_allclose(nodes.radius_mm, [0.5, 0.0025])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("1 0 0 0 0 1", "line 1: the SWC file cannot be used: a line has another number of col"),
        ("# x\n1 0 0 0 0 1 -1 4", "line 2"),
        ("1 0 a 0 0 1 -1", "no number"),
        ("1 0 1_0 0 0 1 -1", "no number"),
        ("1.0 0 0 0 0 1 -1", "no number"),
        ("1 0 nan 0 0 1 -1", "not finite"),
        ("1 0 0 0 0 inf -1", "not finite"),
        ("1 0 0 0 0 0 -1", "not above 0"),
        ("1 0 0 0 0 1 -1\n1 0 0 0 0 1 -1", "line 2: .* used twice"),
        ("2 0 0 0 0 1 1\n1 0 0 0 0 1 -1", "line 1: .* before its child"),
        ("1 0 0 0 0 1 1", "before its child"),
        ("1 0 0 0 0 1 -2", "negative"),
        ("-3 0 0 0 0 1 -1", "negative"),
        ("1 99999999999999999999 0 0 0 1 -1", "type"),
        ("# nothing\n", "holds no nodes"),
        ("", "holds no nodes"),
    ],
)
def test_files_that_are_refused(content, says):
    with pytest.raises(InputError, match=says) as caught:
        read_swc(content.encode())
    assert "\n" not in str(caught.value)


def test_an_error_does_not_repeat_the_file():
    with pytest.raises(InputError) as caught:
        read_swc(b"1 0 MILLER^ANNA 0 0 1 -1")
    assert "MILLER" not in str(caught.value)
