"""Arcs along a field: what any labelling that obeys them must look like."""

from itertools import product

import networkx as nx
import numpy as np
import pytest
import torch

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.problem import INFINITE, ArcFamily, CutProblem
from medpipe.graphcut.shape_prior import prior_arcs
from medpipe.graphcut.solve import min_cut
from medpipe.graphcut.vector_field import gradient_vector_flow


def radial(shape, centre, spacing):
    axes = [
        (torch.arange(n, dtype=torch.float64) - c) * s
        for n, c, s in zip(shape, centre, spacing, strict=True)
    ]
    return -torch.stack(torch.meshgrid(*axes, indexing="ij"))


def arc_list(arcs):
    """All arcs as index pairs (tail, head), a row each; fails when a head is off the grid."""
    pairs = []
    for offset, capacity in arcs:
        tail = np.argwhere(capacity.numpy() > 0)
        head = tail + np.array(offset)
        assert (head >= 0).all()
        assert (head < capacity.shape).all()
        pairs.append(np.stack([tail, head], 1))
    return np.concatenate(pairs)


def broken(arcs, inside):
    """Number of arcs that leave the labelling."""
    tail, head = np.moveaxis(arc_list(arcs), 1, 0)
    inside = np.asarray(inside)
    return int((inside[tuple(tail.T)] & ~inside[tuple(head.T)]).sum())


def cut(data, arcs, scale=1000):
    """The best labelling for the cost of being inside, in integers."""
    cost = torch.round(data * scale).to(torch.int32)

    def whole(capacity):
        hard = torch.isinf(capacity)
        return torch.where(hard, INFINITE, torch.where(hard, 0, capacity * scale).int()).int()

    families = [ArcFamily(o, whole(c)) for o, c in arcs]
    problem = CutProblem((-cost).clamp(min=0), cost.clamp(min=0), families)
    result = min_cut(problem)
    assert result.proved
    return result.source_side


def noisy_ball(shape, centre, radius, seed):
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    r = radial(shape, centre, (1, 1, 1)).norm(dim=0)
    return torch.tanh((r - radius) / 2) * 0.6 + noise


def components(arcs, n):
    graph = nx.DiGraph()
    graph.add_nodes_from(range(n))
    pairs = arc_list(arcs)
    shape = arcs[0][1].shape
    flat = np.ravel_multi_index(tuple(np.moveaxis(pairs, 2, 0)), shape)
    graph.add_edges_from(flat.tolist())
    return [c for c in nx.strongly_connected_components(graph) if len(c) > 1]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.9, 3.0)])
def test_rounded_arcs_of_a_radial_field_end_at_the_centre(spacing):
    shape, centre = (17, 14, 11), (9, 5, 4)
    arcs, cycles = prior_arcs(radial(shape, centre, spacing), spacing)
    assert (cycles.groups, cycles.voxels, cycles.largest, cycles.opened) == (0, 0, 1, 0)
    pairs = arc_list(arcs)
    assert len(pairs) == np.prod(shape) - 1  # each voxel but the centre has one
    # every step comes one voxel nearer in the largest coordinate, and no coordinate overshoots
    away = np.abs(pairs - np.array(centre))
    assert (away[:, 1].max(1) == away[:, 0].max(1) - 1).all()
    assert (away[:, 1] <= away[:, 0]).all()
    assert all(torch.isinf(c[c > 0]).all() for _, c in arcs)


def test_rounded_arcs_stay_near_the_straight_line():
    shape, centre = (41, 41, 41), (20, 20, 20)
    arcs, _ = prior_arcs(radial(shape, centre, (1, 1, 1)), 1.0)
    step = np.zeros((*shape, 3), int)
    for offset, capacity in arcs:
        step[capacity.numpy() > 0] = offset
    for start in [(40, 32, 20), (0, 40, 28), (33, 3, 11)]:
        here, line = (
            np.array(start),
            (np.array(start) - centre) / np.linalg.norm(np.array(start) - centre),
        )
        for _ in range(20):
            here = here + step[tuple(here)]
            off = here - centre
            assert np.linalg.norm(off - (off @ line) * line) < 3
        assert (here == centre).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rule", ["rounded", "cone"])
