"""The tree as arrays, as branches, as a graph and as a document."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import InputError, StepError


def tree_of(parents, positions=None, **more):
    n = len(parents)
    line = np.stack([np.arange(n), np.zeros(n), np.zeros(n)], 1)
    given = {
        "voxels": line.astype(np.int64),
        "parents": np.array(parents, np.int64),
        "positions_mm": line if positions is None else np.array(positions, float),
        "radius_mm": np.ones(n),
        "area_radius_mm": np.full(n, np.nan),
        "structures": np.ones(n, np.int64),
        "affine": np.eye(4),
        "shape": (n, 1, 1),
    }
    return CenterlineTree(**(given | more))


@st.composite
def forests(draw):
    n = draw(st.integers(1, 40))
    return [draw(st.integers(-1, k - 1)) for k in range(n)]


def test_a_fork_by_hand():
    #      0 - 1 - 2 <  3 - 5
    #                   4
    tree = tree_of([-1, 0, 1, 2, 2, 3])
    assert tree.roots.tolist() == [0]
    assert tree.leaves.tolist() == [4, 5]
    assert tree.junctions.tolist() == [2]
    assert [b.nodes.tolist() for b in tree.branches] == [[0, 1, 2], [2, 3, 5], [2, 4]]
    assert [b.parent for b in tree.branches] == [-1, 0, 0]
    assert tree.branches[0].children == (1, 2)
    assert tree.branch_of.tolist() == [0, 0, 0, 1, 2, 1]
    assert tree.distance_mm.tolist() == [0, 1, 2, 3, 4, 5]  # 2-4 is 2 long, 3-5 too


def test_a_root_that_forks_starts_branches_without_a_parent():
    tree = tree_of([-1, 0, 0, -1])
    assert [b.parent for b in tree.branches] == [-1, -1]
    assert tree.tree_of.tolist() == [0, 0, 0, 1]
    assert tree.branch_of.tolist() == [0, 0, 1, -1]
    assert tree.leaves.tolist() == [1, 2]


@given(forests())
def test_branches_part_the_edges_of_any_forest(parents):
    tree = tree_of(parents)
    graph = nx.DiGraph((p, n) for n, p in enumerate(parents) if p >= 0)
    graph.add_nodes_from(range(len(parents)))
    edges = []
    for b in tree.branches:
        edges += list(zip(b.nodes[:-1].tolist(), b.nodes[1:].tolist(), strict=True))
        inside = b.nodes[1:-1].tolist()
        assert all(graph.degree(n) == 2 for n in inside)
        start, end = int(b.nodes[0]), int(b.nodes[-1])
        assert graph.in_degree(start) == 0 or graph.out_degree(start) > 1
        assert graph.out_degree(end) != 1
        assert b.parent < b.id
        assert all(tree.branches[c].nodes[0] == end for c in b.children)
        assert {tree.tree_of[n] for n in b.nodes} == {b.tree}
    assert sorted(edges) == sorted(graph.edges)
    assert len(tree.roots) == nx.number_weakly_connected_components(graph)
    for root in tree.roots.tolist():
        for n, hops in nx.single_source_shortest_path_length(graph, root).items():
            assert tree.tree_of[n] == tree.tree_of[root]
            assert hops == 0 or tree.distance_mm[n] >= hops  # voxels on a line, ids ascend


@given(forests())
def test_a_document_gives_the_tree_back(parents):
    n = len(parents)
    closes = [[0, n - 1]] if n > 1 and parents[-1] != 0 else []
    closing = np.array(closes, np.int64).reshape(-1, 2)
    tree = tree_of(parents, closing=closing, facts={"loops": 1})
    again = CenterlineTree.from_json(tree.to_json())
    for name in ("voxels", "parents", "positions_mm", "radius_mm", "area_radius_mm", "structures"):
        np.testing.assert_array_equal(getattr(again, name), getattr(tree, name))
    assert again.closing.tolist() == closes
    assert (again.shape, dict(again.facts)) == (tree.shape, {"loops": 1})
    assert again.to_json() == tree.to_json()


def test_networkx_reads_the_document():
    tree = tree_of([-1, 0, 1, 1], closing=np.array([[2, 3]]))
    graph = nx.node_link_graph(json.loads(tree.to_json()), edges="edges")
    assert graph.nodes[2]["position_mm"] == [2.0, 0.0, 0.0]
    assert graph.edges[2, 3]["closing"] is True
    graph.remove_edge(2, 3)
    assert nx.is_arborescence(graph)


@pytest.mark.parametrize(
    "document",
    [b"", b"\xff\x00", b"[]", b"{}", b'{"graph":{"format":"x","version":1}}', b'{"graph":null}'],
)
def test_other_documents_are_refused(document):
    with pytest.raises(InputError, match="no centerline"):
        CenterlineTree.from_json(document)


@pytest.mark.parametrize(
    ("parents", "more"),
    [
        ([], {}),
        ([0], {}),
        ([-1, 2, 1], {}),
        ([-1, -2], {}),
        ([-1, 0], {"radius_mm": np.ones(3)}),
        ([-1, 0], {"closing": np.array([[0, 2]])}),
        ([-1, 0], {"closing": np.array([[0, 1]])}),
    ],
)
def test_arrays_that_do_not_fit_are_refused(parents, more):
    with pytest.raises(StepError):
        tree_of(parents, **more)
