"""The foreground graph against a loop over voxels and against scipy's components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, sparse

from medpipe.centerline.graph import OFFSETS, _host, _table, foreground_graph
from medpipe.errors import StepError

SHEARED = np.array([[0.7, 0.2, 0.1, -3], [-0.1, 0.8, 0.3, 5], [0, 0.1, 2.5, 7], [0, 0, 0, 1]])


def random_labels(seed, shape, density, values=2):
    rng = np.random.default_rng(seed)
    return rng.integers(1, values + 1, shape) * (rng.random(shape) < density)


def by_loops(labels):
    """Return voxels and neighbours as the definition says."""
    voxels = [tuple(int(x) for x in v) for v in np.argwhere(labels > 0)]
    number = {v: n for n, v in enumerate(voxels)}
    table = np.full((len(voxels), 26), -1)
    for n, v in enumerate(voxels):
        for o, offset in enumerate(OFFSETS):
            u = tuple(a + b for a, b in zip(v, offset, strict=True))
            if u in number and labels[u] == labels[v]:
                table[n, o] = number[u]
    return np.array(voxels).reshape(-1, 3), table


def test_offsets_are_the_26_neighbours_by_linear_index():
    assert len(set(OFFSETS)) == 26
    linear = [(i * 100 + j) * 100 + k for i, j, k in OFFSETS]
    assert linear == sorted(linear)
    assert all(np.abs(o).max() == 1 for o in OFFSETS)
    assert all(tuple(-x for x in OFFSETS[25 - n]) == OFFSETS[n] for n in range(26))


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    density=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_it_equals_a_loop_over_voxels_by_both_ways(shape, density, seed):
    labels = random_labels(seed, shape, density)
    voxels, table = by_loops(labels)
    for build in (_host, _table):
        got = build(torch.from_numpy(labels))
        assert [g.dtype for g in got] == [torch.int32] * 3
        np.testing.assert_array_equal(got[0].numpy(), voxels)
        np.testing.assert_array_equal(got[1].numpy(), labels[labels > 0])
        np.testing.assert_array_equal(got[2].numpy(), table)


def test_its_components_are_those_of_scipy():
    mask = np.random.default_rng(1).random((30, 40, 50)) < 0.04
    graph = foreground_graph(torch.from_numpy(mask), np.eye(4))
    table = graph.neighbours.numpy()
    rows, columns = np.nonzero(table >= 0)
    edges = sparse.coo_matrix((np.ones(rows.size), (rows, table[rows, columns])))
    edges.resize(len(table), len(table))
    count, names = sparse.csgraph.connected_components(edges)
    want, number = ndimage.label(mask, np.ones((3, 3, 3)))
    assert count == number > 100
    pairs = np.unique(np.stack([names, want[mask]]), axis=1)
    assert pairs.shape[1] == count


def test_steps_are_millimetres_under_the_affine():
    graph = foreground_graph(torch.ones(2, 2, 2, dtype=torch.uint8), SHEARED)
    want = np.linalg.norm(np.array(OFFSETS) @ SHEARED[:3, :3].T, axis=1)
    np.testing.assert_allclose(graph.steps_mm.numpy(), want, rtol=1e-14)
    assert torch.equal(graph.steps_mm, graph.steps_mm.flip(0))
    assert graph.steps_mm.dtype == torch.float64
    assert graph.shape == (2, 2, 2)


def test_labels_of_two_structures_are_not_joined_and_the_rest_is_background():
    labels = torch.tensor([[[3, 3, 7, 7, 0, -1]]], dtype=torch.int16)
    graph = foreground_graph(labels, np.eye(4))
    assert graph.structures.tolist() == [3, 3, 7, 7]
    assert graph.neighbours.amax(1).tolist() == [1, 0, 3, 2]
    assert (graph.neighbours >= 0).sum() == 4


def test_an_empty_map_has_no_voxels():
    for shape in ((3, 4, 5), (0, 4, 5)):
        graph = foreground_graph(torch.zeros(shape, dtype=torch.uint8), np.eye(4))
        assert graph.voxels.shape == (0, 3)
        assert graph.neighbours.shape == (0, 26)
        assert graph.shape == shape


def test_a_view_with_strides_is_read():
    labels = torch.from_numpy(random_labels(2, (5, 6, 7), 0.5))
    view = labels.permute(1, 2, 0)
    got = foreground_graph(view, np.eye(4))
    want = foreground_graph(view.contiguous(), np.eye(4))
    assert torch.equal(got.neighbours, want.neighbours)
    assert torch.equal(got.voxels, want.voxels)


@pytest.mark.parametrize("labels", [torch.ones(3, 3, 3), torch.ones(3, 3, dtype=torch.int16)])
def test_what_is_no_label_map_is_refused(labels):
    with pytest.raises(StepError, match="label map"):
        foreground_graph(labels, np.eye(4))


def test_labels_beyond_int32_and_a_useless_affine_are_refused():
    with pytest.raises(StepError, match="too large"):
        foreground_graph(torch.full((1, 1, 1), 2**40), np.eye(4))
    with pytest.raises(StepError, match="NaN"):
        foreground_graph(torch.ones((1, 1, 1), dtype=torch.uint8), np.full((4, 4), np.nan))


@pytest.mark.gpu
def test_the_device_gives_the_graph_of_the_host():
    labels = torch.from_numpy(random_labels(3, (40, 50, 60), 0.3))
    want = foreground_graph(labels, SHEARED)
    got = foreground_graph(labels.cuda(), SHEARED)
    for name in ("voxels", "structures", "neighbours", "steps_mm"):
        assert getattr(got, name).is_cuda
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name))