def test_best_labelling_of_noise_is_star_shaped(seed, rule):
    shape, centre = (18, 16, 14), (9, 7, 6)
    field = radial(shape, centre, (1, 1, 1))
    arcs, _ = prior_arcs(field, 1.0, rule, 60.0)
    data = noisy_ball(shape, centre, 5.0, seed)
    free, held = cut(data, []), cut(data, arcs)
    assert broken(arcs, free) > 100
    assert broken(arcs, held) == 0
    assert 200 < int(held.sum()) < 2000
    # any ray of arcs from an inside voxel stays inside down to the centre
    step = np.zeros((*shape, 3), int)
    for offset, capacity in prior_arcs(field, 1.0)[0]:
        step[capacity.numpy() > 0] = offset
    here = np.argwhere(held.numpy())
    for _ in range(max(shape)):
        here = here + step[tuple(here.T)]
        assert held.numpy()[tuple(here.T)].all()
    assert (here == np.array(centre)).all()


def test_the_cut_is_the_best_interval_on_a_line():
    # star-shaped about the middle of a line: the intervals that hold it, and nothing
    n, middle = 15, 6
    arcs, _ = prior_arcs(radial((n, 1, 1), (middle, 0, 0), (1, 1, 1)), 1.0)
    for seed in range(30):
        data = np.random.default_rng(seed).integers(-9, 10, n).astype(float)
        best = min(
            [0.0] + [data[a : b + 1].sum() for a in range(middle + 1) for b in range(middle, n)]
        )
        held = cut(torch.from_numpy(data)[:, None, None], arcs, 1).numpy()[:, 0, 0]
        assert data[held].sum() == best


def test_soft_arcs_lie_between_no_prior_and_the_hard_one():
    shape, centre = (16, 16, 16), (8, 8, 8)
    field = radial(shape, centre, (1, 1, 1))
    data = noisy_ball(shape, centre, 5.0, 1)
    hard, _ = prior_arcs(field, 1.0)
    masks = [cut(data, prior_arcs(field, 1.0, weight=w)[0]) for w in (0.0, 0.3, 1.0, 3.0, 1000.0)]
    count = [broken(hard, m) for m in masks]
    assert count == sorted(count, reverse=True)
    assert len(set(count)) >= 4
    assert count[-1] == 0
    assert torch.equal(masks[0], cut(data, []))
    assert torch.equal(masks[-1], cut(data, hard))


def test_weights_may_differ_from_place_to_place():
    field = radial((9, 9, 9), (4, 4, 4), (1, 1, 1))
    weight = torch.rand(9, 9, 9, dtype=torch.float64)
    weight[0] = 0
    arcs, _ = prior_arcs(field, 1.0, weight=weight)
    total = sum(c for _, c in arcs)
    weight[4, 4, 4] = 0  # no direction at the centre
    assert torch.equal(total, weight)


@pytest.mark.parametrize(("angle", "spacing"), [(45.0, (1, 1, 1)), (20.0, (1, 2, 3)), (89, 1.0)])
def test_cone_holds_the_neighbours_within_its_angle(angle, spacing):
    rng = np.random.default_rng(5)
    field = torch.from_numpy(rng.standard_normal((3, 5, 5, 5)))
    step_mm = np.broadcast_to(np.asarray(spacing, float), 3)
    arcs = dict(prior_arcs(field, spacing, "cone", angle, max_core_voxels=None)[0])
    rounded = dict(prior_arcs(field, spacing, max_core_voxels=None)[0])
    none = torch.zeros(5, 5, 5, dtype=torch.float64)
    for offset in product((-1, 0, 1), repeat=3):
        if offset == (0, 0, 0):
            continue
        mm = np.array(offset) * step_mm
        v = field[:, 2, 2, 2].numpy()
        between = np.degrees(np.arccos(v @ mm / np.linalg.norm(v) / np.linalg.norm(mm)))
        expected = between <= 90 - angle or bool(rounded.get(offset, none)[2, 2, 2] > 0)
        assert bool(arcs.get(offset, none)[2, 2, 2] > 0) == expected


def test_cone_bounds_the_angle_of_the_surface():
    # constant field along x: the surface is a height over y, z whose slope is bounded
    shape = (30, 9, 9)
    field = torch.zeros(3, *shape, dtype=torch.float64)
    field[0] = -1.0
    arcs, _ = prior_arcs(field, 1.0, "cone", 45.0)
    noise = np.random.default_rng(2).standard_normal(shape) * 2
    data = torch.from_numpy(noise) + torch.where(torch.arange(30) < 15, -0.5, 0.5)[:, None, None]
    held = cut(data, arcs).numpy()
    height = held.sum(0)
    assert (np.diff(held.astype(int), axis=0) <= 0).all()
    assert np.abs(np.diff(height, axis=0)).max() <= 1
    assert np.abs(np.diff(height, axis=1)).max() <= 1
    loose = cut(data, prior_arcs(field, 1.0)[0]).numpy().sum(0)
    assert np.abs(np.diff(loose, axis=0)).max() > 1


