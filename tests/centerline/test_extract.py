"""Trees of known shapes, and what bad input leads to."""

from __future__ import annotations

from itertools import permutations

import networkx as nx
import numpy as np
import pytest
import torch

from medpipe.centerline.extract import ExtractionSettings, extract_centerline
from medpipe.centerline.loops import loops_of_voxels
from medpipe.centerline.maps import CenterlineMaps
from medpipe.errors import StepError, UsageError
from medpipe.geometry import to_mm
from medpipe.phantoms.vessel_tree import vessel_tree

EYE = np.eye(4)


def grid(*shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).astype(float)


def draw(shape, *lines, spacing=(1.0, 1.0, 1.0)):
    """Draw tubes: each line is (start, end, radius) in mm of the spacing."""
    x = grid(*shape) * spacing
    mask = np.zeros(shape, bool)
    for start, end, radius in lines:
        a, way = np.array(start, float), np.array(end, float) - start
        t = np.clip((x - a) @ way / (way @ way), 0, 1)
        mask |= np.linalg.norm(x - a - t[..., None] * way, axis=-1) <= radius
    return mask


def extract(mask, affine=EYE, **settings):
    return extract_centerline(torch.as_tensor(mask), affine, ExtractionSettings(**settings))


def checks(tree):
    return [f["check"].removeprefix("centerline.") for f in tree.facts["findings"]]


def test_a_straight_tube_is_a_straight_line():
    mask = draw((15, 15, 60), ((7, 7, 5), (7, 7, 54), 4))
    tree = extract(mask)
    assert len(tree.branches) == 1
    inner = tree.positions_mm[5:-5]
    assert np.abs(inner[:, :2] - 7).max() < 0.3
    assert tree.lengths_mm.sum() == pytest.approx(49 + 8, rel=0.03)  # the caps are part of it
    np.testing.assert_allclose(tree.radius_mm[8:-8], 4, atol=0.5)
    np.testing.assert_allclose(tree.area_radius_mm[8:-8], 4, atol=0.4)
    assert tree.structures.tolist() == [1] * len(tree)


def test_a_helix_has_the_length_of_its_curve():
    t = np.linspace(0, 4 * np.pi, 400)
    curve = np.stack([30 + 18 * np.cos(t), 30 + 18 * np.sin(t), 8 + 5 * t], 1)
    x = grid(60, 60, 80).reshape(-1, 3)
    from scipy.spatial import cKDTree

    mask = (cKDTree(curve).query(x)[0] <= 3).reshape(60, 60, 80)
    tree = extract(mask)
    assert len(tree.leaves) == 1
    truth = np.linalg.norm(np.diff(curve, axis=0), axis=1).sum()
    assert tree.lengths_mm.sum() == pytest.approx(truth + 4, rel=0.03)
    assert cKDTree(curve).query(tree.positions_mm[4:-4])[0].max() < 1


@pytest.mark.parametrize(
    ("ways", "leaves"),
    [
        ([(8, 10, 50), (32, 10, 50)], 2),
        ([(8, 20, 50), (32, 20, 50), (20, 38, 50)], 3),
    ],
)
def test_forks_have_a_leaf_for_each_branch(ways, leaves):
    start = (20, 14, 25)
    mask = draw((41, 45, 60), ((20, 14, 6), start, 4), *[(start, end, 2.5) for end in ways])
    tree = extract(mask)
    assert len(tree.leaves) == leaves
    assert tree.positions_mm[tree.roots[0]] @ (0, 0, 1) < 6
    ends = tree.positions_mm[tree.leaves]
    assert np.linalg.norm(ends[:, None] - np.array(ways, float), axis=-1).min(0).max() < 4
    at = tree.positions_mm[tree.junctions]
    assert np.linalg.norm(at - start, axis=1).max() < 8
    assert loops_of_voxels(tree.voxels) == 0


def test_two_tubes_are_two_trees_and_labels_do_not_mix():
    one = draw((30, 30, 50), ((8, 8, 5), (8, 8, 44), 3))
    two = draw((30, 30, 50), ((15, 8, 5), (15, 8, 44), 3))
    assert len(extract(one | two).roots) == 1  # they touch
    tree = extract(one.astype(np.int64) + 7 * (two & ~one))
    assert tree.structures[tree.roots].tolist() == [1, 7]
    own = np.where(tree.structures == 1, 8, 15)
    assert np.abs(tree.voxels[:, 0] - own).max() <= 3
    apart = extract(one | draw((30, 30, 50), ((22, 22, 5), (22, 22, 44), 3)))
    assert len(apart.roots) == 2
    assert apart.facts["components"] == 2


