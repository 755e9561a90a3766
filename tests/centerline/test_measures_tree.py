"""Measures of trees drawn by hand, whose numbers are known."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medpipe.centerline.branching import direction, murray_exponent
from medpipe.centerline.measures import (
    bifurcations,
    branch_table,
    generations,
    horsfield,
    strahler,
    summary,
)
from medpipe.centerline.tree import CenterlineTree


def tree_of(chains):
    """Return the tree of (parent chain or -1, points after the start, radius) triples.

    The first point of a chain without a parent is its root.
    """
    points, parents, radii, last = [], [], [], []
    for above, line, radius in chains:
        previous = last[above] if above >= 0 else -1
        for n, point in enumerate(line):
            points.append(point)
            parents.append(previous)
            radii.append(radius[n] if np.ndim(radius) else radius)
            previous = len(points) - 1
        last.append(previous)
    count = len(points)
    return CenterlineTree(
        voxels=np.zeros((count, 3), np.int64),
        parents=np.array(parents, np.int64),
        positions_mm=np.array(points, float),
        radius_mm=np.array(radii, float),
        area_radius_mm=np.full(count, np.nan),
        structures=np.full(count, 4),
        affine=np.eye(4),
        shape=(9, 9, 9),
    )


def straight(start, way, length, step=0.5):
    way = np.array(way) / np.linalg.norm(way)
    return np.array(start) + np.arange(step, length + step / 2, step)[:, None] * way


def fork(half_angle_deg=30.0, radii=(2.0, 2.0 * 2 ** (-1 / 3), 2.0 * 2 ** (-1 / 3))):
    """Return a trunk of 30 mm up z and two daughters of 20 and 16 mm."""
    a = np.radians(half_angle_deg)
    trunk = np.concatenate([[[0, 0, 0]], straight([0, 0, 0], [0, 0, 1], 30)])
    return tree_of(
        [
            (-1, trunk, radii[0]),
            (0, straight([0, 0, 30], [np.sin(a), 0, np.cos(a)], 20), radii[1]),
            (0, straight([0, 0, 30], [-np.sin(a), 0, np.cos(a)], 16), radii[2]),
        ]
    )


def binary(depth):
    """Return a symmetric tree with 2^(depth + 1) - 1 branches."""
    chains = [(-1, [[0, 0, 0], [0, 0, 1]], 1.0)]
    level = [0]
    for d in range(depth):
        following = []
        for above in level:
            start = np.array(chains[above][1][-1], float)
            for sign in (-1, 1):
                shift = sign * 100 / 2 ** (d + 1)
                following.append(len(chains))
                chains.append(
                    (above, [start + np.array([shift / k, 0, 3 - k]) for k in (2, 1)], 1.0)
                )
        level = following
    return tree_of(chains)


def test_a_fork_of_sixty_degrees():
    rows = branch_table(fork())
    assert [r["length_mm"] for r in rows] == pytest.approx([30, 20, 16])
    assert [r["chord_mm"] for r in rows] == pytest.approx([30, 20, 16])
    assert [r["tortuosity"] for r in rows] == pytest.approx([0, 0, 0], abs=1e-12)
    assert [r["angle_deg"] for r in rows[1:]] == pytest.approx([30, 30])
    assert rows[0]["angle_deg"] is None
    assert [r["parent"] for r in rows] == [None, 0, 0]
    assert [r["generation"] for r in rows] == [0, 1, 1]
    assert [r["strahler"] for r in rows] == [2, 1, 1]
    assert [r["daughters"] for r in rows] == [2, 0, 0]
    assert {r["structure"] for r in rows} == {4}
    assert rows[1]["end_x_mm"] == pytest.approx(10)
    assert rows[1]["start_z_mm"] == pytest.approx(30)
    thin = 2 * 2 ** (-1 / 3)
    assert rows[1]["radius_mean_mm"] == pytest.approx(thin)
    assert rows[0]["volume_ml"] == pytest.approx(np.pi * 4 * 30 / 1000)
    # without the ball of the junction, 2 mm
    assert rows[1]["volume_ml"] == pytest.approx(np.pi * thin**2 * 18 / 1000)
    assert [r["taper_mm_per_mm"] for r in rows] == pytest.approx([0, 0, 0], abs=1e-9)
    assert [r["area_radius_mean_mm"] for r in rows] == [None] * 3


def test_its_bifurcation():
    (row,) = bifurcations(fork())
    assert row["angle_deg"] == pytest.approx(60)
    assert row["daughter_1_angle_deg"] == pytest.approx(30)
    assert row["daughter_2_angle_deg"] == pytest.approx(30)
    assert row["murray_exponent"] == pytest.approx(3)
    assert row["area_ratio"] == pytest.approx(2 ** (1 / 3))
    assert row["asymmetry"] == pytest.approx(1)
    assert (row["parent"], row["daughters"], row["node"]) == (0, 2, 60)
    assert (row["x_mm"], row["y_mm"], row["z_mm"]) == pytest.approx((0, 0, 30))


def test_the_widest_daughter_comes_first_and_a_law_may_not_exist():
    (row,) = bifurcations(fork(45, radii=(2.0, 0.9, 1.6)))
    assert (row["daughter_1"], row["daughter_2"]) == (2, 1)
    assert row["asymmetry"] == pytest.approx(0.9 / 1.6)
    assert row["angle_deg"] == pytest.approx(90)
    assert row["area_ratio"] == pytest.approx((0.9**2 + 1.6**2) / 4)
    x = row["murray_exponent"]
    assert 0.9**x + 1.6**x == pytest.approx(2**x)
    assert bifurcations(fork(radii=(2.0, 2.0, 0.5)))[0]["murray_exponent"] is None


@pytest.mark.parametrize("x", [0.5, 2.0, 3.0, 7.5])
def test_the_exponent_of_murray(x):
    parent = (1.1**x + 0.7**x + 0.9**x) ** (1 / x)
    assert murray_exponent(parent, [1.1, 0.7, 0.9]) == pytest.approx(x)


def test_no_exponent_of_murray():
    assert murray_exponent(1, [0.5]) is None
    assert murray_exponent(0, [0.5, 0.5]) is None
    assert murray_exponent(1, [0.999, 0.999]) is None


def test_orders_of_a_symmetric_tree_of_depth_four():
    tree = binary(4)
    orders = strahler(tree)
    assert (len(orders), orders[0], max(generations(tree))) == (31, 5, 4)
    levels = generations(tree)
    assert all(o == 5 - g for o, g in zip(orders, levels, strict=True))
    assert horsfield(tree) == orders
    about = summary(tree)
    assert (about["branches"], about["leaves"], about["junctions"]) == (31, 16, 15)
    assert (about["max_generation"], about["max_strahler"]) == (4, 5)


def test_orders_of_an_uneven_tree():
    """A trunk with side branches: Strahler stays 2, Horsfield climbs; three daughters."""
    chains = [(-1, [[0, 0, 0], [0, 0, 1]], 1.0)]
    trunk = 0
    for n in range(3):
        chains.append((trunk, [[1, 0, n + 1.5]], 1.0))
        chains.append((trunk, [[0, 0, n + 2]], 1.0))
        trunk = len(chains) - 1
    tree = tree_of(chains)
    assert strahler(tree)[0] == 2
    assert horsfield(tree)[0] == 4
    assert generations(tree)[0] == 0
    assert max(generations(tree)) == 3
    three = tree_of([(-1, [[0, 0, 0], [0, 0, 1]], 1), *((0, [[n, 1, 2]], 1) for n in range(3))])
    assert strahler(three) == [2, 1, 1, 1]
    # orders 2, 1, 1 below: the highest is alone
    mixed = tree_of(
        [(-1, [[0, 0, 0], [0, 0, 1]], 1), *((0, [[n, 1, 2]], 1) for n in range(3)),
         (1, [[0, 2, 3]], 1), (1, [[1, 2, 4]], 1)]
    )  # fmt: skip
    assert strahler(mixed)[0] == 2


def test_an_arc_with_a_taper():
    t = np.linspace(0, np.pi / 2, 80)
    arc = np.stack([20 * np.cos(t), 20 * np.sin(t), 0 * t], 1)
    length = 20 * np.pi / 2
    radius = 3 - 2 * t / (np.pi / 2)
    (row,) = branch_table(tree_of([(-1, arc, radius)]))
    assert row["length_mm"] == pytest.approx(length, rel=1e-4)
    assert row["tortuosity"] == pytest.approx(np.pi / 2 / np.sqrt(2) - 1, rel=1e-3)
    assert row["curvature_mean_per_mm"] == pytest.approx(1 / 20, rel=1e-3)
    assert row["curvature_max_per_mm"] == pytest.approx(1 / 20, rel=1e-2)
    assert row["soam_rad_per_mm"] == pytest.approx(1 / 20, rel=0.05)
    assert row["taper_mm_per_mm"] == pytest.approx(2 / length, rel=1e-3)
    assert row["radius_mean_mm"] == pytest.approx(2)
    assert (row["radius_min_mm"], row["radius_max_mm"]) == pytest.approx((1, 3))
    frustum = np.pi * length * (9 + 3 + 1) / 3 / 1000
    assert row["volume_ml"] == pytest.approx(frustum, rel=1e-3)


def test_the_radius_of_sections_is_used_for_the_volume():
    line = np.concatenate([[[0, 0, 0]], straight([0, 0, 0], [1, 0, 0], 20)])
    tree = tree_of([(-1, line, 2.0)])
    tree.area_radius_mm[5:30] = 3.0
    (row,) = branch_table(tree)
    assert row["area_radius_mean_mm"] == pytest.approx(3)
    # nodes 5 to 29 at 0.5 mm: 12 mm, a frustum on either side, the rest by the ball
    volume = np.pi * (9 * 12 + 2 * 0.5 * (9 + 6 + 4) / 3 + 4 * 7) / 1000
    assert row["volume_ml"] == pytest.approx(volume)


def curved_tree(seed):
    """Return a tree of branches that bend, with uneven steps and radii."""
    rng = np.random.default_rng(seed)
    chains = [(-1, np.zeros((1, 3)), 3.0)]
    level = [0]
    for radius in (3.0, 2.2, 1.5):
        following = []
        for above in level:
            for _ in range(1 if radius == 3.0 else 2):
                way = rng.normal(loc=[0, 0, 2])
                steps = rng.uniform(0.4, 0.8, 40)[:, None]
                turn = rng.normal(size=3) * np.linspace(0, 1, 40)[:, None]
                heading = way / np.linalg.norm(way) + 0.7 * turn
                line = np.array(chains[above][1])[-1] + np.cumsum(steps * heading, axis=0)
                following.append(len(chains))
                chains.append((above, line, radius * rng.uniform(0.8, 1, 40)))
        level = following
    return chains


def moved(chains, matrix, shift, scale=1.0):
    return tree_of(
        [(a, np.array(p) @ matrix.T * scale + shift, np.array(r) * scale) for a, p, r in chains]
    )


PLACES = ("x_mm", "y_mm", "z_mm")


def compare(row, other, factor):
    for name, value in row.items():
        if not name.endswith(PLACES):
            expected = value
            if isinstance(value, float):
                expected = pytest.approx(value * factor(name), rel=1e-6, abs=1e-6)
            assert other[name] == expected, name


@pytest.mark.parametrize("seed", range(4))
def test_rigid_motion_changes_nothing_but_places(seed):
    chains = curved_tree(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    at_home, away = moved(chains, np.eye(3), 0), moved(chains, turn, [100, -40, 7])
    for table in (branch_table, bifurcations):
        for row, other in zip(table(at_home), table(away), strict=True):
            compare(row, other, lambda _: 1.0)
    compare(summary(at_home), summary(away), lambda _: 1.0)


@pytest.mark.parametrize("scale", [0.1, 2.5])
def test_lengths_scale_with_the_tree(scale):
    chains = curved_tree(9)
    home, away = (moved(chains, np.eye(3), 0, s) for s in (1.0, scale))

    def factor(name):
        if name.endswith("_mm_per_mm"):
            return 1.0
        powers = {"_per_mm": -1, "_mm": 1, "_ml": 3}
        return scale ** next((p for end, p in powers.items() if name.endswith(end)), 0)

    for table in (branch_table, bifurcations):
        for row, other in zip(table(home), table(away), strict=True):
            compare(row, other, factor)
    compare(summary(home), summary(away), factor)


def test_the_lengths_of_the_branches_make_up_the_whole():
    tree = moved(curved_tree(3), np.eye(3), 0)
    rows, about = branch_table(tree), summary(tree)
    assert sum(r["length_mm"] for r in rows) == pytest.approx(about["length_mm"])
    assert sum(r["volume_ml"] for r in rows) == pytest.approx(about["volume_ml"])
    for row in rows:
        assert row["tortuosity"] >= 0
        assert row["radius_min_mm"] <= row["radius_mean_mm"] <= row["radius_max_mm"]
    json.dumps([rows, bifurcations(tree), about], allow_nan=False)


def test_a_root_that_branches_a_node_alone_and_short_branches():
    tree = tree_of([(-1, [[0, 0, 0]], 5.0), (0, [[1, 0, 0]], 5.0), (0, [[0, 1, 0], [0, 2, 0]], 5.0),
                    (-1, [[9, 9, 9]], 2.0)])  # fmt: skip
    rows = branch_table(tree)
    assert [r["parent"] for r in rows] == [None, None]
    assert [r["angle_deg"] for r in rows] == [None, None]
    assert [r["volume_ml"] for r in rows] == [0, 0]  # within the ball of the root
    assert [r["radius_mean_mm"] for r in rows] == [5, 5]
    assert [r["taper_mm_per_mm"] for r in rows] == [None, None]
    assert [r["curvature_mean_per_mm"] for r in rows] == [None, None]
    (row,) = bifurcations(tree)
    assert row["angle_deg"] == pytest.approx(90)
    for name in ("parent", "parent_radius_mm", "daughter_1_angle_deg", "area_ratio"):
        assert row[name] is None
    alone = tree_of([(-1, [[1, 2, 3]], 2.0)])
    assert branch_table(alone) == []
    about = summary(alone)
    assert (about["trees"], about["branches"], about["length_mm"]) == (1, 0, 0)
    assert about["max_strahler"] is about["volume_ml"] is about["tortuosity_mean"] is None


def test_directions_leave_the_junction_out():
    """The first radius turns off: only what lies between one and three radii counts."""
    line = np.concatenate([[[0, 0, 0]], straight([0, 0, 0], [1, 1, 0], 2 * np.sqrt(2), 0.1)])
    line = np.concatenate([line, straight(line[-1], [1, 0, 0], 8, 0.1)])
    np.testing.assert_allclose(direction(line, 2 * np.sqrt(2) + 0.01), [1, 0, 0], atol=1e-2)
    assert direction(np.zeros((3, 3)), 1.0) is None
    steps = [direction(line, r)[0] for r in (0.5, 1.5, 2.8)]
    assert all(a < b for a, b in pairwise(steps))
