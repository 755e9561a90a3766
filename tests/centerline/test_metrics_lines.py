"""Points joined by lines: tips, cycles, ways to the root, samples, and exact distances."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpipe.centerline.metrics.distances import distance_to_lines_mm, weighted_percentile
from medpipe.centerline.metrics.line_graph import LineGraph
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import UsageError


def random_graph(seed: int) -> LineGraph:
    """A forest with some edges more, some points alone and edges of many lengths."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    parents = np.array([-1] + [rng.integers(-1, k) for k in range(1, n)])
    extra = rng.integers(0, n, (int(rng.integers(0, 4)), 2))
    points = rng.normal(0, 1, (n, 3)) * rng.choice([0.1, 1, 20], (n, 1))
    return LineGraph.of_parents(points, parents, rng.uniform(0.1, 2, n), extra)


def as_networkx(graph: LineGraph) -> nx.Graph:
    found = nx.Graph()
    found.add_nodes_from(range(len(graph.points_mm)))
    for (a, b), length in zip(graph.edges.tolist(), graph.lengths_mm.tolist(), strict=True):
        found.add_edge(a, b, length=length)
    return found


#  0 - 1 - 2 <  3      5 (alone)
#               4
Y = LineGraph.of_parents(
    [[0, 0, 0], [3, 0, 0], [3, 4, 0], [6, 8, 0], [3, 9, 0], [50, 0, 0]],
    [-1, 0, 1, 2, 2, -1],
    [2, 2, 2, 1, 0.5, 1],
)


def test_a_fork_by_hand():
    assert Y.roots.tolist() == [0, 5]
    assert Y.leaves.tolist() == [3, 4]
    assert Y.junctions.tolist() == [2]
    assert Y.cycles == 0
    assert Y.lengths_mm.tolist() == [3, 4, 5, 5]  # 2-3 is (3, 4), 2-4 is (0, 5)
    assert Y.from_root_mm.tolist() == [0, 3, 7, 12, 12, 0]
    assert Y.root_of.tolist() == [0, 0, 0, 0, 0, 5]
    assert LineGraph(np.eye(3), [[0, 1]], [1]).root_of.tolist() == [1, 1, -1]


def test_a_root_with_two_children_is_a_junction_and_one_with_a_child_no_leaf():
    assert LineGraph.of_parents(np.eye(3), [-1, 0, 0]).junctions.tolist() == [0]
    assert LineGraph.of_parents(np.eye(3), [-1, 0, 1]).leaves.tolist() == [2]
    assert LineGraph.of_parents(np.eye(3), [-1, 0, 1]).junctions.tolist() == []


def test_parents_may_come_in_any_order():
    graph = LineGraph.of_parents([[2, 0, 0], [1, 0, 0], [0, 0, 0]], [1, 2, -1])
    assert graph.from_root_mm.tolist() == [2, 1, 0]


def test_edges_count_once():
    graph = LineGraph(np.eye(3), [[0, 1], [1, 0], [2, 2], [1, 2], [0, 1]])
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert (graph.cycles, graph.degree.tolist()) == (0, [1, 2, 1])


@given(st.integers(0, 10**6))
def test_networkx_finds_the_same(seed):
    graph = random_graph(seed)
    peer = as_networkx(graph)
    assert graph.cycles == len(nx.cycle_basis(peer))
    ways = nx.multi_source_dijkstra_path_length(peer, set(graph.roots.tolist()), weight="length")
    expected = [ways.get(n, np.inf) for n in range(len(graph.points_mm))]
    np.testing.assert_allclose(graph.from_root_mm, expected, rtol=1e-12)


def test_a_centerline_tree_and_its_closing_edge():
    n = 4
    tree = CenterlineTree(
        voxels=np.zeros((n, 3), np.int64),
        parents=np.array([-1, 0, 1, 1]),
        positions_mm=np.arange(12.0).reshape(4, 3),
        radius_mm=np.ones(n),
        area_radius_mm=np.ones(n),
        structures=np.ones(n, np.int64),
        affine=np.eye(4),
        shape=(1, 1, 1),
        closing=np.array([[2, 3]]),
    )
    graph = LineGraph.of(tree)
    assert graph.edges.tolist() == [[0, 1], [1, 2], [1, 3], [2, 3]]
    assert (graph.cycles, graph.leaves.tolist()) == (1, [])
    assert LineGraph.of(graph) is graph
    np.testing.assert_array_equal(graph.points_mm, tree.positions_mm)


def test_polylines():
    graph = LineGraph.of_lines(np.arange(15).reshape(5, 3), [np.array([0, 1, 2]), np.array([3, 4])])
    assert graph.edges.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert graph.roots.tolist() == [0, 3]
    assert graph.leaves.tolist() == [2, 4]
    assert len(LineGraph.of_lines(np.empty((0, 3)), []).edges) == 0


