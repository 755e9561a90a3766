"""Distance of curves, coverage, length of ways, and the row of all measures: by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import directed_hausdorff

from medpipe.centerline.metrics.curve_error import (
    compare_trees,
    coverage,
    curve_errors,
    hausdorff_mm,
    path_length_ratios,
)
from medpipe.centerline.metrics.leaves import match_leaves
from medpipe.centerline.metrics.line_graph import LineGraph
from medpipe.centerline.tree import CenterlineTree
from medpipe.errors import UsageError

NOTHING = LineGraph([], [])


def line(*points, radius=None):
    n = len(points)
    return LineGraph.of_parents(points, np.arange(n) - 1, None if radius is None else radius)


def random_tree(seed: int, n: int = 40) -> LineGraph:
    rng = np.random.default_rng(seed)
    parents = np.array([-1] + [max(k - 1 - int(rng.integers(0, 2) * 9), 0) for k in range(1, n)])
    points = np.zeros((n, 3))
    for k in range(1, n):
        points[k] = points[parents[k]] + rng.normal(0, 1, 3)
    return LineGraph.of_parents(points, parents, rng.uniform(0.3, 1.0, n))


def test_the_distance_to_a_line_by_hand():
    # the result rises from 0 to 4 mm above the reference, then runs 4 mm above for as long
    reference = line((0, 0, 0), (20, 0, 0))
    result = line((0, 0, 0), (3, 4, 0), (8, 4, 0))
    # two pieces of 5 mm: mean of the first 2, of the second 4
    error = curve_errors(reference, result, step_mm=0.01)
    assert error.mean_mm == pytest.approx(3, abs=1e-6)
    # half of the length is the rise: the median is its top; 95 % and the maximum are 4
    assert error.median_mm == pytest.approx(4, abs=0.01)
    assert (error.p95_mm, error.max_mm) == (4, 4)


def test_a_longer_part_counts_more():
    # 1 mm of the result on the reference, 3 mm beside it by 2 mm (the joint is left out)
    reference = line((0, 0, 0), (10, 0, 0))
    result = LineGraph([[0, 0, 0], [1, 0, 0], [2, 2, 0], [5, 2, 0]], [[0, 1], [2, 3]])
    assert curve_errors(reference, result).mean_mm == pytest.approx(0.25 * 0 + 0.75 * 2)
    assert curve_errors(reference, result).median_mm == 2


def test_coverage_by_hand():
    # the reference is 10 long with a radius that grows from 1 to 3; the result runs 2 above:
    # near where the radius is 2 or more, which is the second half
    reference = line((0, 0, 0), (10, 0, 0), radius=[1, 3])
    result = line((0, 2, 0), (10, 2, 0))
    assert coverage(reference, result, step_mm=0.01) == pytest.approx(0.5)
    # a result that ends at 6 reaches √(2.2² …): at x the radius is 1 + x / 5, the distance
    # √(4 + (x − 6)²): equal at x = (12.4 + √(12.4² − 4 · 0.96 · 39)) / 1.92 = 8.45:
    # covered from 5 to the root of 0.96 x² − 12.4 x + 39 = 0 above 6
    at = (12.4 + np.sqrt(12.4**2 - 4 * 0.96 * 39)) / (2 * 0.96)
    short = line((0, 2, 0), (6, 2, 0))
    found = coverage(reference, short, step_mm=0.001)
    assert found == pytest.approx(min(at, 10) / 10 - 0.5, abs=1e-3)
    assert coverage(reference, NOTHING) == 0
    assert np.isnan(coverage(line(radius=[]), result))
    with pytest.raises(UsageError, match="radius"):
        coverage(result, reference)


def test_hausdorff_by_hand():
    # the result lacks the last 7 mm, and has a tip 3 mm beside the line
    reference = line((0, 0, 0), (20, 0, 0))
    result = LineGraph.of_parents([[0, 0, 0], [13, 0, 0], [5, 0, 0], [5, 3, 0]], [-1, 2, 0, 2])
    assert hausdorff_mm(reference, result) == 7
    assert hausdorff_mm(result, reference) == 7
    # of the reference 35 % are away by up to 7: 90 % are no farther than 5
    assert hausdorff_mm(reference, result, percent=90, step_mm=0.01) == pytest.approx(5, abs=0.01)
    # of the result, 16 mm long, 3 are away by up to 3; of 65 % of the reference nothing
    assert hausdorff_mm(reference, result, percent=65, step_mm=0.01) == pytest.approx(0, abs=0.01)
    assert hausdorff_mm(reference, NOTHING) == np.inf
    assert hausdorff_mm(NOTHING, NOTHING) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=8)
def test_hausdorff_is_that_of_scipy_for_dense_points(seed, other):
    a, b = random_tree(seed), random_tree(other)
    dense = [g.samples(0.05, ends=True).points_mm for g in (a, b)]
    expected = max(directed_hausdorff(*dense)[0], directed_hausdorff(*dense[::-1])[0])
    # scipy measures to points up to 0.05 apart, not to lines; both skip half a step at most
    assert hausdorff_mm(a, b, step_mm=0.05) == pytest.approx(expected, abs=0.051)


def test_ratios_of_ways_by_hand():
    #          (3, 4)                      length 5 to the junction, then 5 and 10
    reference = LineGraph.of_parents(
        [[0, 0, 0], [3, 4, 0], [3, 9, 0], [13, 4, 0]], [-1, 0, 1, 1], np.ones(4)
    )
    # the same junction by a detour over (3, 0): 7; the first tip moved up by 1: 6
    result = LineGraph.of_parents(
        [[0, 0, 0], [3, 0, 0], [3, 4, 0], [3, 10, 0], [13, 4, 0]], [-1, 0, 1, 2, 2]
    )
    match = match_leaves(reference, result, voxel_mm=1.0)
    np.testing.assert_allclose(path_length_ratios(reference, result, match), [13 / 10, 17 / 15])
    # cut at the junction the tips have no way to a root
    cut = LineGraph(result.points_mm, result.edges[:1], [0])
    cut = LineGraph(result.points_mm, np.concatenate([cut.edges, result.edges[2:]]), [0])
    assert np.isnan(path_length_ratios(reference, cut, match)).all()


def test_a_start_that_only_one_has_is_left_out():
    # the reference begins 4 mm later than the result, and its tip lies at 20
    reference = line((4, 0, 0), (12, 0, 0), (20, 0, 0), radius=[2, 1, 1])
    result = line((0, 1, 0), (20, 1, 0))
    match = match_leaves(reference, result, voxel_mm=1.0)
    assert path_length_ratios(reference, result, match, common_start=False).tolist() == [20 / 16]
    assert path_length_ratios(reference, result, match).tolist() == [1]
    # and the other way round
    late = line((8, 1, 0), (20, 1, 0))
    assert path_length_ratios(reference, late, match).tolist() == [1]
    # 5 mm are more than two radii: the whole way counts
    late = line((9, 1, 0), (20, 1, 0))
    assert path_length_ratios(reference, late, match).tolist() == [11 / 16]


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_a_tree_against_itself_is_perfect(seed):
    tree = random_tree(seed)
    row = compare_trees(tree, tree, voxel_mm=0.5)
    assert (row["missed"], row["spurious"], row["cycles"]) == (0, 0, 0)
    assert row["leaves"] == len(tree.leaves)
    for name in ("error_mm", "p95_mm", "hausdorff_mm"):
        assert row[name] == pytest.approx(0, abs=1e-9)
    assert (row["coverage"], row["length_ratio"]) == (1, 1)
    if len(tree.junctions):
        assert row["bifurcation_mm"] == row["bifurcation_p90_mm"] == 0


@given(st.integers(0, 10**6), st.sampled_from([0.01, 3.0, 1000.0]))
@settings(max_examples=25)
def test_size_place_and_order_of_points_change_nothing(seed, scale):
    a, b = random_tree(seed), random_tree(seed + 1)
    before = compare_trees(a, b, voxel_mm=0.5)
    order = np.random.default_rng(seed).permutation(len(b.points_mm))
    back = np.argsort(order)
    moved = [
        LineGraph(a.points_mm * scale + 7, a.edges, a.roots, a.radius_mm * scale),
        LineGraph(b.points_mm[order] * scale + 7, back[b.edges], back[b.roots]),
    ]
    after = compare_trees(*moved, voxel_mm=0.5 * scale)
    for name, value in before.items():
        lengths = scale if name.endswith("_mm") and value is not None else 1
        expected = None if value is None else pytest.approx(value * lengths, rel=1e-6)
        assert after[name] == expected, name


def test_a_curve_the_other_way_round_lies_as_near():
    points = [(0, 0, 0), (5, 1, 0), (9, 4, 2), (12, 4, 9)]
    there, back = line(*points, radius=np.ones(4)), line(*points[::-1])
    row = compare_trees(there, back, voxel_mm=0.5)
    assert row["error_mm"] == pytest.approx(0, abs=1e-9)
    assert row["coverage"] == 1
    assert (row["missed"], row["spurious"]) == (1, 1)  # root and tip have changed places
    assert row["length_ratio"] is None


def test_an_empty_result():
    row = compare_trees(random_tree(0), NOTHING, voxel_mm=0.5)
    assert row["missed"] == row["leaves"] > 0
    assert (row["spurious"], row["coverage"], row["cycles"]) == (0, 0, 0)
    for name in ("error_mm", "p95_mm", "hausdorff_mm", "bifurcation_mm", "length_ratio"):
        assert row[name] is None


def centerline(voxels, parents, closing=()):
    voxels = np.array(voxels, np.int64)
    n = len(voxels)
    affine = np.diag([0.5, 0.5, 2, 1.0])
    return CenterlineTree(
        voxels=voxels,
        parents=np.array(parents),
        positions_mm=voxels * [0.5, 0.5, 2],
        radius_mm=np.ones(n),
        area_radius_mm=np.full(n, np.nan),
        structures=np.ones(n, np.int64),
        affine=affine,
        shape=(20, 20, 20),
        closing=np.array(closing, np.int64).reshape(-1, 2),
    )


def test_the_voxels_of_a_tree_are_looked_at():
    straight = centerline([[k, 4, 4] for k in range(3, 9)], [-1, 0, 1, 2, 3, 4])
    row = compare_trees(straight, straight)
    assert (row["loops"], row["removable"], row["cycles"]) == (0, 0, 0)
    # around a square hole of 1: a ring of 8 voxels, whose corners a thinning removes
    ring = [[4, 4, 0], [5, 4, 0], [6, 4, 0], [6, 5, 0], [6, 6, 0], [5, 6, 0], [4, 6, 0], [4, 5, 0]]
    round_about = centerline(ring, [-1, 0, 1, 2, 3, 4, 5, 6], [[0, 7]])
    row = compare_trees(straight, round_about)
    assert (row["loops"], row["removable"], row["cycles"]) == (1, 4, 1)
    row = compare_trees(straight, round_about, count_removable=False)
    assert (row["loops"], row["removable"]) == (1, None)


def test_the_size_of_a_voxel_is_that_of_the_result():
    # 0.5 · 0.5 · 2 = 0.5 mm³, whose edge is 0.794 mm: a tip 3.1 mm off is within four
    reference = line((0, 0, 0), (20, 0, 0), radius=[0.1, 0.1])
    tip = centerline([[0, 0, 0], [1, 0, 0]], [-1, 0])
    far = CenterlineTree(**(tip.__dict__ | {"positions_mm": np.array([[0, 0, 0], [16.9, 0, 0]])}))
    assert compare_trees(reference, far)["missed"] == 0
    far = CenterlineTree(**(tip.__dict__ | {"positions_mm": np.array([[0, 0, 0], [16.8, 0, 0]])}))
    assert compare_trees(reference, far)["missed"] == 1
    with pytest.raises(UsageError, match="voxel"):
        compare_trees(reference, line((0, 0, 0), (1, 0, 0)))


def test_a_tree_of_many_nodes_takes_little_time():
    rng = np.random.default_rng(3)
    reference = random_tree(3, 5000)
    result = LineGraph(
        reference.points_mm + rng.normal(0, 0.2, (5000, 3)), reference.edges, reference.roots
    )
    started = time.process_time()
    row = compare_trees(reference, result, voxel_mm=0.5)
    assert time.process_time() - started < 20  # a few seconds
    assert row["missed"] == row["spurious"] == 0
    assert 0.05 < row["error_mm"] < 0.3
