"""Matching of tips and junctions: by hand, against all assignments, and invariances."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medpipe.centerline.metrics.leaves import bifurcation_errors_mm, match_leaves, match_points
from medpipe.centerline.metrics.line_graph import LineGraph
from medpipe.errors import UsageError


def star(tips, radius=None, root=(0, 0, 0)):
    """A root, a junction at (1, 0, 0) and a tip at each point."""
    points = [root, (1, 0, 0), *tips]
    radii = None if radius is None else [1, 1, *radius]
    return LineGraph.of_parents(points, [-1, 0] + [1] * len(tips), radii)


def best_by_trying_all(distance, limit):
    """Most pairs, then least sum, over all one-to-one choices."""
    a, b = distance.shape
    best = (0, 0.0)
    for k in range(1, min(a, b) + 1):
        for rows in combinations(range(a), k):
            for columns in permutations(range(b), k):
                gaps = distance[list(rows), list(columns)]
                if (gaps <= limit[list(rows)]).all():
                    best = min(best, (-k, float(gaps.sum())))
    return best


@given(st.integers(0, 10**6))
def test_no_assignment_is_better(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, 2)
    reference, result = rng.uniform(0, 4, (a, 3)), rng.uniform(0, 4, (b, 3))
    limit = rng.uniform(0, 4, a)
    pairs = match_points(reference, result, limit)
    distance = np.linalg.norm(reference[:, None] - result[None], axis=2)
    gaps = distance[pairs[:, 0], pairs[:, 1]]
    assert (gaps <= limit[pairs[:, 0]]).all()
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    pairs_wanted, sum_wanted = best_by_trying_all(distance, limit)
    assert len(pairs) == -pairs_wanted
    assert gaps.sum() == pytest.approx(sum_wanted)


def test_more_pairs_win_over_nearer_ones():
    # taking 0-1 (1 apart) would leave one without a partner within 3:
    # both find one as 0-0 (3 apart) and 1-1 (2 apart)
    pairs = match_points([[3, 0, 0], [6, 0, 0]], [[0, 0, 0], [4, 0, 0]], 3)
    assert pairs.tolist() == [[0, 0], [1, 1]]


def test_missed_and_spurious_by_hand():
    reference = star([(10, 0, 0), (0, 10, 0), (0, 0, 10)], radius=[1.0, 3.0, 1.0])
    result = star([(14, 0, 0), (0, 15.5, 0), (0, 4.9, 9.0), (0, 0, -20)])
    match = match_leaves(reference, result, voxel_mm=1.0)
    # the limit is max(2 · 1, 4 · 1) = 4, 6 and 4 mm; the distances are 4, 5.5 and
    # √(4.9² + 1²) = 5.0 mm, so the third tip is missed
    assert match.pairs.tolist() == [[2, 2], [3, 3]]
    assert match.distance_mm.tolist() == [4, 5.5]
    assert match.missed.tolist() == [4]
    assert match.spurious.tolist() == [4, 5]
    # voxels of 0.5 mm: 2, 6 and 2 mm
    assert match_leaves(reference, result, voxel_mm=0.5).missed.tolist() == [2, 4]
    assert len(match_leaves(reference, result, voxel_mm=0.5, tolerance_voxels=11).missed) == 0
    assert len(match_leaves(reference, result, voxel_mm=0.5, tolerance_radii=6).missed) == 0


def test_two_tips_are_not_matched_to_one():
    reference = star([(10, 0, 0), (10, 1, 0)])
    match = match_leaves(reference, star([(10, 0.8, 0)]), voxel_mm=1.0)
    assert match.pairs.tolist() == [[3, 2]]
    assert match.missed.tolist() == [2]


def test_a_result_equal_to_its_reference():
    reference = star([(10, 0, 0), (0, 10, 0)], radius=[1, 1])
    match = match_leaves(reference, reference, voxel_mm=1.0)
    assert match.pairs.tolist() == [[2, 2], [3, 3]]
    assert match.distance_mm.tolist() == [0, 0]
    assert match.missed.size == match.spurious.size == 0
    assert bifurcation_errors_mm(reference, reference).tolist() == [0]


def test_nothing_found_and_nothing_to_find():
    reference, nothing = star([(10, 0, 0), (0, 10, 0)]), LineGraph([], [])
    match = match_leaves(reference, nothing, voxel_mm=1.0)
    assert (match.missed.tolist(), match.spurious.tolist()) == ([2, 3], [])
    match = match_leaves(nothing, reference, voxel_mm=1.0)
    assert (match.missed.tolist(), match.spurious.tolist()) == ([], [2, 3])
    assert bifurcation_errors_mm(reference, nothing).tolist() == [np.inf]
    assert bifurcation_errors_mm(nothing, reference).size == 0


def test_the_direction_of_a_line_is_its_root():
    there = LineGraph.of_parents([[0, 0, 0], [9, 0, 0]], [-1, 0])
    back = LineGraph.of_parents([[9, 0, 0], [0, 0, 0]], [-1, 0])
    match = match_leaves(there, back, voxel_mm=1.0)
    # each has its tip where the other has its root
    assert (len(match.missed), len(match.spurious)) == (1, 1)


@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_scale_turn_and_order_change_nothing(seed, scale):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-9, 9, (5, 3)), rng.uniform(-9, 9, (6, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    limit = rng.uniform(2, 9, 5)
    before = match_points(a, b, limit)
    after = match_points(a @ turn * scale + 40, b @ turn * scale + 40, limit * scale * (1 + 1e-9))
    assert before.tolist() == after.tolist()
    order = rng.permutation(6)
    mixed = match_points(a, b[order], limit)
    assert before.tolist() == np.stack([mixed[:, 0], order[mixed[:, 1]]], 1).tolist()


def test_bifurcations_by_hand():
    # junctions at (10, 0, 0) and (10, 20, 0)
    reference = LineGraph.of_parents(
        [[0, 0, 0], [10, 0, 0], [20, 0, 0], [10, 20, 0], [0, 30, 0], [20, 30, 0]],
        [-1, 0, 1, 1, 3, 3],
    )
    moved = reference.points_mm.copy()
    moved[1] += [0, 3, 4]  # 5 mm
    result = LineGraph(moved, reference.edges, reference.roots)
    assert bifurcation_errors_mm(reference, result).tolist() == [5, 0]
    # without the second junction the nearest one is √(20² + ...) away: (10, 3, 4) to (10, 20, 0)
    chain = LineGraph.of_parents(moved[:4], [-1, 0, 1, 1])
    np.testing.assert_allclose(bifurcation_errors_mm(reference, chain), [5, np.hypot(17, 4)])


def test_a_voxel_without_length_is_refused():
    with pytest.raises(UsageError):
        match_leaves(star([(5, 0, 0)]), star([(5, 0, 0)]), voxel_mm=0.0)