def test_a_branch_one_voxel_wide_and_diagonal_is_followed():
    mask = draw((40, 40, 60), ((10, 10, 5), (10, 10, 54), 4))
    for n in range(18):
        mask[14 + n, 14 + n, 30 + n] = True
    mask[12:15, 12:15, 28:31] = True
    tree = extract(mask)
    assert [31, 31, 47] in tree.voxels[tree.leaves].tolist()


def test_a_cavity_does_not_tear_the_line():
    mask = draw((21, 21, 60), ((10, 10, 7), (10, 10, 52), 6))
    mask[9:12, 9:12, 28:31] = False
    tree = extract(mask)
    assert len(tree.branches) == 1
    assert nx.is_arborescence(tree.graph)


def test_thick_slices_and_a_sheared_grid():
    spacing = (0.3, 0.3, 3.0)
    mask = draw((60, 60, 30), ((9, 9, 8), (9, 9, 80), 3), spacing=spacing)
    tree = extract(mask, np.diag([*spacing, 1.0]))
    assert len(tree.branches) == 1
    np.testing.assert_allclose(tree.radius_mm[3:-3], 3, atol=0.35)
    assert tree.lengths_mm.sum() == pytest.approx(78, abs=6)
    affine = np.diag([*spacing, 1.0])
    affine[1, 2] = 0.6  # the table moved up between the slices
    sheared = extract(mask, affine)
    assert "sheared" in checks(sheared)
    ends = to_mm(affine, sheared.voxels[[sheared.roots[0], sheared.leaves[0]]])
    np.testing.assert_allclose(sheared.positions_mm[[0, -1]], ends)
    assert sheared.lengths_mm.sum() == pytest.approx(np.linalg.norm(ends[1] - ends[0]), rel=0.03)


@pytest.mark.parametrize("kind", ["clean", "very-rough"])
def test_a_random_tree_is_found_whole(kind):
    truth = vessel_tree(1, shape=(128, 128, 128), kind=kind, root_radius_voxels=6)
    tree = extract(truth.mask, truth.affine)
    gap = tree.positions_mm[tree.leaves][:, None] - truth.points_mm[truth.leaves][None]
    gap = np.linalg.norm(gap, axis=-1)
    reach = np.maximum(2 * truth.radius_mm[truth.leaves], 2.0)  # 4 voxels of 0.5 mm
    assert (gap.min(axis=0) <= reach).all()
    assert len(tree.leaves) - len(truth.leaves) <= 1
    away = np.linalg.norm(tree.positions_mm[:, None] - truth.points_mm[None], axis=-1)
    ends = [truth.root, *truth.leaves]  # the mask and the tree go one radius further there
    inner = away.min(axis=1)[~np.isin(away.argmin(axis=1), ends)]
    assert inner.mean() <= 0.6 * 0.5  # voxels of 0.5 mm
    assert tree.lengths_mm.sum() == pytest.approx(truth.length_mm, rel=0.05)


def test_the_ostium_gives_the_roots():
    truth = vessel_tree(2, shape=(96, 96, 96), root_radius_voxels=5, ostium=True)
    ostium = torch.from_numpy(truth.ostium)
    tree = extract_centerline(torch.from_numpy(truth.mask), truth.affine, ostium=ostium)
    assert tree.facts["roots"] == {"ostium": 1}
    root = tree.positions_mm[tree.roots[0]]
    near = to_mm(truth.affine, np.argwhere(truth.ostium))
    assert np.linalg.norm(near - root, axis=1).min() <= 0.5 * np.sqrt(3) + 1e-9


def test_an_ostium_that_touches_twice_gives_two_trees_in_one_component():
    mask = draw((50, 30, 60), ((12, 15, 8), (25, 15, 50), 3), ((38, 15, 8), (25, 15, 50), 3))
    ostium = np.zeros(mask.shape, bool)
    ostium[:, :, :6] = True
    ostium &= ~mask
    tree = extract_centerline(torch.from_numpy(mask), EYE, ostium=torch.from_numpy(ostium))
    assert len(tree.roots) == 2
    assert tree.facts["roots"] == {"ostium": 2} or tree.facts["components"] == 1
    graph = tree.graph
    for part in nx.weakly_connected_components(graph):
        assert nx.is_arborescence(graph.subgraph(part))