def test_two_opposite_halves_are_glued_in_pairs():
    field = torch.zeros(3, 10, 4, 3)
    field[0, :5], field[0, 5:] = 1.0, -1.0
    _, cycles = prior_arcs(field, 1.0)
    assert (cycles.groups, cycles.voxels, cycles.largest, cycles.opened) == (12, 24, 2, 0)


def test_an_eddy_is_found_and_opened():
    axes = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    x, y = axes
    # round in circles about the middle, drawn to a radius of 7 voxels
    pull = (7 - (x**2 + y**2).sqrt()) / 7
    field = torch.stack([pull * x - y, pull * y + x, torch.zeros(21, 21)])[..., None]
    arcs, kept = prior_arcs(field, 1.0, max_core_voxels=None)
    assert kept.largest > 12
    assert kept.opened == 0
    found = components(arcs, 441)
    assert kept.largest == max(map(len, found))
    limited, report = prior_arcs(field, 1.0, max_core_voxels=12)
    assert report.opened == sum(len(c) > 12 for c in found) > 0
    assert max(map(len, components(limited, 441)), default=1) <= 12
    gone, _ = prior_arcs(field, 1.0, max_core_voxels=1)
    assert components(gone, 441) == []


@pytest.mark.parametrize("rule", ["rounded", "cone"])
def test_cycles_of_a_random_field_agree_with_networkx(rule):
    field = torch.from_numpy(np.random.default_rng(8).standard_normal((3, 7, 8, 6)))
    arcs, cycles = prior_arcs(field, (1, 2, 1.5), rule, 70.0, max_core_voxels=None)
    found = components(arcs, 7 * 8 * 6)
    assert cycles.groups == len(found) > 0
    assert cycles.voxels == sum(map(len, found))
    assert cycles.largest == max(map(len, found))


def test_flow_of_an_object_becomes_arcs_that_end_in_a_small_core():
    shape, spacing = (48, 40, 20), (1.0, 1.0, 2.5)
    axes = [
        (torch.arange(n) - (n - 1) / 2) * s / r
        for n, s, r in zip(shape, spacing, (18, 12, 15), strict=True)
    ]
    mask = sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) < 1
    arcs, cycles = prior_arcs(gradient_vector_flow(mask, spacing), spacing)
    assert cycles.voxels <= 8
    assert broken(arcs, mask) < 0.002 * int(mask.sum())  # the object itself obeys its prior
    step = np.zeros((*shape, 3), int)
    for offset, capacity in arcs:
        step[capacity.numpy() > 0] = offset
    here = np.argwhere(mask.numpy())
    for _ in range(60):
        here = here + step[tuple(here.T)]
    ends = np.abs(here - (np.array(shape) - 1) / 2)
    assert ends.max() < 3  # all lead to the centre


def test_no_arcs_where_the_field_vanishes_or_leaves_the_grid():
    field = torch.zeros(3, 6, 6, 6)
    field[0, 2:] = 1.0
    field[0, 1] = 1e-4
    arcs, cycles = prior_arcs(field, 1.0)
    assert [o for o, _ in arcs] == [(1, 0, 0)]
    assert torch.isinf(arcs[0][1]).any(2).any(1).tolist() == [False, False, True, True, True, False]
    assert cycles.groups == 0
    outward = torch.zeros(3, 1, 1, 2)
    outward[0] = 1.0
    assert prior_arcs(outward, 1.0).arcs == []


@pytest.mark.parametrize(
    ("field", "options", "text"),
    [
        (torch.zeros(3, 4, 4, 4), {}, "zero everywhere"),
        (torch.full((3, 4, 4, 4), float("nan")), {}, "NaN"),
        (torch.ones(2, 4, 4, 4), {}, "axes"),
        (torch.ones(3, 4, 4, 4), {"weight": -1.0}, "negative"),
        (torch.ones(3, 4, 4, 4), {"weight": torch.ones(4, 4)}, "wrong shape"),
    ],
)
def test_unusable_input_is_refused_in_one_line(field, options, text):
    with pytest.raises(StepError, match=text) as caught:
        prior_arcs(field, 1.0, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "round"},
        {"rule": "cone", "angle_deg": 0.0},
        {"rule": "cone", "angle_deg": 91.0},
        {"min_length": 1.0},
        {"max_core_voxels": 0},
        {"spacing_mm": -1.0},
    ],
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(UsageError):
        prior_arcs(torch.ones(3, 4, 4, 4), **({"spacing_mm": 1.0} | wrong))
