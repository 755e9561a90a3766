"""Shortest paths against scipy, networkx and closed forms; both methods bit for bit."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from medpipe.centerline import solve
from medpipe.centerline.graph import foreground_graph
from medpipe.centerline.solve import shortest_paths
from medpipe.errors import StepError, UsageError

METHODS = ["dijkstra", "bellman-ford"]
FIELDS = ("distance", "predecessor", "source")
AFFINES = [
    np.eye(4),
    np.diag([0.3, 0.3, 3.0, 1.0]),
    np.diag([-0.684, -0.684, 0.5, 1.0]),
    np.array([[0.7, 0.2, 0.1, -3], [-0.1, 0.8, 0.3, 5], [0, 0.1, 2.5, 7], [0, 0, 0, 1]]),
]


def graph_of(mask, affine=AFFINES[0]):
    return foreground_graph(torch.as_tensor(mask).to(torch.int16), affine)


def random_case(seed, shape, density, affine, costs, sources):
    """Return a graph of two structures with costs and source voxels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 3, shape) * (rng.random(shape) < density)
    labels.flat[0] = 1
    graph = foreground_graph(torch.from_numpy(labels), affine)
    count = len(graph.voxels)
    cost = {
        "none": None,
        "equal": torch.full((count,), 2.0),  # many ties
        "few": torch.from_numpy(rng.integers(1, 4, count)),
        "wide": torch.from_numpy(10 ** rng.uniform(-4, 4, count)),
    }[costs]
    return graph, cost, torch.from_numpy(rng.integers(0, count, sources))


def matrix_of(graph, cost):
    """Return the weights as a sparse matrix."""
    table, count = graph.neighbours.numpy(), len(graph.voxels)
    cost = np.ones(count) if cost is None else cost.numpy().astype(float)
    rows, columns = np.nonzero(table >= 0)
    ends = table[rows, columns]
    weights = 0.5 * (cost[rows] + cost[ends]) * graph.steps_mm.numpy()[columns]
    return csr_matrix((weights, (rows, ends)), shape=(count, count))


def check_against_scipy(paths, graph, cost, sources):
    """Compare distances with scipy, and follow the predecessors by their definition."""
    matrix = matrix_of(graph, cost)
    want = dijkstra(matrix, indices=np.unique(sources.numpy()), min_only=True)
    distance, predecessor, source = (getattr(paths, f).numpy() for f in FIELDS)
    np.testing.assert_array_equal(distance, want)
    first = {int(v): n for n, v in reversed(list(enumerate(sources.tolist())))}
    for v in np.argsort(distance, kind="stable"):
        row = slice(matrix.indptr[v], matrix.indptr[v + 1])
        ends, weights = matrix.indices[row], matrix.data[row]
        exact = (distance[ends] < distance[v]) & (distance[ends] + weights == distance[v])
        if v in first:
            expected = -1, first[v]
        elif np.isinf(distance[v]):
            expected = -1, -1
        else:
            before = ends[exact].min()
            expected = before, source[before]
        assert (predecessor[v], source[v]) == expected


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    density=st.floats(0.05, 1),
    affine=st.sampled_from(AFFINES),
    costs=st.sampled_from(["none", "equal", "few", "wide"]),
    sources=st.integers(1, 5),
)
def test_both_methods_are_scipy_and_keep_the_rule_of_predecessors(
    seed, shape, density, affine, costs, sources
):
    graph, cost, starts = random_case(seed, shape, density, affine, costs, sources)
    got = [shortest_paths(graph, cost, starts, method=m) for m in METHODS]
    for name in FIELDS:
        assert torch.equal(*[getattr(g, name) for g in got])
    check_against_scipy(got[0], graph, cost, starts)