def test_given_points_are_roots_and_ends():
    mask = draw((41, 45, 60), ((20, 14, 6), (20, 14, 25), 4), ((20, 14, 25), (8, 10, 50), 2.5),
                ((20, 14, 25), (32, 10, 50), 2.5))  # fmt: skip
    tree = extract(
        mask, root_points_mm=[(8, 10, 50)], endpoints="given", endpoint_points_mm=[(32.2, 10, 50)]
    )
    assert tree.voxels[tree.roots].tolist() == [[8, 10, 50]]
    assert tree.voxels[tree.leaves].tolist() == [[32, 10, 50]]
    assert tree.facts["roots"] == {"point": 1}
    more = extract(mask, endpoint_points_mm=[(23, 14, 15)])
    assert [23, 14, 15] in more.voxels.tolist()  # 3 voxels from the axis: never pruned
    assert len(more.leaves) == 3


def test_a_component_without_the_given_root_gets_one_by_rule():
    mask = draw((30, 30, 50), ((8, 8, 5), (8, 8, 44), 3), ((22, 22, 5), (22, 22, 44), 3))
    tree = extract(mask, root_points_mm=[(8, 8, 5)])
    assert len(tree.roots) == 2
    assert "root_by_rule" in checks(tree)
    with pytest.raises(StepError, match="endpoint 1 lies in another component"):
        extract(mask, root_points_mm=[(8, 8, 5)], endpoint_points_mm=[(22, 22, 44)])
    only = extract(mask, endpoints="given", endpoint_points_mm=[(22, 22, 44)])
    assert len(only.roots) == 1
    assert "no_endpoint" in checks(only)


def test_specks_are_left_out_and_counted():
    mask = draw((30, 30, 50), ((8, 8, 5), (8, 8, 44), 3))
    mask[25, 25, 25:27] = mask[28, 5, 5] = True
    tree = extract(mask)
    assert len(tree.roots) == 1
    text = [f["message"] for f in tree.facts["findings"] if "small" in f["check"]]
    assert text == [
        "2 small components of the mask (3 voxels) left out; min_component_voxels sets the limit"
    ]
    assert len(extract(mask, min_component_voxels=1).roots) == 3


def test_one_voxel_is_a_tree_of_one_node():
    mask = np.zeros((5, 5, 5), bool)
    mask[2, 3, 1] = True
    tree = extract(mask)
    assert tree.voxels.tolist() == [[2, 3, 1]]
    assert "single_node" in checks(tree)


def test_a_mask_at_the_border_works_and_is_told():
    mask = draw((15, 15, 40), ((7, 7, -20), (7, 7, 60), 4))
    tree = extract(mask)
    assert "border" in checks(tree)
    assert {tree.voxels[tree.roots[0], 2], tree.voxels[tree.leaves[0], 2]} == {0, 39}
    np.testing.assert_allclose(tree.radius_mm, 4, atol=0.6)  # no end turns to the rim


def test_lengths_in_another_unit_are_told():
    mask = draw((15, 15, 60), ((7, 7, 5), (7, 7, 54), 4))
    assert "unit" in checks(extract(mask, np.diag([45, 45, 45, 1.0])))
    assert "unit" not in checks(extract(mask))


ONE = torch.ones(4, 4, 4)
ONE[0] = 0


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (torch.zeros(4, 4, 4), "the mask is empty"),
        (torch.ones(4, 4, 4), "the structure fills the volume"),
        (ONE * 0.5, "use threshold first"),
        (ONE * -1, "0 .background. to 255, got -1 to 0"),
        (ONE * 256, "got 0 to 256"),
        (ONE * float("nan"), "NaN"),
        (ONE.to(torch.complex64), "complex"),
        (ONE[0], "a centerline needs a volume"),
        (torch.ones(5, 5, 1), "give the whole series"),
        (ONE[None], "a centerline needs a volume"),
    ],
)
def test_what_is_no_label_map_is_refused_in_one_line(labels, what):
    with pytest.raises(StepError, match=what) as caught:
        extract_centerline(labels, EYE)
    assert "\n" not in str(caught.value)


