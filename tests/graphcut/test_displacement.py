"""Displaced nodes: subvoxel truth, order, costs between nodes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import erf

from medpipe.errors import StepError, UsageError
from medpipe.graphcut.columns import flat_columns
from medpipe.graphcut.displacement import (
    displace,
    edge_displacement,
    field_along_columns,
    gradient_displacement,
    parabola_displacement,
    resample_costs,
    slope_along_columns,
)
from medpipe.graphcut.surface_costs import edge_slope

SPACING = 2.0  # mm
NODES = torch.arange(16).double() * SPACING


def edges(blur, count=400, noise=0.0, seed=0):
    """Costs (C, K) of blurred edges at known places (C,), averaged over each voxel.

    The edge strength is the difference of neighbouring voxels on either side.
    """
    rng = np.random.default_rng(seed)
    truth = rng.uniform(10, 20, count)
    x = np.arange(-1, 17) * SPACING - truth[:, None]

    def integral(u):  # of the error function, for the mean over a voxel
        v = u / (blur * math.sqrt(2))
        return u * erf(v) + blur * math.sqrt(2 / math.pi) * np.exp(-(v**2))

    image = (integral(x + SPACING / 2) - integral(x - SPACING / 2)) / (2 * SPACING)
    image = image + noise * rng.normal(size=image.shape)
    return torch.from_numpy(-(image[:, 2:] - image[:, :-2]) / 2), torch.from_numpy(truth)


def best_error(costs, positions, truth):
    """Mean distance of the cheapest node of each column from the truth, in spacings."""
    best = costs.argmin(-1, keepdim=True)
    found = positions.expand_as(costs).gather(-1, best)[:, 0]
    return float((found - truth).abs().mean()) / SPACING


# width of the measured edge: blur, voxel average and the difference over two voxels
def width(blur):
    return math.sqrt(blur**2 + SPACING**2 / 12 + SPACING**2 / 3)


@pytest.mark.parametrize(
    ("method", "blur", "noise", "share"),
    [
        ("parabola", 1.0, 0.0, 0.15),
        ("parabola", 2.0, 0.0, 0.12),
        ("parabola", 2.0, 0.01, 0.2),
        ("centroid", 2.0, 0.0, 0.45),
        ("gradient", 1.0, 0.0, 0.4),
        ("gradient", 2.0, 0.0, 0.5),
        ("log-gradient", 1.0, 0.0, 0.12),
        ("log-gradient", 2.0, 0.0, 0.06),
    ],
)
def test_the_best_node_lies_much_closer_to_the_edge(method, blur, noise, share):
    costs, truth = edges(blur, noise=noise)
    nodes = NODES.expand_as(costs)
    if method in ("parabola", "centroid"):
        moved = parabola_displacement(costs, NODES, fit=method)
    elif method == "gradient":
        moved = gradient_displacement(slope_along_columns(-costs, nodes), nodes)
    else:
        strength = (-costs).clamp_min(1e-3).log()
        moved = gradient_displacement(
            slope_along_columns(strength, nodes), nodes, scale=width(blur) ** 2
        )
    regular = best_error(costs, nodes, truth)
    assert 0.22 < regular < 0.28  # a quarter of a spacing, uniform truth
    irregular = best_error(resample_costs(costs, moved), moved.positions_mm, truth)
    assert irregular < share * regular
    assert float((moved.positions_mm.diff(dim=-1) / SPACING).min()) >= 0.05 - 1e-9


def bars(count=400, thick=math.inf, seed=2):
    """Means over samples (C, 16) of bright bars that end at known places (C,)."""
    truth = np.random.default_rng(seed).uniform(14, 20, count)[:, None]
    ends = (np.arange(17) - 0.5) * SPACING
    length = np.clip(np.minimum(ends, truth) - np.maximum(-SPACING, truth - thick), 0, None)
    return torch.from_numpy(np.diff(length) / SPACING), torch.from_numpy(truth[:, 0])


def found_between(columns, sigma_mm, move):
    """Distance of the steepest fall from the first sample, (C,)."""
    slope = -edge_slope(columns, SPACING, sigma_mm=sigma_mm, between=True)
    nodes = (NODES[:-1] + SPACING / 2).expand_as(slope)
    moved = move(slope, nodes)
    return moved.positions_mm.gather(-1, slope.argmax(-1, keepdim=True))[:, 0]


@pytest.mark.parametrize("sigma_mm", [0.1, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_placed_exactly_by_any_width(sigma_mm, sign):
    columns, truth = bars()
    found = found_between(
        columns, sigma_mm, lambda g, z: edge_displacement(sign * g, z, sigma_mm=sigma_mm)
    )
    # moves stop short of half way by half of the smallest gap
    assert float((found - truth).abs().max()) / SPACING <= 0.025 + 1e-9
    clear = (found - truth).abs() < 1e-9 * SPACING
    assert float(clear.float().mean()) > 0.9


def test_the_far_side_of_a_thin_layer_does_not_count():
    columns, truth = bars(thick=1.3 * SPACING)
    kinds = {
        "edge": lambda g, z: edge_displacement(g, z, sigma_mm=0.1),
        "parabola": lambda g, z: parabola_displacement(-g, z),
        "none": lambda g, z: displace(z, torch.zeros_like(z)),
    }
    error = {
        name: float((found_between(columns, 0.1, move) - truth).abs().mean()) / SPACING
        for name, move in kinds.items()
    }
    assert error["edge"] < 0.4 * error["none"]
    assert error["edge"] < 0.7 * error["parabola"]


def test_a_parabola_on_unequal_nodes_is_exact():
    nodes = torch.tensor([[0.0, 1.0, 2.5, 3.2, 5.0]]).double()
    costs = 3 * (nodes - 2.3) ** 2 + 7
    moved = parabola_displacement(costs, nodes)
    assert float(moved.positions_mm[0, 2]) == pytest.approx(2.3, abs=1e-12)
    # the others stop at 0.475 of the gap towards the minimum, the ends stay
    expected = [0.0, 1 + 0.475 * 1.5, 2.3, 3.2 - 0.475 * 0.7, 5.0]
    np.testing.assert_allclose(moved.positions_mm[0], expected, atol=1e-12)
    at = resample_costs(costs, moved)
    np.testing.assert_allclose(at, 3 * (moved.positions_mm - 2.3) ** 2 + 7, atol=1e-9)


def test_linear_resampling_agrees_with_numpy():
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(50, 12, generator=generator).double().add(0.1).cumsum(-1)
    costs = torch.randn(50, 12, generator=generator).double()
    moved = displace(nodes, torch.randn(50, 12, generator=generator), repair=True)
    assert 0 < moved.repaired <= 600
    expected = [
        np.interp(p, n, c) for p, n, c in zip(moved.positions_mm, nodes, costs, strict=True)
    ]
    np.testing.assert_allclose(resample_costs(costs, moved, "linear"), expected, atol=1e-12)


def test_the_centroid_is_between_node_and_vertex():
    costs = torch.tensor([[9.0, 4.0, 1.0, 2.0, 9.0]]).double()  # weights 3, 2 of nodes 2, 3
    moved = parabola_displacement(costs, torch.arange(5.0), fit="centroid")
    # nodes 1, 2, 3: largest 4, weights 0, 3, 2: centroid 2 / 5 beyond the node
    assert float(moved.offset_mm[0, 2]) == pytest.approx(2 / 5)
    # nodes 0, 1, 2: largest 9, weights 0, 5, 8: 8 / 13, stopped at 0.475
    assert float(moved.offset_mm[0, 1]) == pytest.approx(0.475)


def test_ridges_and_unknown_costs_do_not_move_nodes():
    costs = torch.tensor([[5.0, 1.0, 9.0, torch.inf, 2.0, 1.0, 1.5, torch.nan, 0.0]]).double()
    moved = parabola_displacement(costs, torch.arange(9.0))
    assert moved.offset_mm[0, [0, 2, 3, 4, 6, 7, 8]].tolist() == [0] * 7
    assert float(moved.offset_mm[0, 1]) < 0
    assert float(moved.offset_mm[0, 5]) == pytest.approx(1 / 6)
    again = resample_costs(costs, moved)
    assert torch.equal(torch.isfinite(again), torch.isfinite(costs))
    assert float(again[0, 3]) == torch.inf
    ridge = parabola_displacement(-((torch.arange(5.0) - 2.2) ** 2)[None], torch.arange(5.0))
    assert not bool(ridge.offset_mm.any())


def test_costs_beside_a_forbidden_node_are_not_extrapolated():
    costs = torch.tensor([[4.0, 2.0, torch.inf, 3.0, 1.0]]).double()
    moved = displace(torch.arange(5.0), torch.tensor([0.0, 0.3, 0.0, 0.3, 0.0]), min_gap=0.5)
    moved = displace(moved.regular_mm[None], moved.offset_mm[None])
    # node 1 moves towards the forbidden node: its own cost; node 3 moves away: linear
    np.testing.assert_allclose(resample_costs(costs, moved), [[4, 2, np.inf, 2.4, 1]])


def test_one_scale_keeps_the_largest_move_at_the_limit():
    generator = torch.Generator().manual_seed(1)
    field = torch.randn(6, 5, 9, generator=generator).double()
    field[0, 0, 3] = torch.nan
    moved = gradient_displacement(field, NODES[:9])
    offset = moved.offset_mm
    assert float(offset.abs().max()) == pytest.approx(0.475 * SPACING)
    inner = torch.nan_to_num(field[..., 1:-1])
    quotient = offset[..., 1:-1][inner != 0] / inner[inner != 0]
    torch.testing.assert_close(quotient, quotient[0].expand_as(quotient))
    assert bool((offset[..., 0] >= 0).all())
    assert bool((offset[..., -1] <= 0).all())
    assert not bool(gradient_displacement(torch.zeros(2, 9), NODES[:9]).offset_mm.any())


def test_slopes_of_a_quadratic_are_exact_inside():
    nodes = torch.tensor([[0.0, 1.0, 2.5, 3.2, 5.0]]).double()
    slope = slope_along_columns(nodes**2 - 4 * nodes, nodes)
    np.testing.assert_allclose(slope[0, 1:-1], 2 * nodes[0, 1:-1] - 4, atol=1e-12)
    np.testing.assert_allclose(slope[0, [0, -1]], [1 - 4, 8.2 - 4], atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_field_is_projected_on_oblique_columns(reverse):
    turn = math.radians(30)
    rotation = np.array(
        [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = rotation * (0.5, 0.8, 1.2)
    columns = flat_columns((5, 6, 4), affine, axis=1, reverse=reverse)
    field = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 5, 6, 4)
    sign = -1 if reverse else 1
    image = field_along_columns(field, columns, affine)
    torch.testing.assert_close(image, torch.full_like(image, sign * 2.0))
    world = field_along_columns(field, columns, affine, "world")
    expected = sign * float(np.array([1.0, 2.0, 3.0]) @ rotation[:, 1])
    torch.testing.assert_close(world, torch.full_like(world, expected))


def test_moved_columns_sample_what_lies_at_the_new_positions():
    columns = flat_columns((2, 2, 16), np.diag([1.0, 1.0, SPACING, 1.0]))
    ramp = (torch.arange(16.0) * SPACING).double().expand(1, 2, 2, 16)
    costs, _ = edges(1.0, count=4)
    moved = parabola_displacement(costs.reshape(2, 2, 16), columns.positions_mm)
    values = columns.moved(moved.positions_mm).sample(ramp, np.diag([1.0, 1.0, SPACING, 1.0]))
    torch.testing.assert_close(values, moved.positions_mm, rtol=0, atol=1e-5)
    assert float(moved.offset_mm.abs().max()) > 0.1


def test_nodes_out_of_order_are_refused_by_name_or_repaired():
    nodes = torch.arange(5.0).expand(3, 4, 5)
    offset = torch.zeros(3, 4, 5)
    offset[1, 2, 2], offset[1, 2, 3] = 0.6, -0.5
    with pytest.raises(StepError, match=r"column \(1, 2\): displaced nodes 2 and 3 are too close"):
        displace(nodes, offset)
    with pytest.raises(StepError, match=r"column 6: displaced nodes"):
        displace(nodes.reshape(12, 5), offset.reshape(12, 5))
    moved = displace(nodes, offset, repair=True, min_gap=0.1)
    assert moved.repaired == 2
    np.testing.assert_allclose(moved.positions_mm[1, 2], [0, 1, 2.45, 2.55, 4], atol=1e-12)
    # a move beyond half the gap is fine as long as the neighbour gives way
    offset[1, 2, 3] = 0.3
    assert displace(nodes, offset).repaired == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: displace(torch.arange(4.0), torch.zeros(3)), "displacement is unusable"),
        (lambda: displace(torch.arange(4.0), torch.full((4,), torch.nan)), "unusable"),
        (lambda: displace(torch.zeros(4), torch.zeros(4)), "do not increase"),
        (lambda: displace(torch.zeros(2), torch.zeros(2)), "too few nodes"),
        (lambda: displace(torch.arange(4.0), torch.zeros(4), min_gap=0), "min_gap"),
        (lambda: parabola_displacement(torch.zeros(3, 4), torch.arange(5.0)), "do not fit"),
        (lambda: parabola_displacement(torch.zeros(4), torch.arange(4.0), fit="x"), "unknown fit"),
        (
            lambda: edge_displacement(torch.ones(4), torch.tensor([0, 1, 2, 4.0]), sigma_mm=1),
            "not equally spaced",
        ),
        (lambda: gradient_displacement(torch.ones(4), torch.arange(4.0), scale=-1), "scale"),
        (
            lambda: resample_costs(
                torch.zeros(4), displace(torch.arange(4.0), torch.zeros(4)), "cubic"
            ),
            "unknown mode",
        ),
    ],
)
def test_wrong_requests_are_refused(call, message):
    with pytest.raises((StepError, UsageError), match=message):
        call()