def test_distances_are_those_of_networkx():
    graph, cost, starts = random_case(4, (9, 9, 9), 0.2, AFFINES[3], "wide", 3)
    known = nx.from_scipy_sparse_array(matrix_of(graph, cost))
    want = nx.multi_source_dijkstra_path_length(known, set(starts.tolist()))
    got = shortest_paths(graph, cost, starts).distance
    assert set(want) == set(torch.isfinite(got).nonzero().flatten().tolist())
    assert 0 < len(want) < len(got)  # some parts cannot be reached
    for v, length in want.items():
        assert float(got[v]) == pytest.approx(length, rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_straight_and_a_diagonal_line_have_their_length(method):
    line = np.zeros((100, 100, 100), bool)
    line[0, 0, :50] = True
    graph = graph_of(line, np.diag([0.3, 0.3, 3.0, 1]))
    paths = shortest_paths(graph, None, torch.tensor([0]), method=method)
    np.testing.assert_allclose(paths.distance.numpy(), 3 * np.arange(50), rtol=1e-12)
    assert paths.predecessor.tolist() == list(range(-1, 49))
    diagonal = np.zeros((100, 100, 100), bool)
    diagonal[np.arange(100), np.arange(100), np.arange(100)] = True
    paths = shortest_paths(graph_of(diagonal), None, torch.tensor([99]), method=method)
    np.testing.assert_allclose(
        paths.distance.numpy(), np.sqrt(3) * np.arange(99, -1, -1), rtol=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_path_takes_the_cheap_lane(method):
    mask = np.ones((1, 3, 9), bool)
    cost = np.full((3, 9), 10.0)
    cost[1] = 0.1
    paths = shortest_paths(
        graph_of(mask), torch.from_numpy(cost.ravel()), torch.tensor([0]), method=method
    )
    lane = [8]
    while paths.predecessor[lane[-1]] >= 0:
        lane.append(int(paths.predecessor[lane[-1]]))
    assert [v // 9 for v in lane[1:-1]] == [1] * 9


@pytest.mark.parametrize("method", METHODS)
def test_among_equal_ways_the_first_neighbour_leads_and_the_first_name_of_a_source_counts(method):
    # two ways of equal length around a ring of four voxels
    ring = np.array([[[0, 1, 0], [1, 0, 1], [0, 1, 0]]], bool)
    paths = shortest_paths(graph_of(ring), None, torch.tensor([3, 3]), method=method)
    assert paths.predecessor.tolist() == [1, 3, 3, -1]
    assert paths.source.tolist() == [0, 0, 0, 0]
    between = shortest_paths(graph_of(ring), None, torch.tensor([3, 0]), method=method)
    assert between.predecessor.tolist() == [-1, 0, 0, -1]
    assert between.source.tolist() == [1, 1, 1, 0]


def test_more_sweeps_than_one_round_and_small_parts(monkeypatch):
    rng = np.random.default_rng(6)
    graph = graph_of(rng.random((4, 4, 300)) < 0.6, AFFINES[2])
    cost = torch.from_numpy(10 ** rng.uniform(-4, 4, len(graph.voxels)))
    starts = graph.voxels[:, 2].argmin()[None]
    want = shortest_paths(graph, cost, starts, method="dijkstra")
    reached = graph.voxels[torch.isfinite(want.distance), 2]
    assert int(reached.max()) > 4 * solve.SWEEPS
    for chunk in (solve.CHUNK_VOXELS, 101):
        monkeypatch.setattr(solve, "CHUNK_VOXELS", chunk)
        got = shortest_paths(graph, cost, starts, method="bellman-ford")
        for name in FIELDS:
            assert torch.equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_that_is_lost_in_rounding_is_an_error(method):
    graph = graph_of(np.ones((1, 1, 4), bool))
    cost = torch.tensor([1e20, 1e20, 1e-20, 1e-20], dtype=torch.float64)
    with pytest.raises(StepError, match="too wide a range"):
        shortest_paths(graph, cost, torch.tensor([0]), method=method)


@pytest.mark.parametrize("cost", [[1, 0], [1, -1], [1, np.nan], [1, np.inf], [1, 1, 1]])
def test_wrong_costs_are_refused(cost):
    with pytest.raises(StepError, match="cost"):
        shortest_paths(graph_of(np.ones((1, 1, 2))), torch.tensor(cost), torch.tensor([0]))


def test_wrong_sources_and_methods_are_refused():
    graph = graph_of(np.ones((1, 1, 2)))
    for sources in ([2], [-1], [0, 7]):
        with pytest.raises(StepError, match="no voxel"):
            shortest_paths(graph, None, torch.tensor(sources))
    for sources in (torch.tensor([]), torch.tensor(0), torch.tensor([0.0])):
        with pytest.raises(UsageError, match="sources"):
            shortest_paths(graph, None, sources)
    with pytest.raises(UsageError, match="method"):
        shortest_paths(graph, None, torch.tensor([0]), method="astar")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("costs", ["none", "wide"])
def test_the_device_gives_the_bits_of_the_host(method, costs):
    graph, cost, starts = random_case(8, (70, 70, 70), 0.4, AFFINES[3], costs, 4)
    assert len(graph.voxels) > solve.DEVICE_VOXELS
    want = shortest_paths(graph, cost, starts, method="dijkstra")
    there = type(graph)(
        graph.voxels.cuda(),
        graph.structures.cuda(),
        graph.neighbours.cuda(),
        graph.steps_mm.cuda(),
        graph.shape,
    )
    got = shortest_paths(there, cost, starts, method=method)
    for name in FIELDS:
        assert getattr(got, name).is_cuda
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name))