def test_points_affines_and_grids_that_do_not_fit():
    mask = draw((15, 15, 40), ((7, 7, 5), (7, 7, 34), 3))
    with pytest.raises(StepError, match=r"endpoint 2 lies 10\.\d mm outside the mask"):
        extract(mask, endpoint_points_mm=[(7, 7, 20), (20, 7, 20)])
    with pytest.raises(StepError, match="root point 1 lies"):
        extract(mask, root_points_mm=[(-7, -7, 20)])
    assert len(extract(mask, root_points_mm=[(12, 7, 20)], snap_mm=2.5)) > 1
    with pytest.raises(StepError, match="root point 2 lies in the same component"):
        extract(mask, root_points_mm=[(7, 7, 5), (7, 7, 30)])
    with pytest.raises(StepError, match="too large"):
        extract(mask, np.diag([500, 500, 500, 1.0]))
    with pytest.raises(StepError, match="singular"):
        extract(mask, np.diag([1, 1, 0, 1.0]))
    with pytest.raises(StepError, match="the ostium and the mask"):
        extract_centerline(torch.from_numpy(mask), EYE, ostium=torch.zeros(3, 3, 3))
    with pytest.raises(UsageError, match="needs maps"):
        extract(mask, endpoints="learned")
    with pytest.raises(UsageError, match="cost = learned needs maps"):
        extract(mask, cost="learned")


@pytest.mark.parametrize(("cost", "row"), [("depth", 7), ("learned", 4)])
def test_the_cost_says_where_the_middle_is(cost, row):
    mask = torch.zeros(60, 15, 15, dtype=torch.uint8)
    mask[2:58, 2:13, 2:13] = 1
    q = torch.ones(mask.shape)
    q[:, 4, 7] = 0.0  # a network that takes another line for the middle
    maps = CenterlineMaps(q, torch.zeros(mask.shape), torch.zeros(mask.shape))
    ends = {"root_points_mm": [(4, 7, 7)], "endpoint_points_mm": [(55, 7, 7)]}
    settings = ExtractionSettings(cost=cost, endpoints="given", **ends)
    tree = extract_centerline(mask, EYE, settings, maps=maps)
    assert np.median(tree.voxels[:, 1]) == row


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"root": "top"}, "root is wrong; expected auto"),
        ({"endpoints": "auto"}, "endpoints is wrong"),
        ({"loops": 1}, "loops is wrong"),
        ({"ball_scale": -1}, "ball_scale is wrong; expected a number in 0..100, got -1"),
        ({"smoothing_rounds": 2.5}, "expected a whole number"),
        ({"snap_mm": float("nan")}, "snap_mm is wrong"),
        ({"prune_radii": True}, "prune_radii is wrong"),
        ({"root_points_mm": [(1, 2)]}, "point 1 of root_points_mm"),
        ({"endpoint_points_mm": [(1, 2, 3), (1, 2, float("inf"))]}, "point 2 of endpoint"),
        ({"endpoints": "given"}, "needs points"),
    ],
)
def test_wrong_settings_are_refused(wrong, what):
    with pytest.raises(UsageError, match=what):
        ExtractionSettings(**wrong)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_how_the_mask_lies_in_memory_does_not_matter(axes):
    truth = vessel_tree(1, shape=(40, 48, 56), root_radius_voxels=4, branches=5)
    back = np.argsort(axes)
    stored = truth.mask.transpose(axes).copy().transpose(back)
    plain = extract_centerline(torch.from_numpy(truth.mask), truth.affine)
    tree = extract_centerline(torch.from_numpy(stored), truth.affine)
    assert tree.to_json() == plain.to_json()


@pytest.mark.real_data
def test_an_airway_of_a_chest_ct(airway):
    mask, affine = airway
    tree = extract_centerline(torch.from_numpy(mask), affine)
    assert len(tree.roots) == 1
    assert tree.facts["loops_found"] == 18
    assert loops_of_voxels(tree.voxels) == 0
    assert 110 <= len(tree.leaves) <= 140
    highest = to_mm(affine, np.argwhere(mask))[:, 2].max()
    root = tree.roots[0]
    assert highest - tree.positions_mm[root, 2] < 15  # the top of the trachea
    assert tree.radius_mm[tree.branches[0].nodes].max() > 6