@given(st.integers(0, 10**6))
def test_the_voxels_of_a_skeleton_are_joined_where_they_touch(seed):
    rng = np.random.default_rng(seed)
    voxels = np.unique(rng.integers(-4, 5, (int(rng.integers(1, 60)), 3)), axis=0)
    rng.shuffle(voxels)
    affine = np.diag([0.5, 0.5, 2, 1.0])
    affine[:3, 3] = 7
    graph = LineGraph.of_voxels(voxels, affine, [[0, 0, 0]])
    gap = np.abs(voxels[:, None] - voxels[None]).max(axis=2)
    expected = {tuple(sorted(pair)) for pair in np.argwhere(gap == 1).tolist()}
    assert {tuple(sorted(pair)) for pair in graph.edges.tolist()} == expected
    np.testing.assert_allclose(graph.points_mm, voxels * [0.5, 0.5, 2] + 7)
    nearest = np.linalg.norm(graph.points_mm, axis=1)
    assert nearest[graph.roots[0]] == nearest.min()


@pytest.mark.parametrize(
    "wrong",
    [
        {"edges": [[0, 3]]},
        {"edges": [[-1, 0]]},
        {"edges": [], "roots": [5]},
        {"edges": [], "radius_mm": [1]},
        {"edges": [], "points_mm": [[0, np.nan, 0]]},
    ],
)
def test_what_does_not_fit_is_refused(wrong):
    with pytest.raises(UsageError):
        LineGraph(**({"points_mm": np.eye(3)} | wrong))


def test_samples_by_hand():
    # a line of 3 mm in steps of at most 2: two pieces of 1.5, middles at 0.75 and 2.25
    line = LineGraph.of_parents([[0, 0, 0], [3, 0, 0]], [-1, 0], [1, 2])
    at = line.samples(2)
    assert at.points_mm[:, 0].tolist() == [0.75, 2.25]
    assert at.weights_mm.tolist() == [1.5, 1.5]
    assert at.radius_mm.tolist() == [1.25, 1.75]
    at = line.samples(2, ends=True)
    assert sorted(at.points_mm[:, 0].tolist()) == [0, 0.75, 2.25, 3]
    assert at.weights_mm.sum() == 3
    with pytest.raises(UsageError):
        line.samples(0)


@given(st.integers(0, 10**6), st.floats(0.05, 30), st.booleans())
def test_samples_weigh_the_whole_length_and_leave_no_gap(seed, step, ends):
    graph = random_graph(seed)
    at = graph.samples(step, ends=ends)
    if len(graph.edges):
        assert at.weights_mm.sum() == pytest.approx(graph.lengths_mm.sum())
        assert at.weights_mm.max() <= step * (1 + 1e-12)
    else:
        assert at.weights_mm.sum() == len(graph.points_mm)
    assert distance_to_lines_mm(at.points_mm, graph).max() < 1e-9
    if ends:
        nearest = np.linalg.norm(graph.points_mm[:, None] - at.points_mm[None], axis=2).min(axis=1)
        assert nearest.max() < 1e-9


def brute_force(points, graph):
    """Least distance over a fine search of every segment, refined by ternary search."""
    best = np.full(len(points), np.inf)
    for a, b in graph.segments:
        p, q = graph.points_mm[a], graph.points_mm[b]
        low, high = np.zeros(len(points)), np.ones(len(points))
        for _ in range(80):  # the distance to a line is convex along it
            t1, t2 = low + (high - low) / 3, high - (high - low) / 3
            d1 = np.linalg.norm(points - (p + t1[:, None] * (q - p)), axis=1)
            d2 = np.linalg.norm(points - (p + t2[:, None] * (q - p)), axis=1)
            low, high = np.where(d1 > d2, t1, low), np.where(d1 > d2, high, t2)
        best = np.minimum(best, np.linalg.norm(points - (p + low[:, None] * (q - p)), axis=1))
    return best


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_distances_are_exact(seed):
    graph = random_graph(seed)
    rng = np.random.default_rng(seed + 1)
    points = rng.normal(0, 1, (20, 3)) * rng.choice([0.1, 3, 40, 1e4], (20, 1))
    expected = brute_force(points, graph)
    np.testing.assert_allclose(distance_to_lines_mm(points, graph), expected, atol=1e-6)


def test_distances_by_hand():
    # beside the middle of 0-1, past the end at 3, at the lonely point
    found = distance_to_lines_mm([[1.5, -2, 0], [9, 12, 0], [50, 0, 7]], Y)
    np.testing.assert_allclose(found, [2, 5, 7])
    assert distance_to_lines_mm([[0, 0, 0]], LineGraph([], [])).tolist() == [np.inf]
    assert distance_to_lines_mm([], Y).tolist() == []


def test_percentiles_by_weight():
    # 1 carries 1, 2 carries 2, 10 carries 1 of 4: half of the weight is reached at 2
    assert weighted_percentile([10, 1, 2], [1, 1, 2], 50) == 2
    assert weighted_percentile([10, 1, 2], [1, 1, 2], 25) == 1
    assert weighted_percentile([10, 1, 2], [1, 1, 2], 75) == 2
    assert weighted_percentile([10, 1, 2], [1, 1, 2], 76) == 10
    assert weighted_percentile([10, 1, 2], [1, 1, 2], 100) == 10
    assert np.isnan(weighted_percentile([], [], 50))
